"""The profile of a dataset: a few descriptive statistics, computed on the train part only."""

from typing import Any

import numpy as np
import numpy.typing as npt

SECONDS_PER_DAY = 86_400
QUANTILES = {"length_min": 0.0, "length_p25": 0.25, "length_median": 0.5, "length_p75": 0.75, "length_p90": 0.9,
             "length_max": 1.0}  # fmt: skip


def train_profile(
    items: npt.NDArray[np.int32], timestamps: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Statistics of the jagged train part: items, timestamps in seconds (num_events,), offsets (num_users + 1,)."""
    lengths = np.diff(offsets)
    counts = np.bincount(items)
    counts = counts[counts > 0]
    num_users, num_items, num_events = len(lengths), len(counts), len(items)
    return {
        "users": num_users,
        "items": num_items,
        "interactions": num_events,
        "density": _rounded(num_events / (num_users * num_items)),
        "length_mean": _rounded(float(lengths.mean())),
        **{name: _rounded(float(np.quantile(lengths, q))) for name, q in QUANTILES.items()},
        "popularity_gini": _rounded(gini(counts)),
        "repeat_rate": _rounded(_repeat_rate(items, lengths)),
        "time_span_days": _rounded((int(timestamps.max()) - int(timestamps.min())) / SECONDS_PER_DAY),
        "median_gap_days": _rounded(_median_gap(timestamps, offsets) / SECONDS_PER_DAY),
    }


def gini(counts: npt.NDArray[np.int64]) -> float:
    """Gini coefficient of positive counts (num_items,): 0 = all items equally popular, near 1 = few items dominate."""
    ordered = np.sort(counts).astype(np.float64)
    n = len(ordered)
    # G = 2 sum_i i x_i / (n sum_i x_i) - (n + 1) / n, with x ascending and i from 1
    return float(2 * (np.arange(1, n + 1) * ordered).sum() / (n * ordered.sum()) - (n + 1) / n)


def _repeat_rate(items: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64]) -> float:
    """The share of events whose item the same user has interacted with before."""
    users = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    pairs = np.sort(users * (int(items.max()) + 1) + items)
    return float((pairs[1:] == pairs[:-1]).sum()) / len(items)


def _median_gap(timestamps: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> float:
    """The median time between consecutive events of a user; 0 if every user has a single event."""
    gaps = np.diff(timestamps.astype(np.float64))  # exact for seconds, and without overflow for any int64
    inside = np.ones(len(gaps), dtype=bool)
    inside[offsets[1:-1] - 1] = False  # the gap between one user's last event and the next user's first
    return float(np.median(gaps[inside])) if inside.any() else 0.0


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
