"""What can be said about a trial that is still training: how long it takes, and how it compares. Pure functions."""

from typing import NamedTuple

from ..memory.records import TrialRecord
from ..models.config import TrialConfig, has_priors
from ..training.spec import TrialProgress
from ..training.stopping import on_grid


class TimeLeft(NamedTuple):
    """Seconds until a trial ends: if it trains all its epochs, and at the earliest."""

    at_most: float
    at_least: float


def time_left(
    config: TrialConfig,
    progress: TrialProgress,
    since_epoch: float,
    elapsed: float,
    estimate: float | None = None,
    *,
    ending: bool = False,
) -> TimeLeft | None:
    """The seconds until a trial ends, from the measured seconds of its epochs; None if nothing is known.

    since_epoch: seconds since its last evaluated epoch. elapsed: since it was started. estimate: the seconds that the
    whole trial is expected to take, which counts before its first epoch. ending: it was asked to end after its current
    epoch. The earliest end is the one at which no further epoch is better than the best one, so that `patience` ends
    the training. The final scoring is left out: it takes about as long as the evaluation of an epoch.
    """
    if progress.stage == "scoring":
        return None
    if progress.epoch_seconds is None:
        left = None if estimate is None else estimate - elapsed
        return TimeLeft(left, left) if left is not None and left > 0 else None
    last = min(config.epochs, evaluated_from(progress.best_epoch + config.patience))
    following = min(config.epochs, evaluated_from(progress.epoch + 1))
    ends = (following, following) if ending else (config.epochs, max(last, following))
    at_most, at_least = (max(0.0, (end - progress.epoch) * progress.epoch_seconds - since_epoch) for end in ends)
    return TimeLeft(at_most, at_least)


def evaluated_from(epoch: int) -> int:
    """The first epoch at or after `epoch` that every training evaluates."""
    return epoch if on_grid(epoch) else epoch + 1


def score_now(config: TrialConfig, progress: TrialProgress) -> float | None:
    """Validation NDCG@10 of a running trial as it will be judged, with its best weights so far; None if not known."""
    return progress.best_judged if has_priors(config) else progress.best_ndcg10


def score_at(trial: TrialRecord, epoch: int) -> float | None:
    """What `score_now` was of a finished trial after `epoch`; None if it is not known.

    The epochs of a trial that has re-scored another one are of other scores: only its final value is known.
    """
    outcome = trial.outcome
    if outcome is None or trial.status != "finished":
        return None
    best = outcome.details.get("best_epoch") or (outcome.curve[-1]["epoch"] if outcome.curve else 0)
    if epoch >= best:
        return outcome.metrics.get("ndcg@10")
    name = "judged" if has_priors(trial.configuration) else "ndcg10"
    ranked = [point for point in outcome.curve if point["epoch"] <= epoch and point.get(name) is not None]
    if not ranked:
        return None
    return float(max(ranked, key=lambda point: point["ndcg10"])[name])
