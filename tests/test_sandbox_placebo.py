"""The placebo memory: knowledge of the same form about the wrong knobs, deterministic per seed."""

import pytest

from virtualmle.sandbox.conditions import parse_condition
from virtualmle.sandbox.placebo import Placebo
from virtualmle.sandbox.protocol import load_protocol

SPACE = load_protocol().space
SETTINGS = {"lr": 0.001, "transition_weight": 8.0, "loss": "full_softmax", "causal": False, "max_len": 20}


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
@pytest.mark.parametrize("seed", range(5))
def test_no_knob_keeps_its_own_knowledge_and_mapped_values_are_valid(backbone: str, seed: int) -> None:
    placebo = Placebo(SPACE, backbone, seed)
    knobs = {knob.name: knob for knob in SPACE.knobs(backbone)}
    targets = set()
    for name, knob in knobs.items():
        value = knob.high if knob.high is not None else (knob.choices or (False, True))[0]
        ((target, mapped),) = placebo.settings({name: value}).items()
        assert target != name and knobs[target].check(mapped) == mapped
        targets.add(target)
    assert targets == set(knobs)


def test_the_permutation_depends_on_the_seed() -> None:
    mapped = [Placebo(SPACE, "hstu", seed).settings(SETTINGS) for seed in (1, 1, 2)]
    assert mapped[0] == mapped[1] != mapped[2]
    assert len(mapped[0]) == len(SETTINGS) and mapped[0].keys() != SETTINGS.keys()


@pytest.mark.parametrize(
    "text", ["lr >= 0.001", "lr < 0.001", "loss == full_softmax", "position in {absolute, both}", "causal == false"]
)
def test_a_mapped_condition_parses_and_is_on_another_knob(text: str) -> None:
    for seed in range(20):
        shuffled = Placebo(SPACE, "sasrec", seed).condition(text)
        assert shuffled is not None
        assert parse_condition(shuffled).knob != parse_condition(text).knob


def test_a_mapped_rule_keeps_its_counts_but_not_its_statement() -> None:
    rule = {"id": 3, "kind": "prefer", "condition": "lr >= 0.001", "statement": "“raise lr”", "support": 4}
    mapped = Placebo(SPACE, "sasrec", 0).rule(rule)
    assert mapped is not None and (mapped["id"], mapped["support"]) == (3, 4)
    assert mapped["statement"] == f"“prefer {mapped['condition']}”" and "lr" not in mapped["statement"].split()
    assert Placebo(SPACE, "sasrec", 0).rule({**rule, "condition": None}) is None


def test_mapped_effects_keep_their_sizes() -> None:
    effects = {"lr": {"n": 3, "values": [{"value": 0.001, "n": 3, "mean_relative": 0.1, "se": 0.01}]}}
    ((knob, effect),) = Placebo(SPACE, "sasrec", 0).effects(effects).items()
    assert knob != "lr" and effect["n"] == 3 and effect["values"][0]["mean_relative"] == 0.1
    assert Placebo(SPACE, "sasrec", 0).effects({"unheard_of": effects["lr"]}) == {}
