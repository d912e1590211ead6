"""The model of effects of a session: one Gaussian model that is additive over knobs, fitted to all of its trials.

NDCG@10 of a trial, relative to the first one, is a common level plus one function of each knob's value, plus error:

    y_i = level + sum over knobs k of g_k(x_ik) + e_i,    cov(e) = user covariance + training variance * same checkpoint

so that trials which changed many knobs inform the effects of all of them, and trials on the same users, over the same
base or of the same checkpoint are not taken as independent (`observations.py`). Each g_k is a Gaussian process. For
numbers its kernel is scale^2 exp(-|u - u'| / LENGTH_SCALE), where u in [0, 1] is the position in the knob's range (on
a log scale if the knob has one): steps between neighbouring values are nearly independent, and a far value tells less.
For choices, every two values have the correlation CHOICE_CORRELATION. Effects pooled from closed sessions enter as
earlier measurements of the same steps, with the error se^2 + (TRANSFER scale)^2, because an effect differs between
datasets; they are the prior mean. The prior scale and the training error are averaged over a grid, weighted by marginal
likelihood and prior. If a pair of knobs is found to interact (`interactions.py`), their joint change gets a term of its
own, so that it is attributed to neither. A stopped trial counts as censored: its y_i lies between two bounds, and a
Gaussian measurement stands for them at every point of the grid (`censoring.py`). Everything else is closed form, in
float64. All effects are relative to NDCG@10 of the first trial.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..memory.records import TrialRecord
from ..models.config import KNOBS, TrialConfig, train_hash
from .action_space import Knob, inert_changes
from .censoring import between
from .interactions import LEVEL, Interaction, lack_of_fit, together
from .observations import Floats, Observations, observations

Steps = Mapping[str, tuple[Any, Any]]
"""Knob -> (value before, value after): the effect of steps is the sum of g(after) - g(before)."""

LENGTH_SCALE = 0.5  # half of a knob's range: neighbours correlate strongly, the two ends weakly
CHOICE_CORRELATION = math.exp(-0.25 / LENGTH_SCALE)  # of two choices: like numbers a quarter of a range apart
SCALES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)  # prior standard deviation of one knob's effect
USUAL_SCALE = 0.06  # most effects are a few percent; replaced by the size of the effects in closed sessions
SCALE_SPREAD = math.log(2)  # standard deviation of the logarithm of the prior scale
MIN_HISTORY = 5  # effects of closed sessions from which the usual scale is learnt
TRANSFER = 0.5  # an effect differs between datasets by this share of the prior scale
MAX_PRIOR_EFFECT = 0.5  # bound on an effect from other datasets
TRAINING_ERRORS = {0.005: 1.0, 0.01: 1.0, 0.02: 1.0, 0.04: 1.0, 0.08: 0.1}
"""Relative standard deviation of NDCG@10 between seeds of one configuration, beyond the paired error over users, and
how probable it is beforehand. On Office (six seeds, four epochs) it was 0 for SASRec and 0.04 for HSTU. The largest
value is for sessions whose trials no additive model fits."""
REVEALING = ("epochs", "patience")
REVEALING_WIDTH = 0.25
"""Factor on the prior scale of `REVEALING` knobs: raising them can only reveal what the other changes have made of the
model, so that an effect is attributed to them only where trials show it."""
LEVEL_VARIANCE = 1.0  # of the common level; so large that only differences between trials matter
SMALLEST_RELATIVE_SE = 1e-3
"""Lower bound on the error of a trial, for trials whose difference has zero variance over users."""
MIN_TESTED = 3  # two knobs interact in at least four trials: none, one, the other, both
NARROWEST = 0.999  # the lower bound of a stopped trial is at most this share of the upper one
NEGLIGIBLE = 0.01  # grid points with a smaller posterior probability are left out


class Prediction(NamedTuple):
    """Mean and standard deviation of the predicted change of NDCG@10, relative to the first trial's NDCG@10."""

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


class Posterior(NamedTuple):
    """Means (n,) and covariance (n, n) of effects, relative to the first trial's NDCG@10."""

    mean: Floats
    covariance: Floats

    @property
    def sd(self) -> Floats:
        """Standard deviations (n,)."""
        return np.sqrt(np.maximum(np.diag(self.covariance), 0.0))


