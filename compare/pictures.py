"""The two pictures of a comparison, as SVG and PNG: best so far on two clocks, and paired differences.

Arms differ in colour, dash and marker, so that they can be told apart without colour.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .clocks import CLOCKS, Band, Clock, band, course
from .outcome import SessionResult
from .summary import ALL, VALIDATION, Comparison, Summary, group_of

# Okabe & Ito (2008): eight colours that people with colour-vision deficiencies can tell apart, without the yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#333333")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MOMENTS = 200
DPI = 150
STYLE: Any = {
    "svg.hashsalt": "virtualmle",  # equal figures give equal bytes
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,
    "text.color": "#1c2128",
    "axes.labelcolor": "#1c2128",
    "axes.edgecolor": "#aab1ba",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": "#626b77",
    "ytick.color": "#626b77",
    "grid.color": "#dfe3e8",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@dataclass(frozen=True)
class Picture:
    """A picture in both formats, with a sentence for readers who do not see it."""

    name: str
    title: str
    description: str
    svg: str
    png: bytes


def curves(summary: Summary, results: Sequence[SessionResult], title: str = "Best so far") -> Picture:
    """Mean best validation NDCG@10 so far with 95 % intervals over seeds; a row per group, a column per clock."""
    groups = [group for group in summary.groups if group != ALL]

    def draw() -> Figure:
        figure = Figure(figsize=(11, 0.9 + 3.1 * len(groups)), layout="constrained")
        grid = figure.subplots(len(groups), len(CLOCKS), squeeze=False)
        for row, group in enumerate(groups):
            for column, clock in enumerate(CLOCKS):
                _panel(grid[row][column], summary, [r for r in results if group_of(r) == group], clock)
                grid[row][column].set_title(group if column == 0 else "")
        handles, labels = grid[0][0].get_legend_handles_labels()
        columns = min(len(labels), 4)
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, handlelength=3)
        return figure

    best = max(summary.rows, key=lambda row: row.validation)
    sentence = f"{len(summary.arms)} arms; {best.arm} ends highest, at {best.validation:.4f} on {best.group}."
    return _picture("curves", title, sentence, draw)


def _panel(axes: Axes, summary: Summary, results: Sequence[SessionResult], clock: Clock) -> None:
    moments = _moments(summary, results, clock)
    for number, arm in enumerate(summary.arms):
        courses = [course(result, clock) for result in results if result.arm == arm]
        end = max((one.end for one in courses), default=0.0) + (0.5 if clock == "trials" else 0.0)
        found = band(courses, [*(moment for moment in moments if moment < end), end])  # an arm's line ends when it does
        if found is not None:
            _line(axes, found, arm, number, ends_at_trial=clock == "seconds")
    level = next((row.level for row in summary.rows if results and row.group == group_of(results[0])), None)
    if level is not None:
        axes.axhline(level, color="#626b77", linewidth=1, linestyle=(0, (2, 2)), label="level")
    axes.set(xlabel="trial" if clock == "trials" else "training seconds (log scale)")
    axes.set_ylabel("validation NDCG@10" if clock == "trials" else "")
    axes.grid()
    if clock == "trials":
        axes.set_xlim(0.5, summary.trials + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _moments(summary: Summary, results: Sequence[SessionResult], clock: Clock) -> Sequence[float]:
    if clock == "trials":
        return [float(number) for number in range(1, summary.trials + 1)]
    ends = [course(result, clock) for result in results]
    first = min((one.times[0] for one in ends if one.times), default=1.0)
    last = max((one.end for one in ends), default=1.0)
    return [float(moment) for moment in np.geomspace(max(first, 1e-3), max(last, first, 2e-3), MOMENTS)]


def _line(axes: Axes, found: Band, arm: str, number: int, *, ends_at_trial: bool) -> None:
    """The mean and its band. On the clock of trials the line goes on for half a trial, which gets no marker."""
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
    last = len(found.moments) - 1
    every = max(1, len(found.moments) // 6)
    marked = [*range(number % every, last, every), *([last] if ends_at_trial else [])]
    axes.plot(
        found.moments, found.mean, color=colour, linestyle=dash, linewidth=1.8, drawstyle="steps-post", label=arm,
        marker=MARKERS[number % len(MARKERS)], markersize=5, markevery=marked,
    )  # fmt: skip
    axes.fill_between(found.moments, found.low, found.high, color=colour, alpha=0.13, step="post", linewidth=0)


def differences(summary: Summary) -> Picture | None:
    """The reference minus each arm on final validation, with 95 % intervals; None if nothing was compared."""
    rows = [row for row in summary.comparisons if row.outcome == VALIDATION]
    if not rows:
        return None

    def draw() -> Figure:
        figure = Figure(figsize=(11, 1.2 + 0.32 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        _forest(axes, rows)
        axes.set_xlabel(f"{summary.reference} minus the arm: final validation NDCG@10, with 95 % interval")
        return figure

    better = sum((row.difference.value or 0.0) > 0 for row in rows)
    sentence = f"{summary.reference} ends above the other arm in {better} of {len(rows)} comparisons."
    return _picture("differences", "Paired differences", sentence, draw)


def _forest(axes: Axes, rows: Sequence[Comparison]) -> None:
    axes.axvline(0, color="#626b77", linewidth=1)
    for position, row in enumerate(reversed(rows)):
        value = row.difference.value or 0.0
        colour = COLOURS[2] if value > 0 else COLOURS[1]
        low, high = row.difference.low, row.difference.high
        if low is not None and high is not None:
            axes.plot([low, high], [position, position], color=colour, linewidth=2)
        axes.plot([value], [position], "o", color=colour, markersize=6)
    axes.set_yticks(range(len(rows)), [f"{row.group}: {row.arm}" for row in reversed(rows)])
    axes.tick_params(axis="y", length=0, labelcolor="#1c2128")
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.grid(axis="x")


def _picture(name: str, title: str, description: str, draw: Callable[[], Figure]) -> Picture:
    with matplotlib.rc_context(STYLE):
        figure = draw()
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata=_plain("Date", "Creator"))
        figure.savefig(png, format="png", dpi=DPI, metadata=_plain("Software"))
    return Picture(name, title, description, _inline(svg.getvalue()), png.getvalue())


def _plain(*names: str) -> Mapping[str, Any]:
    """Metadata without the entries that differ between days and versions."""
    return dict.fromkeys(names)


def _inline(svg: str) -> str:
    """The `<svg>` element without the prologue and the metadata."""
    return re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
