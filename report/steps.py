"""The rows of a report's table of steps: one knob from one value to another, and what it changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..sandbox.steps import KnobStep
from . import formats

SHOWN = 15
ARROWS = {1: "▲", 0: "■", -1: "▼"}
SOURCES = {"measured": "measured alone", "shared": "estimated share", "bounded": "estimated, stopped early"}
CLASSES = {1: "keep", 0: "discard", -1: "crash"}


@dataclass(frozen=True)
class StepRow:
    """One step as text; `style` is the CSS class of its sign."""

    knob: str
    dimension: str
    step: str
    change: str
    style: str
    trials: str
    source: str


def step_rows(steps: Sequence[KnobStep], dimensions: Mapping[str, str]) -> tuple[list[StepRow], list[StepRow]]:
    """The `SHOWN` steps that changed most, gains first and losses last, and all others in the same order."""
    strongest = sorted(steps, key=lambda step: -abs(step.delta))
    first, rest = (sorted(part, key=lambda step: -step.delta) for part in (strongest[:SHOWN], strongest[SHOWN:]))
    return [_row(step, dimensions) for step in first], [_row(step, dimensions) for step in rest]


def _row(step: KnobStep, dimensions: Mapping[str, str]) -> StepRow:
    z = step.delta / step.se if step.se else None
    sign = formats.sign(step.delta, step.se)
    return StepRow(
        knob=step.knob,
        dimension=dimensions.get(step.knob, formats.MISSING).replace("_", " "),
        step=f"{formats.value(step.before)} → {formats.value(step.after)}",
        change=f"{ARROWS[sign]} {formats.change(step.delta, step.se, z)}",
        style=CLASSES[sign],
        trials=", ".join(step.trials),
        source=SOURCES[step.source],
    )
