"""Effects per step: the measured difference where a trial changed one knob, and the sums of steps over its values."""

from typing import Any

import pytest

from tests.effects_world import DEFAULT, FIRST, NDCG, trial
from virtualmle.sandbox.steps import KnobStep, knob_steps, value_effects


def step(before: Any, after: Any, delta: float, se: float = 0.001, source: Any = "measured") -> KnobStep:
    return KnobStep("transition_weight", before, after, delta, se, ("t002",), source)


def steps_by_ends(trials: list[Any]) -> dict[tuple[str, Any, Any], KnobStep]:
    return {(one.knob, one.before, one.after): one for one in knob_steps(trials, DEFAULT)}


def test_a_step_has_its_own_sign_whatever_other_values_of_its_knob_did() -> None:
    up = trial(2, {"lr": 1e-3}, NDCG + 0.036)
    far = trial(3, {"lr": 1e-2}, NDCG - 0.04, base=up)
    found = steps_by_ends([FIRST, up, far])
    assert found["lr", DEFAULT.lr, 1e-3].delta == pytest.approx(0.036)
    assert found["lr", 1e-3, 1e-2].delta == pytest.approx(-0.076)
    assert {one.source for one in found.values()} == {"measured"}


def test_unlike_steps_to_one_value_stay_apart() -> None:
    from_zero = trial(2, {"transition_weight": 8.0}, NDCG + 0.01)
    sixteen = trial(3, {"transition_weight": 16.0}, NDCG + 0.02)
    from_sixteen = trial(4, {"transition_weight": 8.0, "lr": DEFAULT.lr}, NDCG + 0.01, base=sixteen)
    found = steps_by_ends([FIRST, from_zero, sixteen, from_sixteen])
    assert found["transition_weight", 0.0, 8.0].delta == pytest.approx(0.01)
    assert found["transition_weight", 16.0, 8.0].delta == pytest.approx(-0.01)


def test_equal_steps_of_several_trials_are_weighted_by_their_certainty() -> None:
    sure = trial(2, {"lr": 1e-3}, NDCG + 0.004, se=0.001)
    unsure = trial(3, {"lr": 1e-3}, NDCG + 0.008, se=0.002)
    (found,) = knob_steps([FIRST, sure, unsure], DEFAULT)
    assert (found.delta, found.se) == (pytest.approx(0.0048), pytest.approx((1e6 + 0.25e6) ** -0.5))
    assert found.trials == ("t002", "t003")


def test_a_bundle_gives_estimated_shares_unless_the_reverse_was_measured() -> None:
    bundle = trial(2, {"lr": 1e-3, "norm": "rms"}, NDCG + 0.004)
    assert {one.source for one in knob_steps([FIRST, bundle], DEFAULT)} == {"shared"}
    back = trial(3, {"norm": DEFAULT.norm}, NDCG + 0.003, base=bundle)
    found = steps_by_ends([FIRST, bundle, back])
    assert ("norm", DEFAULT.norm, "rms") not in found
    assert found["norm", "rms", DEFAULT.norm].delta == pytest.approx(-0.001)


def test_an_ensemble_and_what_is_scored_over_it_make_no_steps() -> None:
    up = trial(2, {"lr": 1e-3}, NDCG + 0.036)
    ensemble = trial(3, {"ensemble": "t001+t002"}, NDCG + 0.04, base=up)
    over = trial(4, {"transition_weight": 8.0}, NDCG + 0.05, base=ensemble)
    assert list(steps_by_ends([FIRST, up, ensemble, over])) == [("lr", DEFAULT.lr, 1e-3)]


def test_a_session_without_a_finished_trial_has_no_steps() -> None:
    assert knob_steps([], DEFAULT) == []


def test_values_are_the_sums_of_the_steps_that_lead_to_them() -> None:
    found = {one.value: one for one in value_effects([step(0, 8, 0.01), step(16, 8, -0.004)], 0)}
    assert found[8].delta == pytest.approx(0.01) and found[16].delta == pytest.approx(0.014)
    assert found[16].se == pytest.approx(0.001 * 2**0.5)
    assert 0 not in found


def test_of_two_ways_to_a_value_the_more_certain_one_counts_more() -> None:
    ways = [step(0, 8, 0.01), step(8, 16, 0.01), step(0, 16, 0.03, se=0.0001)]
    found = {one.value: one.delta for one in value_effects(ways, 0)}
    assert found[16] == pytest.approx(0.03, abs=2e-4)


def test_a_measured_step_is_not_outweighed_by_an_estimated_share() -> None:
    ways = [step(0, 8, 0.01), step(0, 8, 0.03, se=0.0001, source="shared"), step(8, 9, 0.001, source="shared")]
    found = {one.value: one.delta for one in value_effects(ways, 0)}
    assert found == {8: pytest.approx(0.01), 9: pytest.approx(0.011)}


def test_values_that_no_steps_connect_with_the_reference_are_left_out() -> None:
    found = value_effects([step(0, 8, 0.01), step(32, 16, 0.02)], 0)
    assert [one.value for one in found] == [8]
    assert [one.value for one in value_effects([step(32, 16, 0.02)], 0)] == [16]  # then from the first step's base
