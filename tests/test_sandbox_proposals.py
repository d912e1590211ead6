"""Predictions of the surrogate, proposals to an agent, outcomes of hypotheses, and regimes of datasets."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from virtualmle.memory.records import Hypothesis, TrialOutcome, TrialRecord
from virtualmle.models.config import TrialConfig
from virtualmle.models.knobs.declaration import DIMENSIONS
from virtualmle.sandbox.action_space import effective
from virtualmle.sandbox.hypothesis import outcome_of
from virtualmle.sandbox.proposals import propose, value_at
from virtualmle.sandbox.protocol import load_protocol
from virtualmle.sandbox.reflection import dimensions_of
from virtualmle.sandbox.regime import regime
from virtualmle.sandbox.surrogate import Prediction, Surrogate, position

SPACE = load_protocol().space
KNOBS = SPACE.knobs("sasrec")
DEFAULT = SPACE.default("sasrec")
SE = 0.0002


def two_knob_surface(config: TrialConfig) -> float:
    """NDCG@10 that depends additively on loss=full_softmax and on a lower dropout, and on no other knob."""
    return 0.05 + 0.004 * (config.loss == "full_softmax") + 0.005 * (0.2 - config.dropout)


def measured(
    changes: list[dict[str, Any]], surface: Callable[[TrialConfig], float] = two_knob_surface
) -> list[TrialRecord]:
    """The records of a session that ran the default and then one trial per entry of `changes` over it."""
    trials = []
    for number, change in enumerate([{}, *changes], 1):
        config = SPACE.resolve(DEFAULT, change)
        ndcg = surface(config)
        outcome = TrialOutcome(
            status="finished", verdict="keep" if number == 1 else "discard", metrics={"ndcg@10": ndcg},
            base_delta=None if number == 1 else ndcg - surface(DEFAULT), base_delta_se=None if number == 1 else SE,
        )  # fmt: skip
        trials.append(TrialRecord(
            session="s", handle=f"t{number:03}", number=number, base="default", changes=change,
            config=config.model_dump(), config_hash="", train_hash="", status="finished", outcome=outcome,
        ))  # fmt: skip
    return trials


def nothing_refused(changes: Mapping[str, Any]) -> bool:
    return False


def history(knob: str, value: Any, effect: float, se: float = 0.001, n: int = 20) -> dict[str, dict[str, Any]]:
    row = {"value": value, "n": n, "mean_relative": effect, "se": se}
    return {knob: {"n": n, "values": [row]}}


def prediction(trials: list[TrialRecord], changes: dict[str, Any], known: dict[str, Any] | None = None) -> Prediction:
    return Surrogate(trials, KNOBS, known or {}).predict(DEFAULT, [changes])[0]


def test_predictions_reproduce_measured_trials_and_are_less_certain_away_from_them() -> None:
    trials = measured([{"dropout": 0.1}, {"loss": "full_softmax"}])
    at, near, far = (prediction(trials, {"dropout": value}) for value in (0.1, 0.12, 0.8))
    assert at.mean == pytest.approx(0.0005 / 0.05, rel=0.2)
    assert near.mean > 0 and at.sd < near.sd < far.sd
    untouched = prediction(trials, {"max_norm": 5.0})
    assert untouched.mean == 0.0 and untouched.sd > at.sd


def test_predicted_effects_of_two_knobs_are_additive() -> None:
    trials = measured([{"dropout": 0.0}, {"loss": "full_softmax"}])
    one, other = prediction(trials, {"dropout": 0.0}), prediction(trials, {"loss": "full_softmax"})
    both = prediction(trials, {"dropout": 0.0, "loss": "full_softmax"})
    assert both.mean == pytest.approx(one.mean + other.mean)


def test_earlier_sessions_set_the_prior_until_trials_contradict_it() -> None:
    known = history("dropout", 0.4, 0.10)
    before = prediction(measured([]), {"dropout": 0.4}, known)
    assert before.mean == pytest.approx(0.10, rel=0.3)
    # half of the distance from the default, about half of the effect
    assert 0 < prediction(measured([]), {"dropout": 0.3}, known).mean < before.mean
    vague = prediction(measured([]), {"dropout": 0.4}, history("dropout", 0.4, 0.10, se=0.1))
    assert 0 < vague.mean < before.mean / 2
    after = prediction(measured([{"dropout": 0.4}]), {"dropout": 0.4}, known)  # the measured effect is -2 percent
    assert after.mean == pytest.approx(-0.02, abs=0.01)


@pytest.mark.parametrize(("mean", "sd"), [(0.01, 0.0), (0.0, 0.01), (0.02, 0.01), (-0.02, 0.01), (-0.5, 0.0)])
def test_expected_improvement_is_at_least_the_mean_and_at_least_zero(mean: float, sd: float) -> None:
    assert Prediction(mean, sd).expected_improvement >= max(mean, 0.0)


def test_position_and_value_at_are_inverse() -> None:
    for knob in KNOBS:
        if knob.low is not None:
            for at in (0.0, 0.3, 1.0):
                value = value_at(knob, at)
                assert knob.check(value) == value
                assert position(knob, value) == pytest.approx(at, abs=0.6 if knob.type == "int" else 0.06)


def proposals(trials: list[TrialRecord], refused: Any = nothing_refused, **known: Any) -> list[dict[str, Any]]:
    return propose(trials, trials[0], SPACE, known.get("history", {}), refused)


def test_three_proposals_change_different_knobs_are_new_and_valid_and_have_reasons() -> None:
    trials = measured([{"lr": 1e-3}, {"dropout": 0.4}])
    proposed = proposals(trials)
    assert len(proposed) == 3
    knobs = [knob for entry in proposed for knob in entry["changes"]]
    assert len(set(knobs)) == len(knobs)
    tried = [effective(TrialConfig(**trial.config)) for trial in trials]
    for entry in proposed:
        assert effective(SPACE.resolve(DEFAULT, entry["changes"])) not in tried
        assert entry["base"] == "incumbent" and entry["dimension"] in DIMENSIONS
        for knob in entry["changes"]:
            assert knob in entry["reason"] and "± " in entry["reason"]
    assert proposed == proposals(trials)  # deterministic


def test_a_move_that_helped_in_earlier_sessions_is_proposed_first() -> None:
    first = proposals(measured([{"lr": 1e-3}]), history=history("window_stride", 10, 0.2))[0]
    assert first["changes"] == {"window_stride": 10} and first["expected_delta"] > 0
    assert "20 trials of closed sessions" in first["reason"]


def test_two_moves_that_both_helped_are_proposed_as_a_pair() -> None:
    first = proposals(measured([{"dropout": 0.0}, {"loss": "full_softmax"}]))[0]
    assert first["source"] == "pair" and first["changes"] == {"loss": "full_softmax", "dropout": 0.0}
    assert first["expected_delta"] == pytest.approx(0.005, rel=0.3)


def test_moves_that_would_be_refused_are_not_proposed() -> None:
    known = history("window_stride", 10, 0.2)
    proposed = proposals(measured([]), lambda changes: "window_stride" in changes, history=known)
    assert len(proposed) == 3 and not any("window_stride" in entry["changes"] for entry in proposed)


def test_the_least_explored_dimension_gets_a_proposal() -> None:
    tried = [{knob.name: value_at(knob, 0.5)} for knob in KNOBS if knob.low is not None and knob.dimension != "scoring"]
    proposed = proposals(measured(tried, lambda config: 0.05))
    assert "scoring" in [entry["dimension"] for entry in proposed]
    assert any("least explored" in entry["reason"] for entry in proposed)


def test_there_are_no_proposals_without_an_incumbent() -> None:
    assert propose([], None, SPACE, {}, nothing_refused) == []


@pytest.mark.parametrize(
    ("direction", "size", "delta", "expected"),
    [
        pytest.param("better", 0.002, 0.003, ("better", "yes"), id="within the interval of the measured difference"),
        pytest.param("better", 0.0002, 0.003, ("better", "no"), id="too small a size"),
        pytest.param("better", 0.006, 0.003, ("better", "no"), id="too large a size"),
        pytest.param("better", -0.002, 0.003, ("better", "yes"), id="the direction gives the size its sign"),
        pytest.param("worse", 0.002, 0.0001, ("same", "no"), id="within the interval, but of the other sign"),
        pytest.param("better", None, -0.003, ("worse", "no"), id="opposite direction"),
        pytest.param("better", 0.004, 0.0001, ("same", "no"), id="a size that noise does not explain"),
        pytest.param("better", 0.002, 0.0001, ("same", "yes"), id="a size that the interval leaves possible"),
        pytest.param("better", None, 0.0001, ("same", "unclear"), id="within noise, and no size predicted"),
        pytest.param("unknown", -0.003, -0.002, ("worse", "yes"), id="only a size, with its sign"),
        pytest.param("unknown", 0.003, -0.002, ("worse", "no"), id="only a size, of the other sign"),
        pytest.param("same", 0.002, 0.003, ("better", "no"), id="no effect predicted, whatever the size"),
        pytest.param("same", None, 0.0001, ("same", "yes"), id="no effect, as predicted"),
        pytest.param("same", None, 0.003, ("better", "no"), id="an effect, against the prediction"),
        pytest.param("unknown", None, 0.003, ("better", "unclear"), id="no prediction"),
        pytest.param("better", None, None, ("unmeasured", "unclear"), id="no measured difference"),
    ],
)
def test_a_hypothesis_is_compared_with_the_measured_difference(
    direction: Any, size: float | None, delta: float | None, expected: tuple[str, str]
) -> None:
    hypothesis = Hypothesis(dimension="capacity", direction=direction, size=size)
    outcome = TrialOutcome(status="finished", base_delta=delta, base_delta_se=None if delta is None else 0.001)
    compared = outcome_of(hypothesis, outcome, {"optimisation"})
    assert (compared["happened"], compared["held"]) == expected
    assert compared["dimension_changed"] is False


@pytest.mark.parametrize("named", ["Optimisation", "optimization", "scoring, Optimisation ", "optimisation"])
def test_the_dimension_of_a_hypothesis_is_recognised_as_agents_write_it(named: str) -> None:
    outcome = TrialOutcome(status="finished", base_delta=0.1, base_delta_se=0.001)
    assert outcome_of(Hypothesis(dimension=named), outcome, {"optimisation"})["dimension_changed"] is True
    assert dimensions_of("Sequence modeling") == ("sequence_modelling",)


def test_the_regime_is_given_in_words_for_the_fields_that_the_profile_has() -> None:
    beauty = {"users": 22363, "items": 12101, "length_median": 5.0, "density": 0.0006, "popularity_gini": 0.51}
    assert regime(beauty) == {
        "size": "medium", "catalogue": "medium", "histories": "short", "density": "sparse", "popularity": "skewed"
    }  # fmt: skip
    assert regime({"users": "many"}) == {}
