"""The resolution of knobs: what rounds to the same number is the same value, and every page can say its own values."""

import math

import numpy as np
import pytest

from virtualmle.agents.drawing import draw
from virtualmle.agents.moves import LADDERS
from virtualmle.models.config import KNOBS, make_config
from virtualmle.models.knobs.resolution import Resolution
from virtualmle.sandbox.action_space import ActionSpace, Knob
from virtualmle.sandbox.proposals import value_at
from virtualmle.sandbox.protocol import PACKAGED, Protocol, load_protocol
from virtualmle.sandbox.remedies import REMEDIES

PAGES = [PACKAGED, *sorted((PACKAGED.parent / "sandboxes").glob("*.md"))]
NUMBERS = [knob for knob in KNOBS.values() if knob.low is not None]


@pytest.mark.parametrize(
    ("resolution", "value", "nearest"),
    [
        (Resolution(), 0.00030000001, 3e-4),
        (Resolution(), 1.2499e-5, 1.2e-5),
        (Resolution(), 0.0995, 0.1),
        (Resolution("0.01"), 0.3333, 0.33),
        (Resolution("0.01"), 0.1 + 0.2, 0.3),
        (Resolution("8"), 67, 64),
        (Resolution(powers=True), 8192, 8192),
        (Resolution(powers=True), 8150, 8192),
        (Resolution(powers=True), 554, 550),
        (Resolution(powers=True), 505, 500),
        (Resolution(complement=True), 0.99991, 0.99991),
        (Resolution(complement=True), 0.98765, 0.988),
        (Resolution(complement=True), 0.9990001, 0.999),
        (Resolution(finest="0.000001"), 1.4e-9, 0.0),
        (Resolution(finest="0.000001"), 3.4e-6, 3e-6),
        (Resolution(finest="0.000001"), -0.1234, -0.12),
    ],
)
def test_a_value_is_rounded_to_the_nearest_of_the_grid(resolution: Resolution, value: float, nearest: float) -> None:
    assert resolution.nearest(value) == nearest
    assert resolution.nearest(nearest) == nearest


def pages() -> list[Protocol]:
    return [load_protocol(page) for page in PAGES]


def numbers(space: ActionSpace) -> list[Knob]:
    return [entry for entry in space.entries if entry.low is not None]


def test_each_number_that_a_page_of_the_package_states_lies_on_the_grid_of_its_knob() -> None:
    assert len(PAGES) >= 2
    for page in pages():
        for knob in numbers(page.space):
            resolution = KNOBS[knob.name].resolution
            assert resolution is not None
            for stated in {knob.low, knob.high, *knob.levels, *knob.defaults.values()}:
                assert resolution.nearest(float(stated or 0)) == stated, (knob.name, stated)  # not only as an exception
                assert knob.check(stated) == stated


def test_the_ladders_of_the_engineer_and_of_the_diagnosis_lie_on_the_grid() -> None:
    ladders = {name: [*values] for name, values in LADDERS.items()}
    targets = [(name, target) for remedy in REMEDIES for name, target in remedy.target.items()]
    for name, target in targets:
        values = target if isinstance(target, tuple) else (target,)
        ladders.setdefault(name, []).extend(v for v in values if isinstance(v, int | float) and not isinstance(v, bool))
    off = [
        (name, value) for name, values in ladders.items() for value in values
        if (resolution := KNOBS[name].resolution) and resolution.nearest(value) != value
    ]  # fmt: skip
    assert ladders and not off


@pytest.mark.parametrize("name", [knob.name for knob in NUMBERS])
def test_drawn_and_proposed_numbers_are_valid_and_rounded(name: str) -> None:
    knob = next(entry for entry in load_protocol().space.entries if entry.name == name)
    generator = np.random.default_rng(0)
    drawn = [draw(knob, generator) for _ in range(300)]
    proposed = [value_at(knob, place) for place in np.linspace(0, 1, 50)]
    assert [knob.check(value) for value in [*drawn, *proposed]] == [*drawn, *proposed]
    assert {type(value) for value in [*drawn, *proposed]} == {int if knob.type == "int" else float}


@pytest.mark.parametrize("name", [knob.name for knob in NUMBERS if knob.type == "float"])
def test_a_float_knob_has_at_most_a_few_hundred_values(name: str) -> None:
    knob = next(entry for entry in load_protocol().space.entries if entry.name == name)
    assert knob.low is not None and knob.high is not None
    low = max(knob.low, knob.high * 1e-7)
    fine = np.concatenate([np.linspace(knob.low, knob.high, 20001), np.geomspace(low, knob.high, 20001)])
    values = {knob.rounded(min(max(value, knob.low), knob.high)) for value in fine.tolist()}
    assert 10 < len(values) < 800


def test_a_page_may_state_numbers_off_the_grid_which_then_are_values_of_their_own() -> None:
    knob = Knob(
        name="lr", type="float", dimension="optimisation", low=1.234e-4, high=0.0123, scale="log",
        defaults={"sasrec": 3.33e-4},
    )  # fmt: skip
    assert [knob.check(value) for value in (1.234e-4, 0.0123, 3.33e-4)] == [1.234e-4, 0.0123, 3.33e-4]
    assert [knob.check(value) for value in (3.331e-4, 3.2e-4, 3.24e-4)] == [3.33e-4, 3.2e-4, 3.2e-4]
    levels = knob.model_copy(update={"levels": (1.234e-4, 3e-4, 0.0123)})
    assert [levels.check(value) for value in (1.234e-4, 3.0000001e-4)] == [1.234e-4, 3e-4]


def test_roundings_name_the_knob_both_values_and_the_resolution() -> None:
    space = load_protocol().space
    changes = {"lr": 0.00030000001, "dropout": 0.25, "hidden_dim": 60, "ffn": "relu", "warmup_epochs": 1}
    assert space.roundings("sasrec", changes) == (
        "lr=0.00030000001 was rounded to 0.0003 (2 significant digits), "
        "hidden_dim=60 was rounded to 64 (multiples of 8)"
    )
    config = space.resolve(make_config("sasrec"), changes)
    assert (config.lr, config.dropout, config.hidden_dim) == (3e-4, 0.25, 64)


def test_every_number_has_a_resolution_and_no_other_knob_has_one() -> None:
    for knob in KNOBS.values():
        assert (knob.resolution is not None) == (knob.low is not None)
    assert all(math.isfinite(knob.resolution.nearest(1.0)) for knob in NUMBERS if knob.resolution)
