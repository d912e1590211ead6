"""The two drawings of a report as inline SVG, coloured by the page's own CSS variables, so that they follow its theme.

Importing this page imports matplotlib (half a second): only `html.py` does, when it draws.
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

from ..memory.records import TrialRecord
from ..tools.views import KnobEffect
from .gather import ndcg
from .tables import outcome_word

# matplotlib wants colours, the page has variables: each stand-in is replaced by its variable in the finished SVG.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
KEEP, DISCARD, CRASH, ACCENT = "#040404", "#050505", "#060606", "#070707"
VARIABLES = {
    INK: "--ink", MUTED: "--muted", LINE: "--line", KEEP: "--keep", DISCARD: "--discard", CRASH: "--crash",
    ACCENT: "--accent",
}
# Shape as well as colour, for those who see no difference between green and red.
MARKS: dict[str, tuple[str, str]] = {"keep": ("o", KEEP), "discard": ("s", DISCARD), "crash": ("x", CRASH)}
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, searchable, read aloud
    "svg.hashsalt": "virtualmle",  # the same figures give the same bytes
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
    """Validation NDCG@10 of every trial, and the best so far as a step line; "" where no trial has finished."""
    scored = [(trial, value) for trial in trials if (value := ndcg(trial)) is not None]
    if not scored:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axes = figure.add_subplot()
        numbers = [trial.number for trial, _ in scored]
        best = list(accumulate((value for _, value in scored), max))
        last = trials[-1].number  # the line reaches the last trial, finished or not
        axes.step([*numbers, last], [*best, best[-1]], where="post", color=ACCENT, linewidth=2, label="best so far")
        if default_ndcg is not None:
            axes.axhline(default_ndcg, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="default")
        _dots(axes, scored)
        _crashes(axes, [trial.number for trial in trials if outcome_word(trial) == "crash"])
        axes.set(xlabel="trial", ylabel="validation NDCG@10")
        axes.set_xlim(0.5, last + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, columnspacing=1.2, handletextpad=0.4)
        sentence = f"{len(scored)} finished trials; the best reached {best[-1]:.4f} on validation."
        return _svg(figure, "best", "Best validation NDCG@10 so far, by trial", sentence)


def _dots(axes: Axes, scored: Sequence[tuple[TrialRecord, float]]) -> None:
    for word in ("discard", "keep"):
        of_word = [(t.number, value, t.outcome) for t, value in scored if outcome_word(t) == word]
        if not of_word:
            continue
        numbers, values, outcomes = zip(*of_word, strict=True)
        errors = [outcome.ndcg_se or 0.0 if outcome else 0.0 for outcome in outcomes]
        mark, colour = MARKS[word]
        axes.errorbar(
            numbers, values, yerr=errors, fmt=mark, color=colour, markersize=6, elinewidth=1, label=f"{word} (± SE)"
        )


def _crashes(axes: Axes, numbers: Sequence[int]) -> None:
    """Crosses on the floor of the drawing: a crash has a place in time and no metric."""
    if numbers:
        mark, colour = MARKS["crash"]
        axes.plot(
            numbers, [0.03] * len(numbers), mark, color=colour, markersize=7, markeredgewidth=2, label="crash",
            transform=axes.get_xaxis_transform(), clip_on=False,
        )


def knob_effects(effects: Mapping[str, KnobEffect]) -> str:
    """Mean effect of changing each knob, with its standard error, strongest first; "" without effects."""
    measured = [
        (knob, effect.mean_delta, effect.se or 0.0) for knob, effect in effects.items() if effect.mean_delta is not None
    ]
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
    """The figure as an `<svg>` element: titled for screen readers, its ids prefixed so that two can share a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg"):], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)  # the page's own typeface
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    head, body = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    label = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    return f'{head} role="img" aria-labelledby="{name}-title {name}-desc">{label}{body}'
