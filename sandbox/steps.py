"""The steps that a session's trials made: one knob from one value to another, and what each changed. Pure.

`knob_effects` compares every value with one value, and its mean over values adds unlike steps: 0 → 8 and 16 → 8 of a
weight may have opposite signs. Here each step stands alone, in the direction in which a trial made it, with the paired
difference that was measured where a trial changed nothing else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ..memory.records import TrialRecord
from ..models.config import TrialConfig
from .effects import base_config, changed_knobs, isolates, scaled
from .joint import model_of
from .observations import NDCG10, still_stopped
from .sweeping import each_setting

SMALLEST_SE = 1e-6  # two models that rank all users alike have a paired error of 0


@dataclass(frozen=True)
class KnobStep:
    """A change of one knob that at least one trial made, and its effect on NDCG@10.

    source     "measured": the paired difference of the trials that isolate the step (`effects.isolates`), weighted by
               1/se^2; "shared": the estimated share of trials that changed other knobs too; "bounded": estimated from
               trials that were stopped early
    """

    knob: str
    before: Any
    after: Any
    delta: float
    se: float
    trials: tuple[str, ...]
    source: Literal["measured", "shared", "bounded"]


class ValueEffect(NamedTuple):
    """What the steps of a knob add up to from a reference value to `value`: a change of NDCG@10 and its error."""

    value: Any
    delta: float
    se: float


class _Made(NamedTuple):
    """One trial, or one setting of a sweep, that made a step."""

    trial: TrialRecord
    alone: bool


def knob_steps(trials: Sequence[TrialRecord], default: TrialConfig) -> list[KnobStep]:
    """Every step that a measured or stopped trial made over its base, knob by knob, in the order of first use.

    The settings of a sweep count as trials of their own. `default` is the configuration of base "default". A step over
    a base that is not measured has no known effect and is left out, and so is an estimated share if a trial measured
    the step in the other direction. Steps to or over an ensemble or a student are left out: they are
    not of knobs alone.
    """
    found: dict[str, dict[tuple[Any, Any], list[_Made]]] = {}
    for made, knob, step in _made(trials, default):
        found.setdefault(knob, {}).setdefault(step, []).append(made)
    flat = [(knob, step, makers) for knob, steps in found.items() for step, makers in steps.items()]
    model = model_of(trials, default)
    if not flat or model is None:
        return []
    estimated = scaled(model.posterior([{knob: step} for knob, step, _ in flat]), model.reference_ndcg)
    steps = [
        _step(knob, step, makers, float(delta), float(se))
        for (knob, step, makers), delta, se in zip(flat, estimated.mean, estimated.sd, strict=True)
    ]
    measured = {(step.knob, step.before, step.after) for step in steps if step.source == "measured"}
    return [step for step in steps if step.source == "measured" or (step.knob, step.after, step.before) not in measured]


def value_effects(steps: Sequence[KnobStep], reference: Any) -> list[ValueEffect]:
    """The effect of every value of one knob over `reference`, or over the first step's base if no step touches it.

    Weighted least squares over the measured steps: of several ways from one value to another, the more certain one
    counts more. Estimated steps are used only between values that measured steps do not connect. Values that no chain
    of steps connects with the reference are left out. The reference itself is not in the result.
    """
    measured = [step for step in steps if step.source == "measured"]
    steps = [*measured, *(s for s in steps if s not in measured and s.after not in _connected(measured, s.before))]
    values = list(dict.fromkeys(value for step in steps for value in (step.before, step.after)))
    start = reference if reference in values else values[0]
    reached = _connected(steps, start)
    nodes = [value for value in values if value in reached and value != start]
    place = {value: index for index, value in enumerate(nodes)}
    used = [step for step in steps if step.before in reached]
    design = np.zeros((len(used), len(nodes)))
    for row, step in enumerate(used):
        for value, side in ((step.after, 1.0), (step.before, -1.0)):
            if value != start:
                design[row, place[value]] += side
    weights = np.array([max(step.se, SMALLEST_SE) ** -2 for step in used])
    covariance = np.linalg.inv(design.T @ (weights[:, None] * design))
    heights = covariance @ design.T @ (weights * np.array([step.delta for step in used]))
    return [
        ValueEffect(value, float(height), float(se))
        for value, height, se in zip(nodes, heights, np.sqrt(np.diag(covariance)), strict=True)
    ]


def _made(
    trials: Sequence[TrialRecord], default: TrialConfig
) -> Iterator[tuple[_Made, str, tuple[Any, Any]]]:
    """Every change of a knob with a known effect: who made it, the knob, (before, after)."""
    stopped = {trial.handle for trial in still_stopped(trials)}
    for trial in each_setting(trials):
        measured = trial.outcome and trial.outcome.base_delta is not None and NDCG10 in trial.outcome.metrics
        base = base_config(trial, trials, default)
        if base is None or not (measured or trial.handle in stopped):
            continue
        if trial.uses_models or base.uses_models:
            continue  # the joint model describes what knobs do alone
        changed = changed_knobs(trial, base)
        for knob, value in changed.items():
            yield _Made(trial, isolates(knob, trial, base, changed)), knob, (getattr(base, knob), value)


def _step(knob: str, step: tuple[Any, Any], makers: Sequence[_Made], delta: float, se: float) -> KnobStep:
    """The step with its measured difference; with the estimate `delta` ± `se` if no trial isolates it."""
    before, after = step
    alone = [made.trial for made in makers if made.alone and made.trial.status != "stopped"]
    if alone:
        delta, se = _pooled(alone)
        return KnobStep(knob, before, after, delta, se, _handles(alone), "measured")
    stopped = all(made.trial.status == "stopped" for made in makers)
    handles = _handles([made.trial for made in makers])
    return KnobStep(knob, before, after, delta, se, handles, "bounded" if stopped else "shared")


def _pooled(trials: Sequence[TrialRecord]) -> tuple[float, float]:
    """Mean paired difference to the base, weighted by 1/se^2, and its standard error."""
    outcomes = [trial.outcome for trial in trials if trial.outcome]
    deltas = np.array([outcome.base_delta or 0.0 for outcome in outcomes])
    weights = np.array([max(outcome.base_delta_se or 0.0, SMALLEST_SE) ** -2 for outcome in outcomes])
    return float(weights @ deltas / weights.sum()), float(weights.sum() ** -0.5)


def _handles(trials: Sequence[TrialRecord]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(trial.handle for trial in trials))


def _connected(steps: Sequence[KnobStep], start: Any) -> set[Any]:
    """The values that a chain of steps connects with `start`."""
    reached, grew = {start}, True
    while grew:
        ends = [{step.before, step.after} for step in steps if {step.before, step.after} & reached]
        size = len(reached)
        reached |= set().union(*ends)
        grew = len(reached) > size
    return reached
