"""The steps that a session's trials made: one knob from one value to another, and what each changed. Pure.

`knob_effects` compares every value with one value, and its mean over values adds unlike steps: 0 → 8 and 16 → 8 of a
weight may have opposite signs. Here each step stands alone, in the direction in which a trial made it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..memory.records import TrialRecord
from ..models.config import TrialConfig
from .effects import base_config, changed_knobs, isolates, scaled
from .observations import NDCG10, still_stopped
from .surrogate import Surrogate, engine_knobs
from .sweeping import each_setting


@dataclass(frozen=True)
class KnobStep:
    """A change of one knob that at least one trial made, and its effect on NDCG@10, estimated jointly from all trials.

    attributed: "alone" if a trial isolates the step (`effects.isolates`), otherwise "jointly": it is a share of the
    difference of trials that changed other knobs too. bounded: all of these trials were stopped early.
    """

    knob: str
    before: Any
    after: Any
    delta: float
    se: float
    trials: tuple[str, ...]
    attributed: Literal["alone", "jointly"]
    bounded: bool

    @property
    def sign(self) -> int:
        """1 or -1 if the effect is at least one standard error from 0, otherwise 0."""
        return 0 if abs(self.delta) < self.se else 1 if self.delta > 0 else -1


def knob_steps(trials: Sequence[TrialRecord], default: TrialConfig) -> list[KnobStep]:
    """Every step that a measured or stopped trial made over its base, knob by knob, in the order of first use.

    The settings of a sweep count as trials of their own. `default` is the configuration of base "default". A step over
    a base that is not measured has no effect that could be estimated, and is left out.
    """
    found: dict[str, dict[tuple[Any, Any], list[tuple[TrialRecord, bool]]]] = {}
    for trial, knob, step, alone in _made(trials, default):
        found.setdefault(knob, {}).setdefault(step, []).append((trial, alone))
    flat = [(knob, step, makers) for knob, steps in found.items() for step, makers in steps.items()]
    if not flat:
        return []
    model = Surrogate(trials, engine_knobs(trials[0].config["backbone"]), {}, default)
    posterior = scaled(model.posterior([{knob: step} for knob, step, _ in flat]), model.reference_ndcg)
    return [
        KnobStep(
            knob=knob,
            before=before,
            after=after,
            delta=float(delta),
            se=float(se),
            trials=tuple(dict.fromkeys(trial.handle for trial, _ in makers)),
            attributed="alone" if any(alone for _, alone in makers) else "jointly",
            bounded=all(trial.status == "stopped" for trial, _ in makers),
        )
        for (knob, (before, after), makers), delta, se in zip(flat, posterior.mean, posterior.sd, strict=True)
    ]


def _made(
    trials: Sequence[TrialRecord], default: TrialConfig
) -> Iterator[tuple[TrialRecord, str, tuple[Any, Any], bool]]:
    """(trial, knob, (before, after), whether the trial isolates the step) for every change with a known effect."""
    stopped = {trial.handle for trial in still_stopped(trials)}
    for trial in each_setting(trials):
        measured = trial.outcome and trial.outcome.base_delta is not None and NDCG10 in trial.outcome.metrics
        base = base_config(trial, trials, default)
        if base is None or not (measured or trial.handle in stopped):
            continue
        changed = changed_knobs(trial, base)
        for knob, value in changed.items():
            yield trial, knob, (getattr(base, knob), value), isolates(knob, trial, base, changed)
