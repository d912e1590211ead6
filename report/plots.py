"""The two charts of a report as inline SVG. Their colours are CSS variables of the page, so they follow its theme.

Importing this module imports matplotlib, which takes half a second; only `html.render` imports it, when called.
"""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..data.wording import counted
from ..memory.records import TrialRecord
from ..tools.views import KnobEffect
from .gather import ndcg
from .tables import verdict_label

# matplotlib needs colours but the page uses CSS variables: `_svg` replaces each placeholder colour by its variable.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
KEEP, DISCARD, CRASH, ACCENT = "#040404", "#050505", "#060606", "#070707"
VARIABLES = {
    INK: "--ink", MUTED: "--muted", LINE: "--line", KEEP: "--keep", DISCARD: "--discard", CRASH: "--crash",
    ACCENT: "--accent",
}
# Verdicts differ in shape as well as colour, for readers who cannot tell green from red.
MARKS: dict[str, tuple[str, str]] = {"keep": ("o", KEEP), "discard": ("s", DISCARD), "crash": ("x", CRASH)}
STYLE: Any = {
    "svg.fonttype": "none",  # keep text as text: small files, searchable, accessible to screen readers
    "svg.hashsalt": "virtualmle",  # equal figures give equal bytes
    "font.family": "sans-serif",
    "font.size": 11,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def best_so_far(trials: Sequence[TrialRecord], default_ndcg: float | None) -> str:
    """Chart of validation NDCG@10 by trial, with the best so far as a step line; "" if no trial has finished."""
    scored = [(trial, value) for trial in trials if (value := ndcg(trial)) is not None]
    if not scored:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axes = figure.add_subplot()
        numbers = [trial.number for trial, _ in scored]
        best = list(accumulate((value for _, value in scored), max))
        last = trials[-1].number  # extend the line to the last trial, even if it has not finished
        axes.step([*numbers, last], [*best, best[-1]], where="post", color=ACCENT, linewidth=2, label="best so far")
        if default_ndcg is not None:
            axes.axhline(default_ndcg, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="default")
        _dots(axes, scored)
        _bounds(axes, [(trial.number, trial.bound) for trial in trials if trial.bound is not None])
        _crashes(axes, [trial.number for trial in trials if verdict_label(trial) == "crash"])
        axes.set(xlabel="trial", ylabel="validation NDCG@10")
        axes.set_xlim(0.5, last + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, columnspacing=1.2, handletextpad=0.4)
        sentence = f"{counted(len(scored), 'finished trial')}; the best reached {best[-1]:.4f} on validation."
        return _svg(figure, "best", "Best validation NDCG@10 so far, by trial", sentence)


def _dots(axes: Axes, scored: Sequence[tuple[TrialRecord, float]]) -> None:
    for label in ("discard", "keep"):
        points = [(t.number, value, t.outcome) for t, value in scored if verdict_label(t) == label]
        if not points:
            continue
        numbers, values, outcomes = zip(*points, strict=True)
        errors = [outcome.ndcg_se or 0.0 if outcome else 0.0 for outcome in outcomes]
        mark, colour = MARKS[label]
        axes.errorbar(
            numbers, values, yerr=errors, fmt=mark, color=colour, markersize=6, elinewidth=1, label=f"{label} (± SE)"
        )


def _bounds(axes: Axes, points: Sequence[tuple[int, float]]) -> None:
    """Mark the upper bounds of stopped trials by triangles that point down."""
    if points:
        numbers, bounds = zip(*points, strict=True)
        axes.plot(numbers, bounds, "v", color=DISCARD, markersize=6, fillstyle="none", label="stopped (at most)")


def _crashes(axes: Axes, numbers: Sequence[int]) -> None:
    """Mark crashes at the bottom of the chart, because they have a trial number but no metric."""
    if numbers:
        mark, colour = MARKS["crash"]
        axes.plot(
            numbers, [0.03] * len(numbers), mark, color=colour, markersize=7, markeredgewidth=2, label="crash",
            transform=axes.get_xaxis_transform(), clip_on=False,
        )


def knob_effects(effects: Mapping[str, KnobEffect]) -> str:
    """Mean effect of changing each knob, with its standard error, strongest first; "" without effects."""
    measured = [(knob, effect.mean_delta, effect.se) for knob, effect in effects.items()]
    if not measured:
        return ""
    measured.sort(key=lambda row: row[1])
    knobs, deltas, errors = zip(*measured, strict=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.34 * len(knobs)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(0, color=MUTED, linewidth=1)
        for row, (delta, error) in enumerate(zip(deltas, errors, strict=True)):
            colour = KEEP if delta > 0 else CRASH
            axes.errorbar(delta, row, xerr=error, fmt="o", color=colour, markersize=6, elinewidth=1.5)
        axes.set_yticks(range(len(knobs)), knobs)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(-0.7, len(knobs) - 0.3)
        axes.set_xlabel("mean change of validation NDCG@10 (± SE)")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.grid(axis="x")
        return _svg(figure, "effects", "Effect of each knob", f"The most helpful knob was {knobs[-1]}.")


def _svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element with a title for screen readers; a prefix makes its ids unique in the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg"):], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)  # use the font of the page
    for placeholder, variable in VARIABLES.items():
        svg = svg.replace(placeholder, f"var({variable})")
    head, body = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    label = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    return f'{head} role="img" aria-labelledby="{name}-title {name}-desc">{label}{body}'
