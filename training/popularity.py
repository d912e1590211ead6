"""How far a list by popularity alone gets: the score that a model must clearly exceed to be personal."""

import numpy as np
from numpy.typing import NDArray

from ..data.prepared import PreparedDataset
from .metrics import metrics_from_ranks


def popularity_ndcg10(dataset: PreparedDataset) -> float:
    """Validation NDCG@10 of ranking every user's candidates by their number of train events."""
    counts = np.bincount(dataset.items, minlength=dataset.num_items)
    histories = dataset.validation_histories()
    ranks = popularity_ranks(counts, histories.items, histories.offsets, dataset.valid_items)
    return metrics_from_ranks(ranks)["ndcg@10"]


def popularity_ranks(
    counts: NDArray[np.int64], items: NDArray[np.int32], offsets: NDArray[np.int64], targets: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Ranks int32 (num_users,) of targets by `counts` (num_items,), with the candidates and ties of `ranking.py`.

    User u has the history items[offsets[u]:offsets[u + 1]]. Sorted counts give the rank among all items; the history
    items that are at least as popular as the target are then taken out, each once. No score matrix is built.
    """
    thresholds = counts[targets]
    at_least = len(counts) - np.searchsorted(np.sort(counts), thresholds)  # the target is one of them
    users = np.repeat(np.arange(len(targets), dtype=np.int64), np.diff(offsets))
    pairs = np.unique(users * len(counts) + items)
    owners, seen = pairs // len(counts), pairs % len(counts)
    masked = (counts[seen] >= thresholds[owners]) & (seen != targets[owners])
    return (at_least - np.bincount(owners[masked], minlength=len(targets))).astype(np.int32)
