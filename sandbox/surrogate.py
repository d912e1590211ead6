"""Surrogate model of a session's response surface: predicts the change of NDCG@10 and its uncertainty.

A Gaussian process that is additive over knobs, because most trials change a single knob and identify no interactions:
f(x) - f(x0) is a sum of one term per knob, where x0 is the first measured configuration. Each numeric knob has the
kernel exp(-|u - u'| / LENGTH_SCALE), where u in [0, 1] is the position in its range (on a log scale if the knob has
one). For choices, the kernel is such that the effects of two choices, relative to the choice in x0, are independent.
The covariance of increments over x0 is k(x, y) - k(x, x0) - k(y, x0) + 1 per knob, so knobs at their x0 value
contribute nothing. The prior mean is the shrunk effect measured by closed sessions; the prior scale is the one of
SCALES with the largest marginal likelihood. Pure numpy, no randomness. All effects are relative to NDCG@10 at x0.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..memory.records import TrialRecord
from ..models.config import TrialConfig
from .action_space import Knob

Floats = npt.NDArray[np.float64]

LENGTH_SCALE = 0.5  # half of a knob's range: neighbours correlate strongly, the two ends weakly
CHOICE_CORRELATION = math.exp(-0.25 / LENGTH_SCALE)  # of two choices, one at x0: like numbers 1/4 of a range apart
SCALES = (0.01, 0.02, 0.04, 0.08, 0.16)  # prior standard deviation of one knob's effect; most effects are a few percent
MAX_PRIOR_EFFECT = 0.5  # bound on a prior mean from other datasets
DEFAULT_NOISE = 0.005  # relative standard error if none was measured
HALF_WEIGHT_SE = 0.02  # an earlier effect with this standard error is shrunk by half


class Prediction(NamedTuple):
    """Mean and standard deviation of the predicted change of NDCG@10, relative to NDCG@10 at x0."""

    mean: float
    sd: float

    @property
    def expected_improvement(self) -> float:
        """E[max(0, change)]: a change for the worse is not adopted, so it counts as 0."""
        if self.sd <= 0:
            return max(self.mean, 0.0)
        z = self.mean / self.sd
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return self.mean * (0.5 * math.erfc(-z / math.sqrt(2))) + self.sd * density


def position(knob: Knob, value: Any) -> float:
    """Position of a number in the range of its knob, in [0, 1]; for a choice or a bool, its index.

    Levels are evenly spaced: a page lists them so that neighbours differ by about as much everywhere.
    """
    if knob.low is None or knob.high is None:
        return float([*knob.choices, False, True].index(value))
    if knob.levels:
        return knob.levels.index(value) / max(1, len(knob.levels) - 1)
    if knob.high == knob.low:
        return 0.0
    if knob.scale == "log":
        return math.log(value / knob.low) / math.log(knob.high / knob.low)
    return float((value - knob.low) / (knob.high - knob.low))


class Surrogate:
    """The model, fitted to the finished trials of a session; `history` is `Knowledge.pooled_effects` or {}.

    The caller guarantees at least one finished trial.
    """

    def __init__(
        self, trials: Sequence[TrialRecord], knobs: Sequence[Knob], history: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._knobs = knobs
        self._column = {knob.name: d for d, knob in enumerate(knobs)}
        self._numeric = np.array([knob.low is not None for knob in knobs])
        measured = [(t, t.outcome) for t in trials if t.outcome and t.status == "finished"]
        first, outcome = measured[0]
        self.reference_ndcg = max(outcome.metrics["ndcg@10"], 1e-9)
        self._first = first.configuration
        self._origin = np.array([position(knob, getattr(self._first, knob.name)) for knob in knobs])
        self._prior_points = [self._prior_of(knob, history.get(knob.name)) for knob in knobs]
        x = np.array([self._vector(t.configuration) for t, _ in measured])
        y = np.array([o.metrics["ndcg@10"] / self.reference_ndcg - 1 for _, o in measured])
        noises = [o.base_delta_se / self.reference_ndcg for _, o in measured if o.base_delta_se]
        self._fit(x, y - self._prior_mean(x), float(np.median(noises)) if noises else DEFAULT_NOISE)

    def predict(self, incumbent: TrialConfig, moves: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        """Predict the effect of each set of changes over `incumbent`."""
        if not moves:
            return []
        start = self._vector(incumbent)
        changed = [(m, self._column[name], value) for m, changes in enumerate(moves) for name, value in changes.items()]
        move, d = np.array([m for m, _, _ in changed]), np.array([d for _, d, _ in changed])
        new, old = np.array([position(self._knobs[d], value) for _, d, value in changed]), start[d]
        # covariance of each changed knob's increment with every trial: only that knob's kernel contributes
        trials, column = self._x.T[d], d[:, None]
        increments = self._kernel(new[:, None], trials, column) - self._kernel(old[:, None], trials, column)
        increments -= (self._kernel(new, self._origin[d], d) - self._kernel(old, self._origin[d], d))[:, None]
        covariance = self._sum_by(move, self._scale**2 * increments, len(moves))  # (moves, trials)
        prior_mean = self._prior_effects(d, new) - self._prior_effects(d, old)
        means = self._sum_by(move, prior_mean, len(moves)) + covariance @ self._weights
        prior = self._sum_by(move, 2 * self._scale**2 * (1 - self._kernel(new, old, d)), len(moves))
        explained = (np.linalg.solve(self._lower, covariance.T) ** 2).sum(axis=0)
        sds = np.sqrt(np.maximum(prior - explained, 0.0))
        return [Prediction(float(mean), float(sd)) for mean, sd in zip(means, sds, strict=True)]

    def _vector(self, config: TrialConfig) -> Floats:
        vector = self._origin.copy()  # a trial differs from the first one in few knobs
        for d, knob in enumerate(self._knobs):
            value = getattr(config, knob.name)
            if value != getattr(self._first, knob.name):
                vector[d] = position(knob, value)
        return vector

    def _fit(self, x: Floats, residual: Floats, noise: float) -> None:
        """Choose the prior scale by marginal likelihood, and store the Cholesky factor and the weights."""
        self._x = x
        unit = self._unit_covariance(x)
        best = -math.inf
        for scale in SCALES:
            covariance = scale**2 * unit + (noise**2 + 1e-10) * np.eye(len(x))
            lower = np.linalg.cholesky(covariance)
            weights = np.linalg.solve(lower.T, np.linalg.solve(lower, residual))
            likelihood = -0.5 * float(residual @ weights) - float(np.log(np.diag(lower)).sum())
            if likelihood > best:
                best, self._scale, self._lower, self._weights = likelihood, scale, lower, weights

    def _unit_covariance(self, x: Floats) -> Floats:
        """Prior covariance of the trials' increments over x0 at scale 1, (trials, trials)."""
        changed = np.flatnonzero((x != self._origin).any(axis=0))  # unchanged knobs contribute nothing
        x = x[:, changed]
        between = self._kernel(x[:, None, :], x[None, :, :], changed).sum(axis=-1)
        origin = self._kernel(x, self._origin[changed], changed).sum(axis=-1)
        covariance = between - origin[:, None] - origin[None, :] + len(changed)
        return np.asarray(covariance, dtype=np.float64)

    def _kernel(self, a: Floats, b: Floats, d: npt.NDArray[np.int64]) -> Floats:
        """Kernel value between positions a and b of knobs d, elementwise."""
        numbers = np.exp(-np.abs(a - b) / LENGTH_SCALE)
        with_origin = (a == self._origin[d]) | (b == self._origin[d])
        choices = np.where(a == b, 1.0, np.where(with_origin, CHOICE_CORRELATION, 2 * CHOICE_CORRELATION - 1))
        return np.asarray(np.where(self._numeric[d], numbers, choices))

    @staticmethod
    def _sum_by(groups: npt.NDArray[np.int64], values: Floats, num_groups: int) -> Floats:
        """Sum the rows of `values` by group."""
        total = np.zeros((num_groups, *values.shape[1:]))
        np.add.at(total, groups, values)
        return total

    def _prior_of(self, knob: Knob, effect: Mapping[str, Any] | None) -> tuple[Floats, Floats]:
        """Positions and prior mean effects of a knob from earlier sessions, shrunk by their standard error; 0 at x0."""
        points = {float(self._origin[self._column[knob.name]]): 0.0}
        for row in effect["values"] if effect else []:
            shrinkage = HALF_WEIGHT_SE**2 / (HALF_WEIGHT_SE**2 + row["se"] ** 2)
            mean = max(-MAX_PRIOR_EFFECT, min(MAX_PRIOR_EFFECT, shrinkage * row["mean_relative"]))
            if _offers(knob, row["value"]):
                points.setdefault(position(knob, row["value"]), mean)
        if len(points) > 1 and knob.low is not None:  # an end that was never tried gets half of the nearest effect
            for end in (0.0, 1.0):
                points.setdefault(end, points[min(points, key=lambda known: abs(known - end))] / 2)
        known = sorted(points)
        return np.array(known), np.array([points[at] for at in known])

    def _prior_mean(self, x: Floats) -> Floats:
        """The prior mean of configurations (n, knobs)."""
        knobs = np.repeat(np.arange(x.shape[1])[None, :], len(x), axis=0)
        return np.asarray(self._prior_effects(knobs, x).sum(axis=1))

    def _prior_effects(self, knobs: npt.NDArray[np.int64], positions: Floats) -> Floats:
        """Prior mean effects at positions of knobs: interpolated for numbers, 0 for choices that were never tried."""
        means = np.zeros(positions.shape)
        for d, (known, effects) in enumerate(self._prior_points):
            mask = knobs == d
            if len(known) > 1 and self._numeric[d]:
                means[mask] = np.interp(positions[mask], known, effects)
            elif len(known) > 1:
                means[mask] = ((positions[mask][:, None] == known) * effects).sum(axis=1)
        return means


def _offers(knob: Knob, value: Any) -> bool:
    if knob.low is None or knob.high is None:
        return value in (knob.choices or (False, True))
    if knob.levels:
        return value in knob.levels
    return not isinstance(value, bool | str) and knob.low <= value <= knob.high