def position(knob: Knob, value: Any) -> float:
    """Position of a number in the range of its knob, [0, 1] inside the range; for a choice or a bool, its index.

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


@functools.cache
def engine_knobs(backbone: str) -> tuple[Knob, ...]:
    """The engine's knobs of a backbone with their shipped ranges, for estimates that need no particular protocol."""
    return tuple(
        Knob(
            name=knob.name, type=knob.type, dimension=knob.dimension, low=knob.low, high=knob.high,
            scale=knob.about.scale, choices=knob.choices, defaults={b: value for b, value in knob.defaults.items()},
        )
        for knob in KNOBS.values()
        if backbone in knob.defaults
    )  # fmt: skip


class _KnobPrior:
    """The Gaussian process of one knob, conditioned on the effects of closed sessions."""

    def __init__(self, knob: Knob, default: Any, effect: Mapping[str, Any] | None) -> None:
        self._is_number = knob.low is not None
        self._width = REVEALING_WIDTH if knob.name in REVEALING else 1.0
        rows = [r for r in (effect["values"] if effect else []) if r["value"] != default and _offers(knob, r["value"])]
        self.effects = np.clip([r["mean_relative"] for r in rows], -MAX_PRIOR_EFFECT, MAX_PRIOR_EFFECT)
        self.variances = np.array([r["se"] ** 2 for r in rows])
        self._known = np.array([position(knob, row["value"]) for row in rows])
        self._default = np.array([position(knob, default)]) if rows else np.zeros(1)

    def moments(self, at: Floats, scales: Floats) -> tuple[Floats, Floats]:
        """Mean (scales, n) and covariance (scales, n, n) of g at these positions; only differences have a meaning."""
        size = (scales * self._width)[:, None, None] ** 2
        covariance = size * self._kernel(at, at)
        if not self._known.size:
            return np.zeros((len(scales), at.size)), covariance
        known, default = self._known, self._default
        step = self._kernel(known, known) - self._kernel(known, default) - self._kernel(default, known) + 1.0
        noise = np.diag(self.variances) + TRANSFER**2 * size * np.eye(known.size)
        shared = size * (self._kernel(at, known) - self._kernel(at, default))  # (scales, n, known)
        gain = np.swapaxes(np.linalg.solve(size * step + noise, np.swapaxes(shared, -1, -2)), -1, -2)
        return gain @ self.effects, covariance - gain @ np.swapaxes(shared, -1, -2)

    def _kernel(self, a: Floats, b: Floats) -> Floats:
        distance = np.abs(a[:, None] - b[None, :])
        if self._is_number:
            return np.asarray(np.exp(-distance / LENGTH_SCALE))
        return np.where(distance == 0, 1.0, CHOICE_CORRELATION)


class _Fit(NamedTuple):
    """The model at one point of the grid: its posterior probability, and what predictions need."""

    probability: float
    scale: float
    training_error: float
    lower: Floats  # Cholesky factor of the covariance of y, the measurements that stand for bounds included
    weights: Floats  # inverse covariance of y times (y - prior mean)


