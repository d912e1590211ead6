"""Effects of knobs pooled over sessions and datasets. Pure functions: no database.

Effects are relative to the NDCG@10 of the session's first trial, so that datasets of different difficulty can be pooled
by inverse-variance means. Each value on each dataset is one study. If the studies disagree by more than their standard
errors, the standard error of the mean is multiplied by the Birge ratio sqrt(Q / (studies - 1)), where Q is Cochran's
statistic.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

INTERVAL_Z = 1.96  # 95 %


class Sums(NamedTuple):
    """Sufficient statistics of measured effects x_i with weights w_i = 1 / se_i^2, from `studies` groups."""

    n: int
    studies: int
    weight: float  # sum w
    weighted: float  # sum w x
    squared: float  # sum over groups of (sum w x)^2 / (sum w)


def pooled_effect(values: Mapping[str, Sums], num_datasets: int) -> dict[str, Any]:
    """The pooled effect of a knob; `values` maps knob values in JSON to sums. The most tried values come first."""
    total = Sums(*map(sum, zip(*values.values(), strict=True)))
    mean, se = _pooled_mean(total)
    rows = [
        {"value": json.loads(value), "n": sums.n, **dict(zip(("mean_relative", "se"), _pooled_mean(sums), strict=True))}
        for value, sums in values.items()
    ]
    return {
        "n": total.n,
        "datasets": num_datasets,
        "mean_relative": mean,
        "se": se,
        "interval": [mean - INTERVAL_Z * se, mean + INTERVAL_Z * se],
        "values": sorted(rows, key=lambda row: -row["n"]),
    }


def _pooled_mean(sums: Sums) -> tuple[float, float]:
    """The pooled mean and its standard error."""
    mean = sums.weighted / sums.weight
    disagreement = max(sums.squared - sums.weighted**2 / sums.weight, 0.0)  # Q
    variance_factor = max(1.0, disagreement / (sums.studies - 1)) if sums.studies > 1 else 1.0
    return mean, math.sqrt(variance_factor / sums.weight)
