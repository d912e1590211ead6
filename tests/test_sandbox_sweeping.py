"""The rules of sweeps: what is admitted, how their best setting is judged, and the figures of all settings. Pure."""

import json
import math

import numpy as np
import pytest

from virtualmle.data.errors import ConfigError, SweepError
from virtualmle.memory.records import Sweep, TrialOutcome, TrialRecord
from virtualmle.models.config import make_config
from virtualmle.sandbox.effects import knob_effects
from virtualmle.sandbox.program import TrialSize, judge, trials_measured
from virtualmle.sandbox.protocol import load_protocol, parse_protocol
from virtualmle.sandbox.statistics import Comparison, compare, sweep_inflation
from virtualmle.sandbox.sweeping import (
    chosen,
    complete,
    differences,
    each_setting,
    plan_settings,
    setting_figures,
    sweep_table,
)

SPACE = load_protocol().space
BASE = make_config("sasrec", transition_weight=2.0)
INCUMBENT = TrialSize("t001", 100)


def test_settings_that_mean_the_same_are_merged_and_complete_ones_name_every_swept_knob() -> None:
    settings = [{"transition_weight": 4}, {"transition_weight": 4.0, "rerank_top": 50}, {"popularity_weight": 1}]
    configs = plan_settings(SPACE, BASE, settings, 24)
    assert [config.transition_weight for config in configs] == [4.0, 2.0], "rerank_top is inert while fusion is blend"
    values = complete(BASE, configs)
    assert values == [
        {"popularity_weight": 0.0, "transition_weight": 4.0}, {"popularity_weight": 1.0, "transition_weight": 2.0},
    ]  # fmt: skip
    assert [differences(BASE, value) for value in values] == [{"transition_weight": 4.0}, {"popularity_weight": 1.0}]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ([], SweepError, "settings is empty"),
        ([{"transition_weight": n} for n in range(5)], SweepError, "5 settings exceed max_sweep = 4"),
        ([{"transition_weight": 4}, {"lr": 0.01, "epochs": 5}], SweepError, "setting 2 changes lr, epochs.*run_trial"),
        ([{"transition_weights": 4}], ConfigError, "setting 1: .*did you mean transition_weight"),
        ([{}, {"transition_weight": -4}], ConfigError, "setting 2: transition_weight"),
    ],
    ids=["empty", "too many", "training knob", "unknown knob", "out of range"],
)
def test_a_list_that_is_no_sweep_is_refused_with_the_number_of_the_setting(
    settings: list[dict[str, float]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan_settings(SPACE, BASE, settings, 4)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("settings", [2, 6, 24])
def test_the_best_of_equal_settings_is_kept_as_better_no_more_often_than_one_alone(
    settings: int, correlation: float
) -> None:
    rng = np.random.default_rng(settings)
    shared = rng.standard_normal((4000, 1)) * math.sqrt(correlation)
    z = shared + rng.standard_normal((4000, settings)) * math.sqrt(1 - correlation)
    errors = rng.uniform(0.001, 0.01, size=(4000, settings))
    best = (z * errors).argmax(axis=1)  # chosen by the difference, although the standard errors differ
    z, errors = z[np.arange(4000), best], errors[np.arange(4000), best]
    assert z.mean() <= sweep_inflation(settings)

    def kept(number: int) -> float:
        found = [
            judge(INCUMBENT, INCUMBENT, Comparison(z * se, se, z, 1000), 1.0, settings=number)
            for z, se in zip(z, errors, strict=True)
        ]
        return sum(judgement.verdict == "keep" for judgement in found) / len(found)

    alone = 0.159  # the chance of z >= 1 for one setting without effect
    assert kept(settings) < alone < kept(1) + 0.02


def test_the_verdict_on_the_best_of_n_names_the_bound_and_does_not_keep_a_worse_smaller_model() -> None:
    bound = math.sqrt(2 * math.log(24))
    assert sweep_inflation(24) == pytest.approx(bound) and sweep_inflation(1) == 0

    def verdict(z: float, parameters: int = 100) -> str:
        comparison = Comparison(z * 0.001, 0.001, z, 1000)
        return judge(TrialSize("t002", parameters), INCUMBENT, comparison, 1.0, settings=24).verdict

    assert (verdict(bound + 1.01), verdict(bound + 0.99)) == ("keep", "discard")
    assert (verdict(bound - 0.99, 50), verdict(bound - 1.01, 50)) == ("keep", "discard"), "as for z within noise"
    chance = judge(INCUMBENT, INCUMBENT, Comparison(0.0004, 0.001, 0.4, 1000), 1.0, settings=24)
    assert chance.verdict == "discard" and "needs z" in chance.reason and "worse" not in chance.reason
    kept = judge(INCUMBENT, INCUMBENT, Comparison(0.01, 0.001, 10.0, 1000), 1.0, settings=24)
    assert kept.reason.endswith("keep needs z >= 1 + 2.52 for the best of 24 settings")


def swept_trial() -> tuple[TrialRecord, list[np.ndarray]]:
    """A base trial's ranks and a finished sweep over it, with its figures computed from ranks."""
    rng = np.random.default_rng(0)
    base, *swept = (rng.integers(1, 30, 500).astype(np.int32) for _ in range(4))
    settings = [{"transition_weight": w, "popularity_weight": p} for w, p in ((4.0, 0.0), (2.0, 1.0), (4.0, 1.0))]
    config = BASE.model_copy(update=settings[0]).model_dump()
    trial = TrialRecord(
        session="s", handle="t002", number=2, base="t001", changes={"transition_weight": 4.0}, config=config,
        config_hash="", train_hash="", sweep=Sweep(settings=settings), status="finished",
        outcome=TrialOutcome(
            status="finished", metrics={"ndcg@10": 0.2}, base_delta=0.1, base_delta_se=0.01,
            details={
                "best_setting": 0, "base_values": {"transition_weight": 2.0, "popularity_weight": 0.0},
                "sweep": setting_figures(base, swept),
            },
        ),
    )  # fmt: skip
    return trial, [base, *swept]


def test_the_figures_of_a_setting_are_those_of_a_paired_comparison_with_the_base() -> None:
    trial, (base, *swept) = swept_trial()
    assert trial.outcome is not None
    for row, ranks in zip(trial.outcome.details["sweep"], swept, strict=True):
        single = compare(base, ranks)
        assert (row["delta"], row["se"]) == (single.delta, single.se)


def test_effects_learn_from_every_setting_and_not_only_from_the_chosen_one() -> None:
    trial, _ = swept_trial()
    first = trial.model_copy(update={"handle": "t001", "base": "default", "sweep": None, "config": BASE.model_dump(),
                                     "changes": {"transition_weight": 2.0}})  # fmt: skip
    recorded = [TrialRecord(**{n: getattr(first, n) for n in TrialRecord.model_fields}), trial]
    trials = each_setting(recorded)
    assert [one.handle for one in trials] == ["t001", "t002", "t002", "t002"]
    assert [one.changes for one in trials[1:]] == [
        {"transition_weight": 4.0}, {"popularity_weight": 1.0}, {"transition_weight": 4.0, "popularity_weight": 1.0},
    ]  # fmt: skip
    assert all(one.configuration.popularity_weight == one.config["popularity_weight"] for one in trials)
    effects = knob_effects(recorded)
    assert effects["popularity_weight"]["n"] == 1 and effects["popularity_weight"]["confounded"] == 1
    assert trials_measured([trial]) == 3 and trial.changed == {"transition_weight", "popularity_weight"}


def test_the_chosen_setting_gives_the_trial_its_configuration() -> None:
    trial, _ = swept_trial()
    choice = chosen(trial, BASE, 1)
    assert choice.changes == {"popularity_weight": 1.0}
    assert choice.config == BASE.model_copy(update={"popularity_weight": 1.0}).model_dump()


def test_the_table_of_24_settings_fits_into_a_kilobyte_and_says_what_is_missing() -> None:
    rng = np.random.default_rng(1)
    rows = [{"ndcg@10": 0.05 + n / 1000, "delta": n / 1000 - 0.01, "se": 0.0005} for n in rng.permutation(24)]
    small = [{"transition_weight": float(n), "fusion": "blend"} for n in range(24)]
    table = sweep_table(small, rows, 1000)
    assert len(json.dumps(table, ensure_ascii=False).encode()) <= 1000
    first, best, *_ = table.splitlines()
    number = max(range(24), key=lambda n: rows[n]["ndcg@10"])
    assert first == "transition_weight ndcg@10 delta se (all: fusion=blend)"
    assert best == f"{number} .0730 +.0130 .0005" and len(table.splitlines()) == 25

    wide = [{f"{'knob' * 5}{k}": round(float(rng.random()), 4) for k in range(8)} for _ in range(24)]
    table = sweep_table(wide, rows, 1000)
    shown = table.splitlines()
    assert len(json.dumps(table, ensure_ascii=False).encode()) <= 1000
    assert shown[-1] == f"… {24 - (len(shown) - 2)} more: read_memory(view='trial')"


def test_a_page_without_the_rules_of_sweeps_and_reuse_has_their_defaults() -> None:
    protocol = load_protocol()
    assert (protocol.max_sweep, protocol.reuse_trials) == (24, True)
    rows = [line for line in protocol.text.splitlines() if not line.startswith(("| `max_sweep`", "| `reuse_trials`"))]
    older = parse_protocol("\n".join(rows))
    assert (older.max_sweep, older.reuse_trials) == (24, True)