class Surrogate:
    """The fitted model; `history` is `Knowledge.pooled_effects` or {}.

    The caller guarantees at least one finished trial. `default` is the configuration that effects of closed sessions
    refer to; the first trial's if it is None.
    """

    def __init__(
        self,
        trials: Sequence[TrialRecord],
        knobs: Sequence[Knob],
        history: Mapping[str, Mapping[str, Any]],
        default: TrialConfig | None = None,
    ) -> None:
        self.observed: Observations = observations(trials)
        self.reference_ndcg = self.observed.reference_ndcg
        self.first = self.observed.trials[0].configuration
        self._knobs = {knob.name: knob for knob in knobs if knob.type != "trials"}
        refer = default or self.first
        self._priors = {
            name: _KnobPrior(knob, getattr(refer, name), history.get(name)) for name, knob in self._knobs.items()
        }
        self.trial_steps = [self.steps_between(self.first, t.configuration) for t in self.observed.all_trials]
        self._relative = self.observed.ndcg / self.reference_ndcg - 1
        self._fits = self._fit(None)
        self.interaction = self._find_interaction()
        if self.interaction:
            self._fits = self._fit(self.interaction.knobs)

    @property
    def training_error(self) -> float:
        """Posterior mean of the relative standard deviation between seeds."""
        return sum(fit.probability * fit.training_error for fit in self._fits)

    @property
    def scale(self) -> float:
        """The prior scale of the most probable point of the grid."""
        return max(self._fits).scale

    def steps_between(self, before: TrialConfig, after: TrialConfig) -> dict[str, tuple[Any, Any]]:
        """The knobs in which two configurations differ, without those that have no effect in `after`."""
        pairs = ((name, getattr(before, name), getattr(after, name)) for name in self._knobs)
        steps = {name: (old, new) for name, old, new in pairs if old != new}
        inert = inert_changes(after, {name: new for name, (_, new) in steps.items()})
        return {name: step for name, step in steps.items() if name not in inert}

    def predict(self, incumbent: TrialConfig, moves: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        """Predict the effect of each set of changes over `incumbent`."""
        if not moves:
            return []
        before = incumbent.model_dump()
        steps = [{name: (before[name], value) for name, value in changes.items()} for changes in moves]
        means, variances = self._averaged(steps, full=False)
        sds = np.sqrt(np.maximum(variances, 0.0))
        return [Prediction(float(mean), float(sd)) for mean, sd in zip(means, sds, strict=True)]

    def posterior(self, steps: Sequence[Steps]) -> Posterior:
        """Joint posterior of the effects of several sets of steps, averaged over the grid."""
        return Posterior(*self._averaged(steps, full=True))

    def most_probable(self, steps: Sequence[Steps]) -> tuple[Posterior, Posterior]:
        """(prior, posterior) of the effects of steps at the most probable point of the grid."""
        fit = max(self._fits)
        mean, covariance = self._prior([*self.trial_steps, *steps], [fit.scale])[fit.scale]
        n = len(self.trial_steps)
        return Posterior(mean[n:], covariance[n:, n:]), Posterior(*self._conditioned(fit, mean, covariance, full=True))

    def error_covariance(self, training_error: float) -> Floats:
        """Covariance (n + m, n + m) of the relative errors of the trials, the stopped ones last."""
        users = self.observed.user_covariance / self.reference_ndcg**2
        smallest = SMALLEST_RELATIVE_SE**2 * np.eye(len(users))
        return users + training_error**2 * self.observed.same_checkpoint + smallest

    def variance_reductions(self, a: Steps, b: Steps, new: Sequence[tuple[TrialConfig, str]]) -> Floats:
        """The share of the variance of effect(a) - effect(b) that each new trial would take away, (new,).

        new: configurations with the handle of the measured trial that they change. At the most probable point of the
        grid, cov(d, y | trials)^2 / (var(y | trials) var(d | trials)) for the difference d and the outcome y. The error
        of y over users is that of its base plus the median paired error; a checkpoint that exists is shared.
        """
        fit, n = max(self._fits), len(self.trial_steps)
        steps = [*self.trial_steps, a, b, *(self.steps_between(self.first, config) for config, _ in new)]
        prior = self._prior(steps, [fit.scale])[fit.scale][1]
        known, own = self._errors_of(new, fit.training_error)
        outcome = prior[n + 2 :, :n] + LEVEL_VARIANCE + known  # (new, trials)
        target = prior[n] - prior[n + 1]
        explained_target = np.linalg.solve(fit.lower, target[:n])
        explained_outcome = np.linalg.solve(fit.lower, outcome.T)  # (trials, new)
        shared = target[n + 2 :] - explained_target @ explained_outcome
        spread = np.diag(prior)[n + 2 :] + LEVEL_VARIANCE + own - (explained_outcome**2).sum(axis=0)
        variance = target[n] - target[n + 1] - explained_target @ explained_target
        return np.asarray(shared**2 / (spread * variance))

    def _errors_of(self, new: Sequence[tuple[TrialConfig, str]], training_error: float) -> tuple[Floats, Floats]:
        """Covariance of the errors of new trials with those of the measured ones (new, trials), and their variances."""
        users = self.observed.user_covariance / self.reference_ndcg**2
        own, paired = np.diag(users), self.observed.paired_variance / self.reference_ndcg**2
        row_of = {trial.handle: row for row, trial in enumerate(self.observed.trials)}
        hashes = np.array([trial.train_hash for trial in self.observed.all_trials])
        bases = [row_of[handle] for _, handle in new]
        same = np.array([hashes == train_hash(config) for config, _ in new], dtype=np.float64)
        variances = own[bases] + paired + training_error**2 + SMALLEST_RELATIVE_SE**2
        return users[bases] + training_error**2 * same, variances

    def _fit(self, pair: tuple[str, str] | None) -> list[_Fit]:
        """The model at every point of the grid that is not negligible; the joint change of `pair` has its own term."""
        usual = self._usual_scale()
        both = together(pair, self.trial_steps) if pair else np.zeros(len(self.trial_steps))
        nuisance = LEVEL_VARIANCE * (1.0 + np.outer(both, both))
        priors = self._prior(self.trial_steps, SCALES)
        points = [(scale, error) for scale in priors for error in TRAINING_ERRORS]
        covariance = np.stack([priors[scale][1] + nuisance + self.error_covariance(error) for scale, error in points])
        likelihood, lower, weights = self._likelihoods(np.stack([priors[scale][0] for scale, _ in points]), covariance)
        found = []
        for row, (scale, error) in enumerate(points):
            belief = math.log(TRAINING_ERRORS[error]) - 0.5 * (math.log(scale / usual) / SCALE_SPREAD) ** 2
            found.append(_Fit(float(likelihood[row]) + belief, scale, error, lower[row], weights[row]))
        best = max(fit.probability for fit in found)
        likely = [f._replace(probability=math.exp(f.probability - best)) for f in found]
        total = sum(fit.probability for fit in likely)
        kept = [fit for fit in likely if fit.probability >= NEGLIGIBLE * total]
        total = sum(fit.probability for fit in kept)
        return [fit._replace(probability=fit.probability / total) for fit in kept]

    def _likelihoods(self, mean: Floats, covariance: Floats) -> tuple[Floats, Floats, Floats]:
        """log p(measurements, and bounds hold) (g,), and `lower` and `weights` of `_Fit`, at every point of the grid.

        mean (g, n + m) and covariance (g, n + m, n + m) of y before the trials.
        """
        n, residual = len(self.observed.trials), self._relative - mean
        lower = _cholesky(covariance)
        half = _solve(lower[:, :n, :n], residual[:, :n])
        diagonal = np.diagonal(lower[:, :n, :n], axis1=1, axis2=2)
        likelihood = np.asarray(-0.5 * (half**2).sum(axis=1) - np.log(diagonal).sum(axis=1))
        if self.observed.stopped:
            rest = lower[:, n:, n:]  # y of the stopped trials given the measurements, relative to its upper bounds
            expected = (lower[:, n:, :n] @ half[..., None])[..., 0] - residual[:, n:]
            widths = self.observed.ndcg[n:] - np.minimum(self.observed.floors, NARROWEST * self.observed.ndcg[n:])
            low, high = -widths / self.reference_ndcg, np.zeros(len(widths))
            sites = between(expected, rest @ np.swapaxes(rest, 1, 2), low, high)
            likelihood += sites.log_probability
            residual = np.concatenate([residual[:, :n], residual[:, n:] + sites.values], axis=1)
            noise = np.concatenate([np.zeros((len(mean), n)), sites.variances], axis=1)
            lower = _cholesky(covariance + noise[..., None] * np.eye(noise.shape[1]))
            half = _solve(lower, residual)
        return likelihood, lower, _solve(np.swapaxes(lower, 1, 2), half)

    def _find_interaction(self) -> Interaction | None:
        """The pair of knobs that the finished trials show to interact, if any; bounds fit any pair too easily.

        A misfit looks like a large training error. It is therefore estimated again with a term for the best pair, and
        the test uses that estimate.
        """
        n = len(self.observed.trials)
        if n <= MIN_TESTED:
            return None
        measured, steps = self._relative[:n], self.trial_steps[:n]
        found = lack_of_fit(measured, self.error_covariance(min(TRAINING_ERRORS))[:n, :n], steps)
        if found is None or found.best.p > LEVEL:  # larger errors only make it less significant
            return None
        fits = self._fit(found.best.knobs)
        error = sum(fit.probability * fit.training_error for fit in fits)
        found = lack_of_fit(measured, self.error_covariance(error)[:n, :n], steps)
        return found.best if found and found.demanded else None

    def _usual_scale(self) -> float:
        """The root mean square of the effects of closed sessions without their errors; USUAL_SCALE if there are few."""
        effects = np.concatenate([np.zeros(0), *(prior.effects for prior in self._priors.values())])
        variances = np.concatenate([np.zeros(0), *(prior.variances for prior in self._priors.values())])
        if effects.size < MIN_HISTORY:
            return USUAL_SCALE
        size = math.sqrt(max(float((effects**2 - variances).mean()), 0.0))
        return min(max(size, SCALES[0]), SCALES[-1])

    def _averaged(self, steps: Sequence[Steps], *, full: bool) -> tuple[Floats, Floats]:
        """Mean, and covariance (or only the variances) of effects, averaged over the grid.

        The moments of a mixture: cov = sum p (cov_p + mean_p mean_p') - mean mean'.
        """
        prior = self._prior([*self.trial_steps, *steps], sorted({fit.scale for fit in self._fits}))
        moments = [(fit.probability, *self._conditioned(fit, *prior[fit.scale], full=full)) for fit in self._fits]
        mean = sum((p * m for p, m, _ in moments), start=np.zeros(len(steps)))
        spread = np.zeros((len(steps), len(steps)) if full else len(steps))
        for p, m, c in moments:
            spread += p * (c + (np.outer(m - mean, m - mean) if full else (m - mean) ** 2))
        return mean, spread

    def _conditioned(self, fit: _Fit, mean: Floats, covariance: Floats, *, full: bool) -> tuple[Floats, Floats]:
        """Condition the steps after the trials' own on the measured trials."""
        n = len(self.trial_steps)
        shared = covariance[n:, :n]  # (steps, trials)
        explained = np.linalg.solve(fit.lower, shared.T)  # (trials, steps)
        rest = covariance[n:, n:]
        spread = rest - explained.T @ explained if full else np.diag(rest) - (explained**2).sum(axis=0)
        return mean[n:] + shared @ fit.weights, spread

    def _prior(self, steps: Sequence[Steps], scales: Sequence[float]) -> dict[float, tuple[Floats, Floats]]:
        """Prior mean (n,) and covariance (n, n) of the effects of steps at each scale: a sum over knobs."""
        mean, covariance = np.zeros((len(scales), len(steps))), np.zeros((len(scales), len(steps), len(steps)))
        for name, rows in _rows_by_knob(steps).items():
            knob = self._knobs[name]
            ends = np.array([[position(knob, value) for value in steps[row][name]] for row in rows])  # (rows, 2)
            at, index = np.unique(ends, return_inverse=True)
            before, after = index.reshape(ends.shape).T
            values, spread = self._priors[name].moments(at, np.array(scales))
            mean[:, rows] += values[:, after] - values[:, before]
            increments = spread[:, after] - spread[:, before]  # (scales, rows, positions)
            covariance[:, rows[:, None], rows] += increments[:, :, after] - increments[:, :, before]
        return {scale: (mean[i], covariance[i]) for i, scale in enumerate(scales)}


def _cholesky(matrices: Floats) -> Floats:
    """The lower Cholesky factors (g, n, n)."""
    return np.asarray(np.linalg.cholesky(matrices), dtype=np.float64)


def _solve(matrices: Floats, vectors: Floats) -> Floats:
    """The solutions (g, n) of g systems of equations."""
    return np.asarray(np.linalg.solve(matrices, vectors[..., None])[..., 0], dtype=np.float64)


def _rows_by_knob(steps: Sequence[Steps]) -> dict[str, npt.NDArray[np.int64]]:
    rows: dict[str, list[int]] = {}
    for row, changes in enumerate(steps):
        for name in changes:
            rows.setdefault(name, []).append(row)
    return {name: np.array(found) for name, found in rows.items()}


def _offers(knob: Knob, value: Any) -> bool:
    if knob.low is None or knob.high is None:
        return value in (knob.choices or (False, True))
    if knob.levels:
        return value in knob.levels
    return not isinstance(value, bool | str) and knob.low <= value <= knob.high
