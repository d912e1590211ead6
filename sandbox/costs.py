"""Estimate what a trial will cost in seconds, from the measured seconds of the session's trials. Pure.

The measured trial whose configuration is most similar is scaled by what the changed knobs are known to do to an epoch.
The exponents and shares are rounded from epochs of both backbones on Office (docs/memory.md); an estimate is good to
about a factor of two.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..memory.records import TrialOutcome, TrialRecord
from ..models.config import TrialConfig, continuation_hash, train_hash
from ..training.stopping import epochs_saved, on_grid
from .ended_early import trains_on

WIDTH_EXPONENT = 1.2  # an epoch at width 256 takes 2.4 times as long as at 128
ENCODER_SHARE = 0.7  # of an epoch with one block; the rest does not grow with the number of blocks
LOSS_SHARE = 0.25  # of an epoch with 500 negatives for the batch; grows with their number
BATCH_EXPONENT = -0.3  # an epoch of batches of 64 takes 1.6 times as long as one of 256
PER_POSITION = 4.0  # negatives for each position against as many for the batch
CONTRASTIVE = 2.5  # two more passes through the encoder
USUAL_NEGATIVES = 500


@dataclass(frozen=True)
class Cost:
    """What a trial is estimated to be charged, and from what."""

    seconds: float
    source: str = ""  # the trial whose epochs were scaled; empty for a re-scoring
    epochs: int = 0  # that will be trained; 0 for a re-scoring
    begun: int = 0  # epochs that a trial has trained already, and that are not repeated


def estimate_seconds(
    config: TrialConfig, trials: Sequence[TrialRecord], num_items: int | None = None
) -> float | None:
    """Training seconds that the configuration will be charged; None if the session has measured nothing to scale."""
    cost = estimate_cost(config, trials, num_items)
    return cost.seconds if cost else None


def estimate_cost(
    config: TrialConfig,
    trials: Sequence[TrialRecord],
    num_items: int | None = None,
    elsewhere: Sequence[TrialRecord] = (),
) -> Cost | None:
    """What the configuration will be charged, from the most similar trial; None if there is nothing to scale.

    A configuration that differs from a finished trial in scoring knobs only costs a re-scoring, an ensemble is taken to
    cost as much, and one whose training a trial has begun, with other `epochs` or `patience` or until it was stopped,
    costs the epochs that are left.
    `num_items` is the size of the catalogue, over which a full softmax sums. elsewhere: trials of other sessions, whose
    seconds are those of an epoch on this data; they count only while the session has trained nothing itself.
    """
    ended = [(t, t.outcome) for t in trials if t.concluded and t.outcome]
    finished = [(t, o) for t, o in ended if t.status == "finished"]
    wanted = train_hash(config)
    has_model = any(trial.train_hash == wanted for trial, _ in finished) and not trains_on(trials, config)
    if config.ensemble or has_model:
        return _rescoring([outcome for _, outcome in finished])
    trained = _trained(ended) or _trained([(t, t.outcome) for t in elsewhere if t.concluded and t.outcome])
    if not trained:
        return None
    relative = relative_cost(config.model_dump(), num_items)
    nearest, outcome = min(trained, key=lambda pair: _distance(config, pair[0].config))
    scaled = _epoch_seconds(outcome) * relative / relative_cost(nearest.config, num_items)
    known = [pair for pair in (finished if _trained(finished) else trained) if pair[0].status == "finished"]
    expected, begun = _expected_epochs(config, known), _epochs_begun(config, ended)
    if expected <= begun:
        return _rescoring([outcome for _, outcome in ended])
    source = nearest.handle if (nearest, outcome) in ended else f"{nearest.session}/{nearest.handle}"
    return Cost(scaled * (expected - begun), source, expected - begun, begun)


def saved_seconds(config: TrialConfig, curve: Sequence[Mapping[str, Any]], trials: Sequence[TrialRecord]) -> float:
    """The training seconds that stopping a trial after `curve` has probably saved.

    Its mean seconds per epoch times the epochs that were left, or that early stopping would have left.
    """
    finished = [(t, t.outcome) for t in trials if t.status == "finished" and t.outcome]
    return _curve_seconds(curve) * max(0, _expected_epochs(config, finished) - _last_epoch(curve))


def relative_cost(config: Mapping[str, Any], num_items: int | None) -> float:
    """The cost of an epoch in arbitrary units, so that only ratios of two configurations have a meaning."""
    negatives = config["num_negatives"]
    if config["loss"] == "full_softmax":
        negatives = num_items or USUAL_NEGATIVES
    elif config["negative_sharing"] == "position":
        negatives *= PER_POSITION
    encoder = ENCODER_SHARE * config["num_blocks"] * (1 + config["latent_steps"])
    rest = 1 - ENCODER_SHARE + LOSS_SHARE * (negatives / USUAL_NEGATIVES - 1)
    passes = CONTRASTIVE if config["contrastive_weight"] > 0 else 1.0
    width, batch = config["hidden_dim"] ** WIDTH_EXPONENT, config["batch_size"] ** BATCH_EXPONENT
    return float((encoder + max(rest, 0.05)) * passes * width * batch)


def _rescoring(outcomes: Sequence[TrialOutcome]) -> Cost | None:
    seconds = _rescoring_seconds(outcomes)
    return None if seconds is None else Cost(seconds)


def _trained(pairs: Sequence[tuple[TrialRecord, TrialOutcome]]) -> list[tuple[TrialRecord, TrialOutcome]]:
    """The trials whose epochs were measured; a re-scoring repeats the curve of the trial that it re-scores."""
    return [(t, o) for t, o in pairs if _epoch_seconds(o) and not o.details.get("rescored")]


def _rescoring_seconds(outcomes: Sequence[TrialOutcome]) -> float | None:
    """The median of the session's re-scorings, or else of the evaluations after an epoch."""
    rescored = [o.train_seconds for o in outcomes if o.details.get("rescored") and not o.details.get("reused_from")]
    evaluations = [o.curve[-1].get("evaluate_seconds", 0.0) for o in outcomes if o.curve]
    measured = [seconds for seconds in rescored or evaluations if seconds > 0]
    return statistics.median(measured) if measured else None


