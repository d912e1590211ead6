"""Bundles, ablations and separating trials: which trial takes away most uncertainty, checked by running them all."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.effects_world import DEFAULT, FIRST, NDCG, load_simulation, trial
from virtualmle.memory.records import TrialRecord
from virtualmle.models.config import TrialConfig
from virtualmle.sandbox import surrogate
from virtualmle.sandbox.bundles import ablation, bundle, separation, take_backs, variance_reductions
from virtualmle.sandbox.joint import model_of
from virtualmle.sandbox.proposals import propose
from virtualmle.sandbox.protocol import load_protocol
from virtualmle.sandbox.surrogate import Prediction

SPACE = load_protocol().space


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    return load_simulation()


def new(trials: list[TrialRecord]) -> Callable[..., bool]:
    tried = [t.config for t in trials]
    return lambda base, changes: base.model_copy(update=dict(changes)).model_dump() not in tried


def model(trials: list[TrialRecord]) -> surrogate.Surrogate:
    found = model_of(trials, DEFAULT)
    assert found is not None
    return found


BUNDLE = trial(2, {"time_bias": True, "norm": "rms", "lr": 1e-3}, NDCG * 1.2)


def test_the_ablation_takes_back_the_most_doubtful_change_of_the_last_bundle() -> None:
    trials = [FIRST, BUNDLE, trial(3, {"norm": "rms"}, NDCG * 0.95)]
    found = ablation(model(trials), trials, DEFAULT, new(trials))
    assert found is not None and (found.source, found.base, found.changes) == ("ablation", "t002", {"norm": "layer"})
    assert found.prediction.mean > 0 and "share of norm layer -> rms is the most doubtful" in found.reason
    done = [*trials, trial(4, {"norm": "layer"}, NDCG * 1.2, base=BUNDLE)]
    assert ablation(model(done), done, DEFAULT, new(done)) is None  # the configuration was measured
    assert ablation(model([FIRST]), [FIRST], DEFAULT, new([FIRST])) is None


def test_two_suspects_of_a_bundle_are_named_and_one_is_taken_back() -> None:
    trials = [FIRST, trial(2, {"time_bias": True, "norm": "rms"}, NDCG * 1.2)]
    found = separation(model(trials), trials, trials[1], DEFAULT, new(trials))
    assert found is not None
    assert {share.knob for share in found.suspects} == {"time_bias", "norm"}
    assert len(found.changes) == 1 and found.reduction > 0.3
    known = [*trials, trial(3, {"time_bias": True}, NDCG * 1.2), trial(4, {"norm": "rms"}, NDCG)]
    assert separation(model(known), known, known[1], DEFAULT, new(known)) is None  # nothing is entangled any more


def test_changes_that_are_each_expected_to_help_are_bundled() -> None:
    singles = [
        ({"lr": 1e-3}, Prediction(0.03, 0.02)), ({"lr": 3e-3}, Prediction(0.02, 0.02)),
        ({"norm": "rms"}, Prediction(0.02, 0.02)), ({"time_bias": True}, Prediction(0.01, 0.02)),
        ({"dropout": 0.5}, Prediction(-0.01, 0.02)), ({"tie_embeddings": True}, Prediction(0.001, 0.02)),
    ]  # fmt: skip
    found = bundle(singles, model([FIRST]), FIRST, new([FIRST]))
    assert found is not None and found.changes == {"lr": 1e-3, "norm": "rms", "time_bias": True}
    assert bundle(singles[:3], model([FIRST]), FIRST, new([FIRST])) is None  # two knobs are a pair
    assert bundle(singles, model([FIRST]), FIRST, lambda base, changes: "norm" not in changes) is None


def realised(world: Any, pair: list[Any], changes: dict[str, Any], base: TrialRecord) -> float:
    """The variance of the difference between two suspects after the trial was run, which is then taken back."""
    done = world.run(base, changes)
    covariance = model(world.trials).posterior(pair).covariance
    world.trials.remove(done)
    world.ranks.pop(done.handle)
    return float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_separating_trial_takes_away_most_uncertainty_of_all_candidates(
    seed: int, simulation: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surrogate, "SCALES", (0.08,))  # else the variance would depend on the outcome as well
    monkeypatch.setattr(surrogate, "TRAINING_ERRORS", {0.02: 1.0})
    world = simulation.a_session(np.random.default_rng(seed), simulation.Setting("few", trials=7, most=4))
    incumbent = world.trials[-1]
    before = model(world.trials)
    found = separation(before, world.trials, incumbent, DEFAULT, new(world.trials))
    assert found is not None
    pair = [{share.knob: (share.before, share.after)} for share in found.suspects]
    candidates = take_backs(before, world.trials, incumbent, DEFAULT, new(world.trials))
    after = np.array([realised(world, pair, changes, base) for changes, base in candidates])
    chosen = [(changes, base.handle) for changes, base in candidates].index((found.changes, found.base))
    covariance = before.posterior(pair).covariance
    start = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert after[chosen] < start * (1 - found.reduction) * 1.15
    assert after[chosen] <= after.min() * 1.1
    reductions = variance_reductions(before, pair[0], pair[1], candidates)
    assert np.corrcoef(reductions, 1 - after / start)[0, 1] > 0.95


def test_bundles_are_taken_apart_in_the_proposals_of_a_session() -> None:
    bundle_ = BUNDLE.model_copy(update={"outcome": BUNDLE.outcome.model_copy(update={"verdict": "keep"})})  # type: ignore[union-attr]
    rows = propose([FIRST, bundle_], bundle_, SPACE, {}, lambda changes: False)
    sources = {row["source"]: row for row in rows}
    assert "ablation" in sources or "separation" in sources
    for source in {"ablation", "separation"} & set(sources):
        row = sources[source]
        assert len(row["changes"]) == 1 and row["base"] == "incumbent" and row["dimension"]
        config = TrialConfig(**{**bundle_.config, **row["changes"]})
        assert config.model_dump() not in (FIRST.config, bundle_.config)
