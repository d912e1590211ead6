"""Trials that bundle several changes, take one of a bundle back, or separate two suspects best. Pure.

bundle       several untried changes of different knobs, each with a positive expected gain, over the incumbent
ablation     the last bundle without the change whose share is the most doubtful
separation   the one trial that shrinks the uncertainty about two entangled knobs most

Two steps are entangled if their posterior covariance is negative: the trials know their sum better than either. The
suspects are the two with the most negative covariance, -cov(a, b): large shares that are known badly matter most. What
separates them is their difference d = effect(a) - effect(b), whose variance a trial with outcome y lowers by
cov(d, y)^2 / var(y), which follows in closed form from the posterior before the trial has run.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..memory.records import TrialRecord
from ..models.config import TrialConfig
from .effects import base_config, changed_knobs, steps_of
from .joint import Share, shares
from .observations import Floats
from .surrogate import Prediction, Steps, Surrogate

MIN_BUNDLE, MAX_BUNDLE = 3, 5  # two changes are a pair, which `proposals.py` offers
MIN_PROBABILITY = 0.6  # a change of a bundle helps with at least this probability
MAX_BASES = 6  # trials that a separating trial may take a change back from: the last ones, and the incumbent
ENTANGLED = -0.3  # two steps with a larger correlation are not worth a trial
MIN_REDUCTION = 0.2  # share of the variance of the suspects' difference that a separating trial takes away

Allowed = Callable[[TrialConfig, Mapping[str, Any]], bool]
"""Whether changes over a base configuration are valid, new, effective and not refused."""


class Suggestion(NamedTuple):
    """A trial to propose: `changes` over the trial `base`; the prediction is relative to the first trial's NDCG@10."""

    source: str
    changes: dict[str, Any]
    base: str
    prediction: Prediction
    reason: str


class Separation(NamedTuple):
    """The suspects, the separating trial, and the share of the variance of their difference that it takes away."""

    suspects: tuple[Share, Share]
    changes: dict[str, Any]
    base: str
    reduction: float


def suggest(
    model: Surrogate, trials: Sequence[TrialRecord], incumbent: TrialRecord, default: TrialConfig, allowed: Allowed
) -> list[Suggestion]:
    """The ablation of the last bundle and the best separating trial, without duplicates; fewer if there are none."""
    found = [ablation(model, trials, default, allowed), _separating(model, trials, incumbent, default, allowed)]
    kept: list[Suggestion] = []
    for one in found:
        if one and all((one.base, one.changes) != (other.base, other.changes) for other in kept):
            kept.append(one)
    return kept


def bundle(
    singles: Sequence[tuple[Mapping[str, Any], Prediction]], model: Surrogate, incumbent: TrialRecord, allowed: Allowed
) -> Suggestion | None:
    """Several untried changes of different knobs at once, each of which is expected to help; None if there are few.

    singles: changes of one knob over the incumbent with their predictions, in any order.
    """
    best: dict[str, tuple[Mapping[str, Any], Prediction]] = {}
    for changes, prediction in sorted(singles, key=lambda single: -single[1].mean):
        (knob,) = changes
        likely = prediction.mean > 0 and _chance(prediction) >= MIN_PROBABILITY
        if likely and knob not in best and allowed(incumbent.configuration, changes):
            best[knob] = changes, prediction
    chosen = list(best.values())[:MAX_BUNDLE]
    merged = {knob: value for changes, _ in chosen for knob, value in changes.items()}
    if len(chosen) < MIN_BUNDLE or not allowed(incumbent.configuration, merged):
        return None
    reason = f"{len(chosen)} changes that are each expected to help, over {incumbent.handle}; take one back afterwards"
    (prediction,) = model.predict(incumbent.configuration, [merged])
    return Suggestion("bundle", merged, incumbent.handle, prediction, reason)


def ablation(
    model: Surrogate, trials: Sequence[TrialRecord], default: TrialConfig, allowed: Allowed
) -> Suggestion | None:
    """The last bundle without the change that is the least likely to have helped; None if that was tried already."""
    for trial in reversed(model.observed.trials):
        base = base_config(trial, trials, default)
        if base is None or len(steps_of(trial, base)) < 2:
            continue
        parts = shares(model, trial, base)
        doubtful = min(parts, key=lambda share: share.z)
        back = {doubtful.knob: doubtful.before}
        if not allowed(trial.configuration, back):
            return None
        (prediction,) = model.predict(trial.configuration, [back])
        reason = (
            f"{trial.handle} changed {len(parts)} knobs; the share of {doubtful.knob} {doubtful.before} -> "
            f"{doubtful.after} is the most doubtful: {doubtful.delta:+.4f} ± {doubtful.se:.4f}; take it back"
        )
        return Suggestion("ablation", back, trial.handle, prediction, reason)
    return None


