"""A small model of the session's response surface: which configuration may be better, and how sure is that.

A Gaussian process that is additive over knobs. With one-knob trials in the main, additive is what the data can tell:
f(x) - f(x0) is a sum over the knobs of differences, x0 being the first measured configuration. Each knob has the kernel
exp(-|u - u'| / LENGTH), u in [0, 1] being the place in its range (on a log scale where it has one); for choices it is
such that the increments of two choices over the one in x0 are independent. The covariance of increments over x0 is
k(x, y) - k(x, x0) - k(y, x0) + 1, so that knobs left at x0 contribute nothing. The prior mean is what closed sessions
measured, shrunk; the prior scale is the likeliest of SCALES. Pure numpy, no randomness; all effects are shares of
NDCG@10 at x0.
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

LENGTH = 0.5  # half a knob's range: neighbours tell much, the ends little about each other
UNLIKE = math.exp(-0.25 / LENGTH)  # another choice may do as much as a quarter of a number's range
SCALES = (0.01, 0.02, 0.04, 0.08, 0.16)  # sd of one knob's effect; most lie within a few percent
LARGEST_SHIFT = 0.5  # knowledge of other datasets says at most this much
NOISE = 0.005  # relative standard error where none was measured
HALF_TRUSTED = 0.02  # an earlier effect with this standard error counts for half


class Guess(NamedTuple):
    """Expected change of NDCG@10 over another configuration, and its standard deviation, as shares at x0."""

    mean: float
    sd: float

    @property
    def expected_improvement(self) -> float:
        """E max(0, change): what trying it promises, counting that a failure costs nothing but the trial."""
        if self.sd <= 0:
            return max(self.mean, 0.0)
        z = self.mean / self.sd
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return self.mean * (0.5 * math.erfc(-z / math.sqrt(2))) + self.sd * density


def position(knob: Knob, value: Any) -> float:
    """Where a number lies in its knob's range, in [0, 1]; of a choice, a number that names it."""
    if knob.low is None or knob.high is None:
        return float([*knob.choices, False, True].index(value))
    if knob.high == knob.low:
        return 0.0
    if knob.scale == "log":
        return math.log(value / knob.low) / math.log(knob.high / knob.low)
    return float((value - knob.low) / (knob.high - knob.low))


