"""Small charts of what each knob's values changed, one per knob."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..sandbox.steps import KnobStep, ValueEffect, value_effects
from . import formats
from .drawing import ACCENT, CRASH, DISCARD, INK, KEEP, MUTED, SMALL, chart, small_title, svg

# Signs differ in shape as well as colour, for readers who cannot tell green from red.
MARKS = {1: ("^", KEEP), 0: ("s", DISCARD), -1: ("v", CRASH)}


def knob_charts(steps: Sequence[KnobStep], default: Mapping[str, Any]) -> list[str]:
    """A chart per knob: the change of NDCG@10 at each tried value over the default value; the largest gain first."""
    knobs = dict.fromkeys(step.knob for step in steps)
    effects = {knob: value_effects([step for step in steps if step.knob == knob], default[knob]) for knob in knobs}
    ordered = sorted(effects, key=lambda knob: -max(one.delta for one in effects[knob]))
    return [_chart(knob, _reference(steps, knob, default), effects[knob]) for knob in ordered]


def _reference(steps: Sequence[KnobStep], knob: str, default: Mapping[str, Any]) -> Any:
    """The value that the effects of a knob are relative to, as `value_effects` chooses it."""
    values = [value for step in steps if step.knob == knob for value in (step.before, step.after)]
    return default[knob] if default[knob] in values else values[0]


def _chart(knob: str, reference: Any, effects: Sequence[ValueEffect]) -> str:
    found = {one.value: one for one in effects}
    values = sorted([reference, *found], key=_sorting)
    with chart(SMALL) as (figure, axes):
        axes.axhline(0, color=MUTED, linewidth=1)
        if not isinstance(reference, bool | str):
            heights = [found[value].delta if value in found else 0.0 for value in values]
            axes.plot(range(len(values)), heights, color=ACCENT, linewidth=1.2, zorder=1)
        for place, value in enumerate(values):
            _mark(axes, place, found.get(value))
        names = [formats.value(value) for value in values]
        crowded = sum(map(len, names)) > 26
        if crowded:
            figure.subplots_adjust(bottom=0.38)
        axes.set_xticks(range(len(values)), names, rotation=40 if crowded else 0, ha="right" if crowded else "center")
        axes.set_xlim(-0.5, len(values) - 0.5)
        small_title(figure, knob)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(lambda height, _: f"{height:+.4f}".rstrip("0") if abs(height) > 1e-9 else "0")
        axes.grid(axis="y")
        title = f"Effect of {knob} on validation NDCG@10, relative to {formats.value(reference)}"
        texts = [f"{formats.value(one.value)}: {formats.change(one.delta, one.se)}" for one in effects]
        return svg(figure, f"knob-{knob}", title, "; ".join(texts))


def _mark(axes: Axes, place: int, effect: ValueEffect | None) -> None:
    """A point with its standard error; the reference value is an open circle at 0."""
    if effect is None:
        axes.plot(place, 0, "o", color=INK, fillstyle="none", markersize=6)
        return
    mark, colour = MARKS[formats.sign(effect.delta, effect.se)]
    axes.errorbar(place, effect.delta, yerr=effect.se, fmt=mark, color=colour, markersize=6, elinewidth=1.2)


def _sorting(value: Any) -> tuple[int, Any]:
    """Numbers in their order, then choices in alphabetical order."""
    return (1, str(value)) if isinstance(value, bool | str) else (0, value)
