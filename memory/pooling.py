"""Effects of knobs pooled over sessions and datasets. Pure functions: no database.

Effects are shares of the base's NDCG@10, so that datasets of different difficulty can be pooled by inverse-variance
means. Each value on each dataset is one study; where the studies disagree by more than their errors, the error of the
mean is widened by the Birge ratio sqrt(Q / (studies - 1)), Q being Cochran's statistic.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

INTERVAL_Z = 1.96  # 95 %


class Sums(NamedTuple):
    """Sufficient statistics of some measured effects x_i with weights w_i = 1 / se_i^2, in `studies` groups."""

    n: int
    studies: int
    weight: float  # sum w
    weighted: float  # sum w x
    squared: float  # sum (sum w x)^2 / (sum w), group by group


def pooled_effect(values: Mapping[str, Sums], num_datasets: int) -> dict[str, Any]:
    """The effect of a knob; `values` has its values as JSON text. The values with most trials come first."""
    total = Sums(*map(sum, zip(*values.values(), strict=True)))
    mean, se = _mean(total)
    rows = [
        {"value": json.loads(value), "n": sums.n, **dict(zip(("mean_relative", "se"), _mean(sums), strict=True))}
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


def _mean(sums: Sums) -> tuple[float, float]:
    """The mean and its standard error."""
    mean = sums.weighted / sums.weight
    disagreement = max(sums.squared - sums.weighted**2 / sums.weight, 0.0)  # Q
    widening = max(1.0, disagreement / (sums.studies - 1)) if sums.studies > 1 else 1.0
    return mean, math.sqrt(widening / sums.weight)