def _epoch_seconds(outcome: TrialOutcome) -> float:
    """Measured seconds of an epoch with its evaluation; 0 without a curve. Holds for trials of earlier sessions too."""
    return _curve_seconds(outcome.curve)


def _curve_seconds(curve: Sequence[Mapping[str, Any]]) -> float:
    seconds = sum(e.get("train_seconds", 0.0) + e.get("evaluate_seconds", 0.0) for e in curve)
    return float(seconds / _last_epoch(curve)) if curve else 0.0


def _last_epoch(curve: Sequence[Mapping[str, Any]]) -> int:
    """The number of epochs that a trial has trained, not all of which are evaluated."""
    return int(curve[-1]["epoch"]) if curve else 0


def _epochs_begun(config: TrialConfig, ended: Sequence[tuple[TrialRecord, TrialOutcome]]) -> int:
    """The epochs of the configuration that an ended trial has trained already, and that are not repeated."""
    wanted, saved = continuation_hash(config), [0]
    for trial, outcome in ended:
        if continuation_hash(trial.configuration) == wanted:
            curve = [(e["epoch"], e["ndcg10"]) for e in outcome.curve if "ndcg10" in e and on_grid(e["epoch"])]
            saved.append(epochs_saved(curve, config.epochs, config.patience))
    return max(saved)


def _expected_epochs(config: TrialConfig, finished: Sequence[tuple[TrialRecord, TrialOutcome]]) -> int:
    """The epochs that will run, after the most similar finished trial; all of them if there is none."""
    trained = [(t, o) for t, o in finished if o.curve and not o.details.get("rescored")]
    ran = [(trial, outcome) for trial, outcome in trained if trial.ended_after is None]
    if not ran:
        return config.epochs
    nearest, outcome = min(ran, key=lambda pair: _distance(config, pair[0].config))
    return _epochs(config, nearest.config, outcome)


def _epochs(config: TrialConfig, known: Mapping[str, Any], outcome: TrialOutcome) -> int:
    """The epochs that will run: as many as in the known trial, or up to the new limits if the old ones ended it."""
    ran = _last_epoch(outcome.curve)
    stopped_early = ran < known["epochs"]
    return min(config.epochs, max(1, ran + config.patience - known["patience"])) if stopped_early else config.epochs


def _distance(config: TrialConfig, known: Mapping[str, Any]) -> int:
    """The number of training knobs that differ; ties go to the earliest trial."""
    return sum(value != known[name] for name, value in config.model_dump().items())
