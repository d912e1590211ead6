"""Pure statistics of a comparison: paired tests, corrections, bootstrap intervals, and times that may be censored.

Every function is deterministic: resampling uses a generator with a fixed seed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

EXACT_UNTIL = 12
"""Numbers of pairs up to which all sign patterns are enumerated; beyond, `SIGN_FLIPS` random ones are drawn."""
SIGN_FLIPS = 20_000
RESAMPLES = 4000
CONFIDENCE = 0.95
TOLERANCE = 1e-12


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval, which are None where there are too few values to resample."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Test:
    """The two-sided p-value of a paired test over `n` pairs; `exact` unless the sign patterns were sampled."""

    __test__ = False  # pytest must not collect this class because of its name

    p: float
    n: int
    exact: bool


def sign_flip_test(differences: Sequence[float]) -> Test:
    """The permutation test of paired differences: how often a random choice of signs gives as large a |mean|.

    Fisher (1935). Exact for at most `EXACT_UNTIL` pairs. A sampled p-value counts the observed pattern as well (Phipson
    & Smyth 2010), so it is never 0.
    """
    values = np.asarray(differences, dtype=float)
    return _sign_test(values, values)


def signed_rank_test(differences: Sequence[float]) -> Test:
    """Wilcoxon's signed-rank test; pairs without a difference are left out, equal ones share their mean rank.

    Its p-value is taken from the same sign patterns as `sign_flip_test`, so it is exact with ties as well.
    """
    values = np.asarray([value for value in differences if value != 0], dtype=float)
    return _sign_test(np.sign(values) * mean_ranks(np.abs(values)), values)


def _sign_test(scores: Floats, values: Floats) -> Test:
    n = len(values)
    if n == 0:
        return Test(1.0, 0, True)
    exact = n <= EXACT_UNTIL
    if exact:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(SIGN_FLIPS, n))
    reached = int((np.abs(signs @ scores) >= abs(scores.sum()) - TOLERANCE * np.abs(scores).sum()).sum())
    p = reached / len(signs) if exact else (reached + 1) / (len(signs) + 1)
    return Test(p, n, exact)


def mean_ranks(values: Floats) -> Floats:
    """The ranks of values, from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(float)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=float)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down procedure (1979), in the order of the arguments."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def standardised(differences: Sequence[float]) -> float | None:
    """Cohen's d of paired differences: their mean over their standard deviation; None if that is 0 or unknown."""
    if len(differences) < 2:
        return None
    spread = float(np.std(differences, ddof=1))
    return float(np.mean(differences)) / spread if spread > TOLERANCE else None


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of values and its percentile bootstrap interval (Efron 1979)."""
    array = np.asarray(values, dtype=float)
    return bootstrap(lambda rows: array[rows].mean(axis=1), len(array))


def bootstrap(statistic: Callable[[Rows], Floats], n: int) -> Interval:
    """A statistic of n rows with its percentile interval over resampled rows.

    statistic: maps row numbers (samples, n) to a value per sample, which may be infinite.
    """
    value = float(statistic(np.arange(n)[None, :])[0])
    if n < 2:
        return Interval(value)
    found = np.sort(statistic(np.random.default_rng(0).integers(n, size=(RESAMPLES, n))))
    tail = (1 - CONFIDENCE) / 2
    low, high = found[int(tail * RESAMPLES)], found[math.ceil((1 - tail) * RESAMPLES) - 1]
    return Interval(value, float(low), float(high))


def median_interval(times: Sequence[float], reached: Sequence[bool]) -> Interval:
    """The Kaplan-Meier median of times that may be censored, and its bootstrap interval; infinite if never reached."""
    moments, group = np.unique(np.asarray(times, dtype=float), return_inverse=True)
    members = np.eye(len(moments))[group]  # (n, moments): which time each row has
    events = members * np.asarray(reached, dtype=float)[:, None]

    def medians(rows: Rows) -> Floats:
        samples, n = rows.shape
        drawn = np.bincount((rows + n * np.arange(samples)[:, None]).ravel(), minlength=samples * n)
        counts = drawn.reshape(samples, n)  # how often each row was drawn
        at_risk = np.maximum((counts @ members)[:, ::-1].cumsum(axis=1)[:, ::-1], 1.0)  # (samples, moments)
        shares = np.cumprod(1 - counts @ events / at_risk, axis=1)
        low = shares <= 0.5 + TOLERANCE
        return np.where(low.any(axis=1), moments[low.argmax(axis=1)], math.inf)

    return bootstrap(medians, len(times))


@dataclass(frozen=True)
class Survival:
    """The Kaplan-Meier estimate (1958) of the share that has not reached a level: `shares[i]` from `times[i]` on."""

    times: tuple[float, ...]
    shares: tuple[float, ...]
    horizon: float  # the largest time that was observed, reached or censored

    @property
    def median(self) -> float:
        """The first time by which half have reached the level; infinite if fewer ever do."""
        reached = (time for time, share in zip(self.times, self.shares, strict=True) if share <= 0.5 + TOLERANCE)
        return next(reached, math.inf)

    def restricted_mean(self, limit: float) -> float:
        """The mean of min(time, limit): the area below the curve until `limit`."""
        area, before, share = 0.0, 0.0, 1.0
        for time, after in zip(self.times, self.shares, strict=True):
            if time >= limit:
                break
            area += share * (time - before)
            before, share = time, after
        return area + share * (limit - before)


def kaplan_meier(times: Sequence[float], reached: Sequence[bool]) -> Survival:
    """The estimate from times at which a level was reached, or (`reached` False) up to which it was not."""
    array, events = np.asarray(times, dtype=float), np.asarray(reached, dtype=bool)
    moments = np.unique(array[events])
    share, shares = 1.0, []
    for moment in moments:
        share *= 1 - float((events & (array == moment)).sum()) / float((array >= moment).sum())
        shares.append(share)
    return Survival(tuple(map(float, moments)), tuple(shares), float(array.max()) if len(array) else 0.0)
