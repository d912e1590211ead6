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
    metrics = {f"recall@{k}": float(np.mean(ranks <= k)) for k in CUTOFFS}
    metrics |= {f"ndcg@{k}": float(np.mean(ndcg_per_user(ranks, k))) for k in CUTOFFS}
    metrics["mrr"] = float(np.mean(1.0 / ranks.astype(np.float64)))
    return metrics
