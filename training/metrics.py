"""Ranking metrics computed from ranks: numpy only, one relevant item per user, all means in float64.

`ranks` is int32 (num_users,), 1 = best, as `ranking.py` returns them. With one relevant item the ideal DCG is 1, so a
user's NDCG@k is 1 / log2(1 + rank) for rank <= k and 0 beyond.
"""

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (5, 10)


def ndcg_per_user(ranks: NDArray[np.int32], k: int = 10) -> NDArray[np.float64]:
    """NDCG@k of every user, float64 (num_users,); paired comparisons between trials use these values."""
    gains = 1.0 / np.log2(1.0 + ranks.astype(np.float64))
    return np.where(ranks <= k, gains, 0.0)


def metrics_from_ranks(ranks: NDArray[np.int32]) -> dict[str, float]:
    """Means over users: recall@5, recall@10, ndcg@5, ndcg@10 and mrr (mean reciprocal rank, no cutoff)."""
    assert ranks.size, "every prepared dataset has a user"
    metrics = {f"recall@{k}": float(np.mean(ranks <= k)) for k in CUTOFFS}
    metrics |= {f"ndcg@{k}": float(np.mean(ndcg_per_user(ranks, k))) for k in CUTOFFS}
    metrics["mrr"] = float(np.mean(1.0 / ranks.astype(np.float64)))
    return metrics
