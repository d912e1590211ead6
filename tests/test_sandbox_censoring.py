"""Stopped trials as bounds in the joint estimate: against sampling in float64, and against simulated truths."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm, truncnorm

from tests.effects_world import DEFAULT, FIRST, NDCG, trial
from virtualmle.memory.records import TrialOutcome, TrialRecord
from virtualmle.sandbox import surrogate
from virtualmle.sandbox.censoring import between
from virtualmle.sandbox.effects import knob_effects
from virtualmle.sandbox.joint import evidence, model_of
from virtualmle.sandbox.observations import observations

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def known_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """One point of the grid, so that the posterior can be sampled by hand."""
    monkeypatch.setattr(surrogate, "SCALES", (0.08,))
    monkeypatch.setattr(surrogate, "TRAINING_ERRORS", {0.02: 1.0})


def stopped(number: int, changes: dict[str, Any], bound: float, floor: float = 0.0, **more: Any) -> TrialRecord:
    """A trial that racing stopped, with bounds of the NDCG@10 that it would have reached."""
    record = trial(number, changes, **more)
    details = {"bound": bound, "floor": floor}
    outcome = TrialOutcome(status="stopped", verdict="discard", details=details, train_seconds=1.0)
    return record.model_copy(update={"status": "stopped", "outcome": outcome})


def test_one_truncated_value_has_the_moments_of_the_truncated_normal_distribution() -> None:
    for low, high in ((-1.0, 0.3), (-30.0, -2.0), (1.0, 9.0), (-0.2, 0.1), (-80.0, -12.0)):
        sites = between(np.array([[0.4]]), np.array([[[2.0]]]), np.array([low]), np.array([high]))
        spread = 1 / (1 / 2.0 + 1 / sites.variances[0, 0])
        mean = spread * (0.4 / 2.0 + sites.values[0, 0] / sites.variances[0, 0])
        ends = ((low - 0.4) / 2**0.5, (high - 0.4) / 2**0.5)
        exact = truncnorm(*ends, loc=0.4, scale=2**0.5)
        assert (mean, spread) == pytest.approx((exact.mean(), exact.var()), rel=1e-6)
        mass = truncnorm(-np.inf, np.inf).cdf
        assert sites.log_probability[0] == pytest.approx(np.log(mass(ends[1]) - mass(ends[0])), rel=1e-6)


def test_several_truncated_values_agree_with_sampling() -> None:
    rng = np.random.default_rng(4)
    root = rng.standard_normal((3, 5))
    mean, covariance = rng.standard_normal(3) / 2, root @ root.T / 5
    low, high = mean - 1.5, mean + np.array([0.2, -0.1, 0.4])
    sites = between(mean[None], covariance[None], low, high)
    drawn = rng.multivariate_normal(mean, covariance, 1_000_000)
    inside = drawn[((low <= drawn) & (drawn <= high)).all(axis=1)]
    posterior = np.linalg.inv(np.linalg.inv(covariance) + np.diag(1 / sites.variances[0]))
    expected = posterior @ (np.linalg.solve(covariance, mean) + sites.values[0] / sites.variances[0])
    assert expected == pytest.approx(inside.mean(axis=0), abs=0.01)
    assert np.sqrt(np.diag(posterior)) == pytest.approx(inside.std(axis=0), rel=0.02)
    assert sites.log_probability[0] == pytest.approx(np.log(len(inside) / len(drawn)), abs=0.02)
    exact = multivariate_normal(mean, covariance).cdf(high, lower_limit=low)
    assert sites.log_probability[0] == pytest.approx(np.log(exact), abs=0.02)


@pytest.mark.usefixtures("known_noise")
def test_the_joint_estimate_agrees_with_sampling_the_model_and_keeping_what_fits_the_bounds() -> None:
    trials = [
        FIRST,
        trial(2, {"time_bias": True, "norm": "rms"}, NDCG + 0.002),
        stopped(3, {"norm": "rms", "num_blocks": 2}, NDCG - 0.001, NDCG * 0.8),
        stopped(4, {"num_blocks": 2}, NDCG + 0.001),
    ]
    model = model_of(trials, DEFAULT)
    assert model is not None
    steps = [{"norm": (DEFAULT.norm, "rms")}, {"num_blocks": (DEFAULT.num_blocks, 2)}]
    found = model.posterior(steps)
    mean, prior = model._prior([*model.trial_steps, *steps], [0.08])[0.08]
    errors = np.zeros_like(prior)
    errors[:4, :4] = model.error_covariance(0.02) + 1.0
    rng = np.random.default_rng(0)
    joint = prior + errors + 1e-14 * np.eye(6)
    # conditioned on the two measurements in closed form; the bounds by rejection
    gain = joint[2:, :2] @ np.linalg.inv(joint[:2, :2])
    relative = np.array([0.0, 0.002 / NDCG])
    drawn = rng.multivariate_normal(mean[2:] + gain @ relative, joint[2:, 2:] - gain @ joint[:2, 2:], 400_000)
    low, high = np.array([-0.2, -1.0]), np.array([-0.001 / NDCG, 0.001 / NDCG])
    fits = drawn[((low <= drawn[:, :2]) & (drawn[:, :2] <= high)).all(axis=1)][:, 2:]
    assert len(fits) > 10_000
    assert found.mean == pytest.approx(fits.mean(axis=0), abs=0.001)
    assert found.sd == pytest.approx(fits.std(axis=0), rel=0.02)


def test_a_bound_is_evidence_about_the_size_of_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "SCALES", (0.03, 0.12))
    monkeypatch.setattr(surrogate, "TRAINING_ERRORS", {0.01: 1.0})
    model = model_of([FIRST, stopped(2, {"num_blocks": 2}, NDCG * 0.9, NDCG * 0.5)], DEFAULT)
    assert model is not None
    odds = []
    for scale in surrogate.SCALES:
        _, prior = model._prior(model.trial_steps, [scale])[scale]
        covariance = prior + model.error_covariance(0.01) + 1.0
        spread = covariance[1, 1] - covariance[0, 1] ** 2 / covariance[0, 0]  # the first trial measured 0
        belief = np.exp(-0.5 * (np.log(scale / surrogate.USUAL_SCALE) / surrogate.SCALE_SPREAD) ** 2)
        odds.append(belief * (norm.cdf(-0.1 / spread**0.5) - norm.cdf(-0.5 / spread**0.5)) / covariance[0, 0] ** 0.5)
    expected = {scale: p / sum(odds) for scale, p in zip(surrogate.SCALES, odds, strict=True)}
    found = {fit.scale: fit.probability for fit in model._fits}
    assert found == pytest.approx(expected, rel=1e-4) and found[0.12] > 0.9


def test_a_bound_moves_the_estimate_down_and_a_bound_that_says_nothing_does_not() -> None:
    trials = [FIRST, trial(2, {"dropout": 0.5}, NDCG + 0.001)]
    before = knob_effects(trials, DEFAULT)
    tight = knob_effects([*trials, stopped(3, {"num_blocks": 2}, NDCG * 0.9)], DEFAULT)
    (row,) = tight["num_blocks"]["values"]
    assert row["delta"] < -0.1 * NDCG and row["delta"] + 1.5 * row["se"] < 0
    assert (row["n"], row["stopped"], row["trial"], row["attributed"]) == (1, 1, "t003", "alone")
    assert tight["num_blocks"]["n"] == 1 and tight["dropout"]["values"][0]["stopped"] == 0
    loose = knob_effects([*trials, stopped(3, {"num_blocks": 2}, NDCG * 3)], DEFAULT)
    (row,) = loose["num_blocks"]["values"]
    assert abs(row["delta"]) < 0.002 * NDCG and row["se"] > 0.02 * NDCG
    assert loose["dropout"]["mean_delta"] == pytest.approx(before["dropout"]["mean_delta"], abs=1e-5)


def test_a_configuration_that_has_finished_since_counts_with_its_value_only() -> None:
    trials = [FIRST, stopped(2, {"num_blocks": 2}, NDCG * 0.8), trial(3, {"num_blocks": 2}, NDCG * 1.1)]
    assert [t.handle for t in observations(trials).trials] == ["t001", "t003"] and not observations(trials).stopped
    without = [FIRST, trial(3, {"num_blocks": 2}, NDCG * 1.1)]
    assert knob_effects(trials, DEFAULT)["num_blocks"]["mean_delta"] == pytest.approx(
        knob_effects(without, DEFAULT)["num_blocks"]["mean_delta"]
    )


def test_a_session_passes_on_what_a_bound_says() -> None:
    trials = [FIRST, stopped(2, {"num_blocks": 2}, NDCG * 0.85), stopped(3, {"dropout": 0.5}, NDCG * 3)]
    found = {one.knob: one for one in evidence(trials, DEFAULT)}
    assert found["num_blocks"].effect < -0.12 and found["num_blocks"].n == 1
    assert "dropout" not in found, "its bound says nothing"


def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("simulate_censoring", BENCHMARKS / "simulate_censoring.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate_censoring"] = module
    spec.loader.exec_module(module)
    return module


def test_bounds_leave_effects_unbiased_where_leaving_stopped_trials_out_would_bias_them() -> None:
    simulate = simulation()
    per_session, found = simulate.errors(simulate.SETTINGS[0], 40)
    bias = {name: float(table[:, 0].mean()) for name, table in found.items()}
    rmse = {name: float(np.sqrt((table[:, 0] ** 2).mean())) for name, table in found.items()}
    inside = {name: float((np.abs(table[:, 0]) <= 1.645 * table[:, 1]).mean()) for name, table in found.items()}
    assert per_session > 1
    assert abs(bias["as bounds"]) < 0.015
    assert min(bias["left out"], bias["as values"]) > 0.03
    assert rmse["run to the end"] < rmse["as bounds"] < min(rmse["left out"], rmse["as values"])
    assert inside["as bounds"] > 0.82 > max(inside["left out"], inside["as values"])
