"""Ranking metrics computed from ranks: numpy only, one relevant item per user, all means in float64.

`ranks` is int32 (num_users,), 1 = best, as `ranking.py` returns them. With one relevant item the ideal DCG is 1, so a
user's NDCG@k is 1 / log2(1 + rank) for rank <= k and 0 beyond.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (5, 10)
LARGEST_CLIPPED = 255  # ranks beyond the cutoffs change no metric but mrr, so a byte per user is enough for a sweep


def ndcg_per_user(ranks: NDArray[np.integer[Any]], k: int = 10) -> NDArray[np.float64]:
    """NDCG@k of every user, float64 (num_users,); paired comparisons between trials use these values."""
    gains = 1.0 / np.log2(1.0 + ranks.astype(np.float64))
    return np.where(ranks <= k, gains, 0.0)


def clip_ranks(ranks: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Ranks as uint8 of the same shape, those above 255 as 255; recall and NDCG at 5 and 10 stay exact."""
    return np.minimum(ranks, LARGEST_CLIPPED).astype(np.uint8)


def best_setting(ranks: NDArray[np.uint8]) -> int:
    """The row of `ranks` (settings, num_users) with the largest mean NDCG@10; the first of equal ones."""
    return int(np.argmax([ndcg_per_user(row).mean() for row in ranks]))


def metrics_from_ranks(ranks: NDArray[np.int32]) -> dict[str, float]:
    """Means over users: recall@5, recall@10, ndcg@5, ndcg@10 and mrr (mean reciprocal rank, no cutoff)."""
    assert ranks.size, "every prepared dataset has a user"
    return {name: float(values.mean()) for name, values in metrics_per_user(ranks).items()}


def metrics_per_user(ranks: NDArray[np.integer[Any]]) -> dict[str, NDArray[np.float64]]:
    """The values whose means are the metrics, float64 (num_users,) each."""
    values = {f"recall@{k}": (ranks <= k).astype(np.float64) for k in CUTOFFS}
    values |= {f"ndcg@{k}": ndcg_per_user(ranks, k) for k in CUTOFFS}
    values["mrr"] = 1.0 / ranks.astype(np.float64)
    return values
