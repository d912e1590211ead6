"""Evaluation of an exported model on later data, beside baselines that need no model.

Targets are ranked in the whole catalogue with the rules of `training/ranking.py`, by the code that `Recommender` uses.
An item that the model does not know has no rank: it counts as missed by every scorer.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .baselines import baseline_priors
from .evaluation_result import CUTOFFS, METRICS, NORMAL_95, Counts, EvaluationResult, Figure, Scorer, Stratum
from .later_events import UNKNOWN, LaterEvents
from .recommender import Recommender
from .sums import ExportSums
from .target_ranks import MISSED, MODEL, Progress, by_popularity, measure

STRATUM_METRICS = ("ndcg@10", "recall@10")
BANDS = ("head", "middle", "tail")
UNKNOWN_ITEMS, COLD_STARTS = "unknown items", "cold starts"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Evaluation(NamedTuple):
    """The result, and the model's NDCG@10 of every user with a target, by which two evaluations can be paired."""

    result: EvaluationResult
    user_ndcg10: Floats  # (num_users_with_target,), in the order of the users of the events


def evaluate_export(
    recommender: Recommender,
    sums: ExportSums,
    events: LaterEvents,
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """Evaluate an export on the targets of `events`; `sums` are the export's own, for its baselines."""
    engine, counts = recommender.engine, recommender.export.counts
    measured = measure(engine, baseline_priors(sums, recommender.device), events, progress)
    users = np.unique(events.target_users, return_inverse=True)[1]
    values = {name: user_means(gains(found.ranks), users) for name, found in measured.items()}
    scorers = {
        name: Scorer(
            metrics={metric: figure(values[name][metric]) for metric in METRICS},
            coverage=coverage(found.lists, len(counts)),
            novelty=figure(user_means({"": _novelties(found.lists, counts)}, users)[""]).value,
        )
        for name, found in measured.items()
    }
    ndcg = {name: of_users["ndcg@10"] for name, of_users in values.items()}
    cold = by_popularity(engine, np.maximum(events.items[events.cold_starts], 0)).ranks
    result = EvaluationResult(
        counts=_counts(events),
        model=scorers.pop(MODEL),
        baselines=scorers,
        differences={name: figure(ndcg[MODEL] - ndcg[name]) for name in scorers},
        strata=_strata(events, measured[MODEL].ranks, cold, counts),
    )
    return Evaluation(result, ndcg[MODEL])


def gains(ranks: NDArray[np.int32]) -> dict[str, Floats]:
    """METRICS of every target, (num_targets,): with one relevant item, NDCG is 1 / log2(1 + rank) and MRR 1 / rank."""
    place = np.where(ranks == MISSED, np.inf, ranks.astype(np.float64))
    kinds = {"ndcg": 1 / np.log2(1 + place), "recall": np.ones(len(place)), "mrr": 1 / place}
    return {f"{kind}@{k}": np.where(place <= k, gain, 0.0) for kind, gain in kinds.items() for k in CUTOFFS}


def user_means(of_targets: Mapping[str, Floats], users: Ints) -> dict[str, Floats]:
    """The mean of each value over the targets of every user, (num_users,); users (num_targets,) are 0, 1, …"""
    sizes = np.bincount(users)
    return {name: np.bincount(users, weights=values) / sizes for name, values in of_targets.items()}


def figure(values: Floats) -> Figure:
    """The mean of one value per user, with its 95 % interval."""
    mean = float(values.mean())
    if len(values) < 2:
        return Figure(value=mean)
    half = NORMAL_95 * float(values.std(ddof=1)) / len(values) ** 0.5
    return Figure(value=mean, low=mean - half, high=mean + half)


def coverage(lists: NDArray[np.int32], num_items: int) -> float:
    """The share of the catalogue that occurs in a list."""
    return len(np.unique(lists[lists != UNKNOWN])) / num_items


def _novelties(lists: NDArray[np.int32], counts: Ints) -> Floats:
    """The mean self-information of each list, -log2(events of an item / all events); an item has at least one event."""
    bits = np.log2(counts.sum()) - np.log2(np.maximum(counts, 1))
    listed = lists != UNKNOWN
    return np.asarray(np.where(listed, bits[lists], 0).sum(axis=1) / np.maximum(listed.sum(axis=1), 1))


def bands_of(counts: Ints) -> Ints:
    """The band of each item, an index into BANDS: the most popular items with a third of all events are the head.

    The next third of the events is the middle, and the rest the tail. An item belongs where its first event would be.
    """
    order = np.argsort(-counts, kind="stable")
    before = np.concatenate(([0], np.cumsum(counts[order])[:-1]))
    bands = np.empty(len(counts), np.int64)
    bands[order] = np.minimum(before * len(BANDS) // max(1, counts.sum()), len(BANDS) - 1)
    return bands


def _strata(events: LaterEvents, ranks: NDArray[np.int32], cold: NDArray[np.int32], counts: Ints) -> list[Stratum]:
    """The bands of popularity, unknown items, and cold starts, which get the list by popularity."""
    items, bands = events.target_items, bands_of(counts)
    of_targets = np.where(items == UNKNOWN, len(BANDS), bands[items])
    sizes = np.bincount(bands, minlength=len(BANDS))
    found = [
        _stratum(name, sizes[band] if band < len(BANDS) else None, events.target_users[of_targets == band],
                 ranks[of_targets == band])
        for band, name in enumerate((*BANDS, UNKNOWN_ITEMS))
    ]  # fmt: skip
    missed = np.where(events.items[events.cold_starts] == UNKNOWN, MISSED, cold)
    return [*found, _stratum(COLD_STARTS, None, events.users[events.cold_starts], missed)]


def _stratum(name: str, num_items: int | None, users: Ints, ranks: NDArray[np.int32]) -> Stratum:
    distinct, numbers = np.unique(users, return_inverse=True)
    means = user_means(gains(ranks), numbers) if len(ranks) else {}
    return Stratum(
        name=name,
        num_targets=len(ranks),
        num_users=len(distinct),
        num_items=num_items,
        metrics={metric: figure(means[metric]) for metric in STRATUM_METRICS if means},
    )


def _counts(events: LaterEvents) -> Counts:
    unknown_histories = repeated = 0
    for part, histories in events.chunks():
        lengths = np.diff(histories.offsets)
        targets = events.target_items[part]
        seen = np.repeat(targets, lengths) == histories.items
        owners = np.repeat(np.arange(len(targets)), lengths)
        repeated += len(np.unique(owners[seen]))
        unknown_histories += int((lengths == 0).sum())
    num_users = len(np.unique(events.target_users))
    return Counts(
        targets=len(events.targets),
        users=num_users,
        unknown_items=events.num_unknown_items,
        unknown_targets=int((events.target_items == UNKNOWN).sum()),
        unknown_histories=unknown_histories,
        repeated_targets=repeated,
        cold_starts=len(events.cold_starts),
        cold_users=events.num_later_users - num_users,
        in_both=events.num_in_both,
    )
