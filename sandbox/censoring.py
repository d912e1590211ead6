"""What bounds teach a Gaussian model: low <= y <= high, where y is what a stopped trial would have measured. Pure.

Given that every y_i lies between its bounds, a Gaussian y has a truncated distribution, as in the Tobit model. It is
approximated by expectation propagation: each pair of bounds is replaced by a Gaussian measurement of y_i whose product
with the rest has the mean and variance of the truncated distribution. For one y this is exact; for several,
Cunningham, Hennig and Lacoste-Julien (arXiv 1111.6832, Sections 2 and 4) find the probability of such regions nearly
exact. For regression with censored data it was proposed by Groot and Lucas (PGM 2012, Section 3). Rasmussen and
Williams (2006, Section 3.6) give the update of the sites and the normalisation that are used here.
"""

import math
from typing import NamedTuple

import numpy as np

from .observations import Floats

MAX_SWEEPS = 200
TOLERANCE = 1e-9
DAMPING = 0.7  # of each update, because all sites are updated at once
LEAST_PRECISION = 1e-9  # of a site, relative to the precision of its y: such bounds say nothing
FAR_TAIL = -25.0  # below, the distribution function is taken from its asymptotic series
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_erfc = np.frompyfunc(math.erfc, 1, 1)


class Sites(NamedTuple):
    """The Gaussian measurements that stand for the bounds, and the logarithm of the probability that all of them hold.

    values, variances (g, m); log_probability (g,), for g Gaussian distributions of m values.
    """

    values: Floats
    variances: Floats
    log_probability: Floats


def between(mean: Floats, covariance: Floats, low: Floats, high: Floats) -> Sites:
    """The sites of low <= y <= high for y ~ N(mean, covariance); mean (g, m), covariance (g, m, m), bounds (m,)."""
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    ends = low - mean, high - mean  # everything below is relative to the mean
    precision, shift = LEAST_PRECISION / variance, np.zeros_like(mean)  # of the sites: 1 / variance, value / variance
    for _ in range(MAX_SWEEPS):
        location, spread = _without_own_site(covariance, precision, shift)
        moved, narrowed, _ = _truncated(location, spread, *ends)
        wanted = np.maximum(1 / narrowed - 1 / spread, LEAST_PRECISION / variance)
        change = DAMPING * (wanted - precision), DAMPING * (moved / narrowed - location / spread - shift)
        precision, shift = precision + change[0], shift + change[1]
        if max(np.abs(change[0] * variance).max(), np.abs(change[1] * np.sqrt(variance)).max()) < TOLERANCE:
            break
    location, spread = _without_own_site(covariance, precision, shift)
    log_masses = _truncated(location, spread, *ends)[2]
    value, wide = shift / precision, spread + 1 / precision
    lower = np.linalg.cholesky(covariance + _diagonal(1 / precision))
    half = np.linalg.solve(lower, value[..., None])[..., 0]
    own = log_masses + 0.5 * np.log(wide) + 0.5 * (location - value) ** 2 / wide
    gaussian = -0.5 * (half**2).sum(axis=1) - np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1)
    return Sites(mean + value, 1 / precision, np.asarray(gaussian + own.sum(axis=1)))  # their equation 3.65


def _without_own_site(covariance: Floats, precision: Floats, shift: Floats) -> tuple[Floats, Floats]:
    """Mean and variance (g, m) of each y given the sites of all others."""
    explained = np.linalg.solve(covariance + _diagonal(1 / precision), covariance)
    posterior = covariance - covariance @ explained
    own = np.diagonal(posterior, axis1=1, axis2=2)
    mean = np.einsum("gij,gj->gi", posterior, shift)
    spread = 1 / (1 / own - precision)
    return spread * (mean / own - shift), spread


def _truncated(location: Floats, spread: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats, Floats]:
    """Of N(location, spread) between low and high: mean, variance, and log of the mass there, (g, m) each.

    With a and b the ends in standard deviations and Z the mass, the mean is (density(a) - density(b)) / Z and the
    variance is 1 + (a density(a) - b density(b)) / Z - mean^2, in standard deviations from the location.
    """
    sd = np.sqrt(spread)
    a, b = (low - location) / sd, (high - location) / sd
    sign = np.where(a + b > 0, -1.0, 1.0)  # mirrored to the lower half, where the distribution function is accurate
    a, b = np.minimum(sign * a, sign * b), np.maximum(sign * a, sign * b)
    upper = _log_cdf(b)
    log_mass = upper + np.log1p(-np.exp(_log_cdf(a) - upper))
    at_a, at_b = (np.exp(-0.5 * z**2 - HALF_LOG_TWO_PI - log_mass) for z in (a, b))
    mean = at_a - at_b
    variance = 1 + a * at_a - b * at_b - mean**2
    return location + sign * sd * mean, spread * np.clip(variance, 1e-9, 1.0), log_mass


def _log_cdf(z: Floats) -> Floats:
    """log P(standard normal <= z); far in the tail the series of Abramowitz and Stegun, 26.2.12."""
    near, far = np.maximum(z, FAR_TAIL), np.minimum(z, FAR_TAIL)
    series = -0.5 * far**2 - np.log(-far) - HALF_LOG_TWO_PI + np.log1p(-(far**-2) + 3 * far**-4)
    inside = np.asarray(_erfc(-near / math.sqrt(2)), dtype=np.float64)
    return np.where(z > FAR_TAIL, np.log(0.5 * inside), series)


def _diagonal(values: Floats) -> Floats:
    """(g, m) -> (g, m, m)."""
    return np.asarray(values[..., None] * np.eye(values.shape[-1]))
