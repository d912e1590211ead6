"""Paired statistics over users: is the difference in validation NDCG@10 between two trials larger than noise?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..data.errors import TrialError
from ..training.metrics import ndcg_per_user

Z_LIMIT = 1e6
"""|z| of a nonzero difference with zero variance over users, instead of infinity, which JSON cannot represent."""


@dataclass(frozen=True)
class Comparison:
    """Mean difference of per-user NDCG@10, its standard error, their ratio, and the number of users."""

    delta: float
    se: float
    z: float
    n: int


def compare(ranks_base: npt.ArrayLike, ranks_candidate: npt.ArrayLike) -> Comparison:
    """Candidate minus base, paired by user; both arguments are ranks (num_users,) of the same users in the same order.

    The standard error is sd(difference, ddof=1) / sqrt(n), so z is the statistic of the paired t-test. Raises
    TrialError if the numbers of users differ or there are fewer than two users.
    """
    base, candidate = np.asarray(ranks_base), np.asarray(ranks_candidate)
    if base.shape != candidate.shape:
        raise TrialError(
            f"a paired comparison needs the same users: {base.shape[0]} against {candidate.shape[0]} ranks; "
            "compare trials of the same dataset"
        )
    difference = ndcg_per_user(candidate) - ndcg_per_user(base)
    delta, se = float(difference.mean()) if difference.size else 0.0, _standard_error_of_mean(difference)
    return Comparison(delta, se, z_score(delta, se), int(difference.size))


def metric_errors(ranks: npt.ArrayLike) -> dict[str, float]:
    """Standard errors over users of recall and NDCG at 5 and 10, by metric name; ranks (num_users,), 1 = best."""
    observed = np.asarray(ranks)
    errors = {}
    for k in (5, 10):
        errors[f"recall@{k}"] = _standard_error_of_mean((observed <= k).astype(np.float64))
        errors[f"ndcg@{k}"] = _standard_error_of_mean(ndcg_per_user(observed, k))
    return errors


def standard_error(ranks: npt.ArrayLike) -> float:
    """Standard error over users of NDCG@10; raises TrialError for fewer than two users."""
    return _standard_error_of_mean(ndcg_per_user(np.asarray(ranks)))


def z_score(delta: float, se: float) -> float:
    """delta / se, clamped to ±Z_LIMIT; if se is 0, the result is 0 for delta 0 and ±Z_LIMIT otherwise."""
    if se == 0:
        return math.copysign(Z_LIMIT, delta) if delta else 0.0
    return max(-Z_LIMIT, min(Z_LIMIT, delta / se))


def selection_inflation(se: float, k: int) -> float:
    """se * sqrt(2 ln k): bound on the expected optimism of the best of k equally good trials, due to noise alone."""
    return se * math.sqrt(2 * math.log(k)) if k > 1 else 0.0


def sweep_inflation(n: int) -> float:
    """sqrt(2 ln n): bound on the expected inflation of z of the setting that is chosen among `n`, due to noise alone.

    Let e_i = (d_i - m_i) / SE_i be the standardised error of the paired difference d_i of setting i, with mean m_i.
    Whichever setting b is chosen, and however, e_b <= max e_i. Every e_i is standard normal (the central limit theorem
    over users), so for every t > 0, by Jensen's inequality and with the sum as a bound on the maximum,
    exp(t E[max e_i]) <= E[sum exp(t e_i)] = n exp(t^2 / 2); t = sqrt(2 ln n) gives E[max e_i] <= sqrt(2 ln n).
    The differences may be correlated and have different standard errors; both occur, since all share one base.
    """
    return selection_inflation(1.0, n)


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two orders of the same things: 1 = equal, -1 = reversed, 0 = unrelated, or all values tied.

    With x and y the signs of the differences of all pairs, sum(x y) / sqrt(sum(x^2) sum(y^2)) (Kendall 1945).
    """
    x, y = (np.sign(np.subtract.outer(values, values)) for values in (np.asarray(first), np.asarray(second)))
    norm = math.sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm else 0.0


def _standard_error_of_mean(values: npt.NDArray[np.float64]) -> float:
    if values.size < 2:
        raise TrialError(f"a standard error needs at least two users, not {values.size}; use a larger dataset")
    return float(values.std(ddof=1) / math.sqrt(values.size))