def separation(
    model: Surrogate, trials: Sequence[TrialRecord], incumbent: TrialRecord, default: TrialConfig, allowed: Allowed
) -> Separation | None:
    """The trial that separates the two most entangled steps best; None if no two are entangled, or no trial helps."""
    steps = _tried_steps(trials, default)
    if len(steps) < 2:
        return None
    covariance = model.most_probable(steps)[1].covariance
    pairs = itertools.combinations(range(len(steps)), 2)
    a, b = min((p for p in pairs if set(steps[p[0]]) != set(steps[p[1]])), key=lambda p: covariance[p], default=(0, 0))
    if a == b or covariance[a, b] >= ENTANGLED * math.sqrt(covariance[a, a] * covariance[b, b]):
        return None
    candidates = take_backs(model, trials, incumbent, default, allowed)
    if not candidates:
        return None
    reductions = variance_reductions(model, steps[a], steps[b], candidates)
    best = int(np.argmax(reductions))
    if reductions[best] < MIN_REDUCTION:
        return None
    changes, base = candidates[best]
    found = model.posterior([steps[a], steps[b]])
    suspects = [
        Share(knob, before, after, float(mean) * model.reference_ndcg, float(sd) * model.reference_ndcg)
        for step, mean, sd in zip((steps[a], steps[b]), found.mean, found.sd, strict=True)
        for knob, (before, after) in step.items()
    ]
    return Separation((suspects[0], suspects[1]), changes, base.handle, float(reductions[best]))


def take_backs(
    model: Surrogate, trials: Sequence[TrialRecord], incumbent: TrialRecord, default: TrialConfig, allowed: Allowed
) -> list[tuple[dict[str, Any], TrialRecord]]:
    """(changes, base): one change of a recent trial or of the incumbent taken back, or one made over the incumbent."""
    bases = {t.handle: t for t in [*model.observed.trials[-MAX_BASES:], incumbent]}
    found = []
    for trial in bases.values():
        for knob in model.steps_between(default, trial.configuration):
            found.append(({knob: getattr(default, knob)}, trial))
        base = base_config(trial, trials, default)
        for knob, value in (changed_knobs(trial, base) if base else {}).items():
            found += [({knob: getattr(base, knob)}, trial), ({knob: value}, incumbent)]
    for trial in model.observed.stopped[-MAX_BASES:]:  # it has no model to take a change back from
        base = base_config(trial, trials, default)
        found += [({knob: value}, incumbent) for knob, value in (changed_knobs(trial, base) if base else {}).items()]
    unique = {(base.handle, repr(changes)): (changes, base) for changes, base in found}
    return [(changes, base) for changes, base in unique.values() if allowed(base.configuration, changes)]


def variance_reductions(
    model: Surrogate, a: Steps, b: Steps, candidates: Sequence[tuple[Mapping[str, Any], TrialRecord]]
) -> Floats:
    """The share of the variance of effect(a) - effect(b) that each candidate trial would take away, (candidates,)."""
    new = [(base.configuration.model_copy(update=dict(changes)), base.handle) for changes, base in candidates]
    return model.variance_reductions(a, b, new)


def _separating(
    model: Surrogate, trials: Sequence[TrialRecord], incumbent: TrialRecord, default: TrialConfig, allowed: Allowed
) -> Suggestion | None:
    found = separation(model, trials, incumbent, default, allowed)
    if found is None:
        return None
    base = next(t for t in model.observed.trials if t.handle == found.base)
    (prediction,) = model.predict(base.configuration, [found.changes])
    names = " and ".join(f"{s.knob} {s.before} -> {s.after} ({s.delta:+.4f} ± {s.se:.4f})" for s in found.suspects)
    reason = (
        f"{names} were changed together, and the trials do not tell which one acted; this trial separates them best: "
        f"it takes away {found.reduction:.0%} of the variance of their difference"
    )
    return Suggestion("separation", found.changes, found.base, prediction, reason)


def _tried_steps(trials: Sequence[TrialRecord], default: TrialConfig) -> list[Steps]:
    """Every step that a finished or stopped trial made over its base, once."""
    found: dict[str, Steps] = {}
    for trial in trials:
        base = base_config(trial, trials, default)
        if not trial.concluded or base is None:
            continue
        for knob, value in changed_knobs(trial, base).items():
            step = {knob: (getattr(base, knob), value)}
            found.setdefault(repr(step), step)
    return list(found.values())


def _chance(prediction: Prediction) -> float:
    """The probability that the change helps."""
    return 0.5 * math.erfc(-prediction.mean / max(prediction.sd, 1e-12) / math.sqrt(2))
