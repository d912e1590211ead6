"""The joint estimate of effects: against generalised least squares and simulated truths; shares; interactions."""

import json
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from tests.effects_world import DEFAULT, FIRST, NDCG, load_simulation, trial
from virtualmle.memory.records import TrialOutcome
from virtualmle.sandbox import surrogate
from virtualmle.sandbox.effects import isolates, knob_effects
from virtualmle.sandbox.interactions import LEVEL, chi_square_tail
from virtualmle.sandbox.joint import Evidence, evidence, model_of, shares
from virtualmle.sandbox.observations import COVARIANCES, observations, user_covariances
from virtualmle.sandbox.rule_evidence import check_rule
from virtualmle.sandbox.statistics import compare
from virtualmle.sandbox.steps import knob_steps


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    return load_simulation()


@pytest.fixture
def known_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A known prior scale and training error, so that estimates can be computed by hand."""
    monkeypatch.setattr(surrogate, "SCALES", (0.08,))
    monkeypatch.setattr(surrogate, "TRAINING_ERRORS", {0.005: 1.0})


@pytest.mark.usefixtures("known_noise")
def test_an_effect_that_was_measured_alone_is_the_measured_difference() -> None:
    effect = knob_effects([FIRST, trial(2, {"lr": 1e-3}, NDCG + 0.004)], DEFAULT)["lr"]
    (row,) = effect["values"]
    assert (row["value"], row["trial"], row["attributed"], row["n"]) == (1e-3, "t002", "alone", 1)
    assert row["delta"] == pytest.approx(0.004, rel=0.2)
    assert effect["attributed"] == "alone" and effect["over"] == DEFAULT.lr and effect["confounded"] == 0
    assert effect["interval"][0] < effect["mean_delta"] < effect["interval"][1]


@pytest.mark.usefixtures("known_noise")
def test_a_bundle_is_shared_between_its_knobs_and_each_share_is_uncertain() -> None:
    bundle = trial(2, {"time_bias": True, "norm": "rms"}, NDCG + 0.004)
    effects = knob_effects([FIRST, bundle], DEFAULT)
    for knob in ("time_bias", "norm"):
        assert effects[knob]["attributed"] == "jointly" and effects[knob]["confounded"] == 1
        assert effects[knob]["mean_delta"] == pytest.approx(0.002, rel=0.2)  # the two are alike, so each gets half
        assert effects[knob]["se"] > 0.001  # it may as well be all of it, or nothing
    alone = trial(3, {"norm": "rms"}, NDCG + 0.004)
    effects = knob_effects([FIRST, bundle, alone], DEFAULT)
    assert effects["norm"]["mean_delta"] == pytest.approx(0.004, rel=0.2)
    assert abs(effects["time_bias"]["mean_delta"]) < 0.0007
    assert effects["norm"]["attributed"] == "alone" and effects["time_bias"]["attributed"] == "jointly"
    json.dumps(effects, allow_nan=False)


def test_changes_without_effect_and_crashed_trials_have_no_effect() -> None:
    trials = [FIRST, trial(2, {"lr": 1e-3, "readout_k": 9}, NDCG + 0.004)]
    assert list(knob_effects(trials, DEFAULT)) == ["lr"]
    crash = FIRST.model_copy(update={"status": "crashed", "outcome": TrialOutcome(status="crashed")})
    assert knob_effects([crash], DEFAULT) == {} and model_of([crash], DEFAULT) is None


def test_neither_a_student_nor_what_was_tried_over_it_is_evidence_on_their_knobs() -> None:
    plain = [FIRST, trial(2, {"num_blocks": 2, "norm": "rms"}, NDCG + 0.002)]
    student = trial(3, {"num_blocks": 2, "loss": "full_softmax", "teachers": "t001+t002"}, NDCG + 0.02)
    over = trial(4, {"norm": "rms"}, NDCG + 0.03, base=student)
    ended = trial(5, {"teachers": "", "norm": "rms"}, NDCG + 0.01, base=student)
    assert student.uses_models and over.uses_models and not ended.uses_models
    for found in (evidence, knob_effects, knob_steps):
        assert found([*plain, student, over], DEFAULT) == found(plain, DEFAULT) != {}
    steps = knob_steps([*plain, student, over, ended], DEFAULT)
    assert {step.trials for step in steps} == {("t002",)}, "t005 takes the teachers away"
    model = model_of(plain, DEFAULT)
    assert model and shares(model, student, DEFAULT) == shares(model, ended, student.configuration) == []


def test_trials_with_equal_ranks_keep_the_estimate_finite() -> None:
    same = trial(2, {"popularity_weight": 0.1}, NDCG, 0.0)
    assert knob_effects([FIRST, same], DEFAULT)["popularity_weight"]["mean_delta"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "alone"),
    [
        pytest.param({"lr": 1e-3, "epochs": 60, "patience": 9}, True, id="raised limits"),
        pytest.param({"lr": 1e-3, "epochs": 5}, False, id="a lowered limit"),
        pytest.param({"lr": 1e-3, "epochs": 60, "schedule": "cosine"}, False, id="a schedule that decays over epochs"),
        pytest.param({"lr": 1e-3, "dropout": 0.5}, False, id="another knob"),
    ],
)
def test_raised_epochs_and_patience_do_not_confound(changes: dict[str, Any], alone: bool) -> None:
    record = trial(2, changes, NDCG + 0.004)
    assert isolates("lr", record, DEFAULT, changes) is alone
    assert not isolates("epochs", record, DEFAULT, changes)
    longer = trial(2, {"epochs": 60}, NDCG + 0.004)
    assert isolates("epochs", longer, DEFAULT, longer.changes)


def test_raised_limits_get_no_share_and_little_of_the_effect() -> None:
    record = trial(2, {"lr": 1e-3, "epochs": 60}, NDCG + 0.004)
    model = model_of([FIRST, record], DEFAULT)
    assert model is not None
    assert [share.knob for share in shares(model, record, DEFAULT)] == ["lr"]
    effects = knob_effects([FIRST, record], DEFAULT)
    assert effects["lr"]["mean_delta"] > 5 * abs(effects["epochs"]["mean_delta"])


def test_the_covariance_over_users_gives_the_paired_standard_error() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.integers(1, 30, 400).astype(np.int32) for _ in range(2))
    found = user_covariances("t002", b, {"t001": a}) | {"own": user_covariances("t001", a, {})["t001"]}
    variance = found["t002"] + found["own"] - 2 * found["t001"]
    assert variance == pytest.approx(compare(a, b).se ** 2, rel=1e-9)


def test_stored_covariances_are_used_and_a_missing_one_falls_back_to_paired_errors() -> None:
    stored = [{"t001": 4e-6}, {"t001": 3e-6, "t002": 4e-6}]
    trials = [
        t.model_copy(update={"outcome": t.outcome.model_copy(update={"details": {COVARIANCES: c}})})
        for t, c in zip([FIRST, trial(2, {"lr": 1e-3})], stored, strict=True)
        if t.outcome
    ]
    assert observations(trials).user_covariance.tolist() == [[4e-6, 3e-6], [3e-6, 4e-6]]
    third = trial(3, {"dropout": 0.3}, base=trials[1], se=0.001)
    covariance = observations([*trials, third]).user_covariance
    difference = covariance[2, 2] + covariance[1, 1] - 2 * covariance[1, 2]
    assert difference == pytest.approx(1e-6) and covariance[0, 0] == 0.0


def least_squares(
    model: surrogate.Surrogate, steps: list[tuple[str, Any]], scale: float, error: float
) -> tuple[np.ndarray, np.ndarray]:
    """Generalised least squares for choices only: a free level and one coefficient per step with a normal prior."""
    design = np.array([[1.0, *(float(knob in made) for knob, _ in steps)] for made in model.trial_steps])
    noise = model.observed.user_covariance / model.reference_ndcg**2 + error**2 * model.observed.same_checkpoint
    noise += surrogate.SMALLEST_RELATIVE_SE**2 * np.eye(len(noise))
    spread = 2 * scale**2 * (1 - surrogate.CHOICE_CORRELATION)
    prior = np.diag([1 / surrogate.LEVEL_VARIANCE, *[1 / spread] * len(steps)])
    precision = design.T @ np.linalg.inv(noise) @ design + prior
    relative = model.observed.ndcg / model.reference_ndcg - 1
    mean = np.linalg.solve(precision, design.T @ np.linalg.inv(noise) @ relative)
    return mean[1:], np.linalg.inv(precision)[1:, 1:]


def test_the_posterior_equals_generalised_least_squares(
    monkeypatch: pytest.MonkeyPatch, simulation: ModuleType
) -> None:
    monkeypatch.setattr(surrogate, "SCALES", (0.05,))
    monkeypatch.setattr(surrogate, "TRAINING_ERRORS", {0.02: 1.0})
    steps = [("time_bias", True), ("norm", "rms"), ("tie_embeddings", True), ("norm_placement", "post")]
    world = simulation.a_world(np.random.default_rng(1), simulation.Setting("choices"))
    first = world.run(None, {})
    for names in ((0, 1), (1, 2, 3), (0, 3), (0, 1, 2, 3)):
        world.run(first, dict(steps[n] for n in names))
    model = model_of(world.trials, DEFAULT)
    assert model is not None
    found = model.posterior([{knob: (getattr(DEFAULT, knob), value)} for knob, value in steps])
    mean, covariance = least_squares(model, steps, 0.05, 0.02)
    np.testing.assert_allclose(found.mean, mean, atol=1e-10)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-12)


def test_evidence_is_what_the_trials_say_without_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "SCALES", (0.05,))
    monkeypatch.setattr(surrogate, "TRAINING_ERRORS", {0.02: 1.0})
    trials = [FIRST, trial(2, {"norm": "rms"}, NDCG * 1.1, se=NDCG * 0.01)]
    (found,) = evidence(trials, DEFAULT)
    assert found == Evidence("norm", "rms", pytest.approx(0.1, rel=0.01), pytest.approx(0.03, rel=0.05), 1)
    # 0.03 is the error of a difference of two trainings: sqrt(2 * 0.02^2 + 0.01^2)


@pytest.mark.usefixtures("known_noise")
def test_changes_that_were_never_separated_are_passed_on_with_large_errors() -> None:
    bundle = trial(2, {"time_bias": True, "norm": "rms"}, NDCG * 1.1)
    alone = evidence([FIRST, trial(2, {"norm": "rms"}, NDCG * 1.1)], DEFAULT)[0]
    together = evidence([FIRST, bundle], DEFAULT)
    assert all(found.se > 1.5 * alone.se for found in together) and len(together) == 2


def test_simulated_intervals_cover_at_their_level_and_rank_the_knobs(simulation: ModuleType) -> None:
    row = simulation.summary(simulation.Setting("dense effects"), 60)
    assert 0.86 <= row["coverage_0.9"] <= 0.94 and 0.86 <= row["shares_0.9"] <= 0.94
    assert row["effects"] > 1500
    assert row["rank_correlation"] > 0.5
    assert row["interaction_named"] <= LEVEL


def test_a_planted_interaction_is_named_and_none_is_named_without_it(simulation: ModuleType) -> None:
    kind = simulation.Setting("few", trials=24, most=4, knobs=simulation.FEW_KNOBS)
    planted = simulation.summary(replace(kind, interaction=-0.4), 12)
    assert planted["planted_named"] >= 0.7
    assert planted["interaction_named"] == planted["planted_named"]  # never another pair
    assert simulation.summary(kind, 12)["interaction_named"] == 0.0


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("value", [0.0, 0.3, 4.0, 25.0])
def test_the_chi_square_tail_equals_scipy(value: float, degrees: int) -> None:
    assert chi_square_tail(value, degrees) == pytest.approx(chi2.sf(value, degrees), rel=1e-9)


def test_a_bundled_trial_counts_for_a_rule_if_the_share_of_its_knob_is_clear() -> None:
    alone = trial(2, {"norm": "rms"}, NDCG)
    bundle = trial(3, {"norm": "rms", "loss": "full_softmax"}, NDCG * 1.3)
    again = trial(4, {"time_bias": True, "loss": "full_softmax"}, NDCG * 1.3)
    checked = check_rule("prefer", "loss == full_softmax", [FIRST, alone, bundle, again], DEFAULT)
    assert checked[:3] == ("supported", 1, 0) and checked.evidence == ("t003",)  # both made the same step
    assert "2 more changed other knobs too" in checked.note and "shares: t003 +" in checked.note
    assert check_rule("prefer", "norm == rms", [FIRST, bundle], DEFAULT)[:3] == ("unverified", 0, 0)