class Surrogate:
    """Fitted to the finished trials of a session; `history` is `Knowledge.pooled_effects` or {}.

    Needs one finished trial at least (the caller's care).
    """

    def __init__(
        self, trials: Sequence[TrialRecord], knobs: Sequence[Knob], history: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._knobs = knobs
        self._place = {knob.name: d for d, knob in enumerate(knobs)}
        self._numeric = np.array([knob.low is not None for knob in knobs])
        measured = [(t, t.outcome) for t in trials if t.outcome and t.status == "finished"]
        first, outcome = measured[0]
        self.reference_ndcg = max(outcome.metrics["ndcg@10"], 1e-9)
        self._first = first.configuration
        self._origin = np.array([position(knob, getattr(self._first, knob.name)) for knob in knobs])
        self._shifts = [self._shift(knob, history.get(knob.name)) for knob in knobs]
        x = np.array([self._vector(t.configuration) for t, _ in measured])
        y = np.array([o.metrics["ndcg@10"] / self.reference_ndcg - 1 for _, o in measured])
        noises = [o.base_delta_se / self.reference_ndcg for _, o in measured if o.base_delta_se]
        self._fit(x, y - self._mean(x), float(np.median(noises)) if noises else NOISE)

    def guesses(self, incumbent: TrialConfig, moves: Sequence[Mapping[str, Any]]) -> list[Guess]:
        """What to expect of each of some changes over `incumbent`."""
        if not moves:
            return []
        here = self._vector(incumbent)
        turned = [(m, self._place[name], value) for m, changes in enumerate(moves) for name, value in changes.items()]
        move, d = np.array([m for m, _, _ in turned]), np.array([d for _, d, _ in turned])
        new, old = np.array([position(self._knobs[d], value) for _, d, value in turned]), here[d]
        # covariance of each turned knob's increment with every trial: only that knob's kernel changes
        trials, of = self._x.T[d], d[:, None]
        gain = self._kernel(new[:, None], trials, of) - self._kernel(old[:, None], trials, of)
        gain -= (self._kernel(new, self._origin[d], d) - self._kernel(old, self._origin[d], d))[:, None]
        gained = self._summed(move, self._scale**2 * gain, len(moves))  # (moves, trials)
        shift = self._expected(d, new) - self._expected(d, old)
        means = self._summed(move, shift, len(moves)) + gained @ self._weights
        prior = self._summed(move, 2 * self._scale**2 * (1 - self._kernel(new, old, d)), len(moves))
        learnt = (np.linalg.solve(self._lower, gained.T) ** 2).sum(axis=0)
        sds = np.sqrt(np.maximum(prior - learnt, 0.0))
        return [Guess(float(mean), float(sd)) for mean, sd in zip(means, sds, strict=True)]

    def _vector(self, config: TrialConfig) -> Floats:
        vector = self._origin.copy()  # trials differ from the first one in few knobs
        for d, knob in enumerate(self._knobs):
            value = getattr(config, knob.name)
            if value != getattr(self._first, knob.name):
                vector[d] = position(knob, value)
        return vector

    def _fit(self, x: Floats, residual: Floats, noise: float) -> None:
        """Choose the scale by the marginal likelihood, and factorise."""
        self._x = x
        shape = self._shape(x)
        best = -math.inf
        for scale in SCALES:
            covariance = scale**2 * shape + (noise**2 + 1e-10) * np.eye(len(x))
            lower = np.linalg.cholesky(covariance)
            weights = np.linalg.solve(lower.T, np.linalg.solve(lower, residual))
            likelihood = -0.5 * float(residual @ weights) - float(np.log(np.diag(lower)).sum())
            if likelihood > best:
                best, self._scale, self._lower, self._weights = likelihood, scale, lower, weights

    def _shape(self, x: Floats) -> Floats:
        """Covariance of the trials' increments over the origin at scale 1, (trials, trials)."""
        turned = np.flatnonzero((x != self._origin).any(axis=0))  # the others contribute nothing
        x = x[:, turned]
        between = self._kernel(x[:, None, :], x[None, :, :], turned).sum(axis=-1)
        origin = self._kernel(x, self._origin[turned], turned).sum(axis=-1)
        shape = between - origin[:, None] - origin[None, :] + len(turned)
        return np.asarray(shape, dtype=np.float64)

    def _kernel(self, a: Floats, b: Floats, d: npt.NDArray[np.int64]) -> Floats:
        """Correlation of the effects of positions a and b of knobs d, elementwise."""
        numbers = np.exp(-np.abs(a - b) / LENGTH)
        with_origin = (a == self._origin[d]) | (b == self._origin[d])
        choices = np.where(a == b, 1.0, np.where(with_origin, UNLIKE, 2 * UNLIKE - 1))
        return np.asarray(np.where(self._numeric[d], numbers, choices))

    @staticmethod
    def _summed(groups: npt.NDArray[np.int64], values: Floats, num_groups: int) -> Floats:
        """Sums of the rows of `values` by group."""
        total = np.zeros((num_groups, *values.shape[1:]))
        np.add.at(total, groups, values)
        return total

    def _shift(self, knob: Knob, effect: Mapping[str, Any] | None) -> tuple[Floats, Floats]:
        """Positions and expected effects of a knob by earlier sessions, shrunk where little is known; 0 at x0."""
        points = {float(self._origin[self._place[knob.name]]): 0.0}
        for row in effect["values"] if effect else []:
            trust = HALF_TRUSTED**2 / (HALF_TRUSTED**2 + row["se"] ** 2)
            shift = max(-LARGEST_SHIFT, min(LARGEST_SHIFT, trust * row["mean_relative"]))
            if _offers(knob, row["value"]):
                points.setdefault(position(knob, row["value"]), shift)
        if len(points) > 1 and knob.low is not None:  # half as much at the ends, where nobody has been
            for end in (0.0, 1.0):
                points.setdefault(end, points[min(points, key=lambda place: abs(place - end))] / 2)
        places = sorted(points)
        return np.array(places), np.array([points[place] for place in places])

    def _mean(self, x: Floats) -> Floats:
        """The prior mean of configurations (n, knobs)."""
        knobs = np.repeat(np.arange(x.shape[1])[None, :], len(x), axis=0)
        return np.asarray(self._expected(knobs, x).sum(axis=1))

    def _expected(self, knobs: npt.NDArray[np.int64], positions: Floats) -> Floats:
        """What earlier sessions expect of positions of knobs: interpolated for numbers, 0 for an unknown choice."""
        expected = np.zeros(positions.shape)
        for d, (places, shifts) in enumerate(self._shifts):
            here = knobs == d
            if len(places) > 1 and self._numeric[d]:
                expected[here] = np.interp(positions[here], places, shifts)
            elif len(places) > 1:
                expected[here] = ((positions[here][:, None] == places) * shifts).sum(axis=1)
        return expected


def _offers(knob: Knob, value: Any) -> bool:
    if knob.low is None or knob.high is None:
        return value in (knob.choices or (False, True))
    return not isinstance(value, bool | str) and knob.low <= value <= knob.high
