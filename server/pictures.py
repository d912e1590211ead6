"""Two pictures of a session as PNG, for people who look at its resources: the best so far, and learning curves.

They show validation figures of the views that agents read, nothing of the test set. matplotlib takes half a second to
import, so that the first picture imports it; the report draws charts of its own, as SVG in the colours of its page.
"""

import io
import threading
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from ..tools.views import NDCG10, TrialRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (6.4, 3.6)  # inches
DOTS_PER_INCH = 100
INK, LINE, ACCENT = "#333333", "#cccccc", "#1f4e8c"
MARKS = {"keep": ("o", "#2e7d32"), "discard": ("s", "#8d6e63")}
"""Marker and colour by verdict: they differ in shape for readers who cannot tell the colours apart."""
SERIES = (("#1f4e8c", "-"), ("#c75000", "--"), ("#2e7d32", ":"), ("#7b1fa2", "-."), ("#616161", "-"), ("#00838f", "--"))
"""Colour and dash pattern by curve."""

_drawing = threading.Lock()  # matplotlib is not made for threads, and resources are read in several


class Curve(NamedTuple):
    """Validation NDCG@10 of one trial after its evaluated epochs, of the model without score priors."""

    trial: str
    epochs: Sequence[int]
    values: Sequence[float]


def best_so_far(trials: Sequence[TrialRow]) -> bytes:
    """PNG: validation NDCG@10 by trial, with the best so far as a step line."""
    scored = [(t.number, t.metrics[NDCG10], t.ndcg10_se or 0.0, t.verdict or "") for t in trials if NDCG10 in t.metrics]

    def draw(axes: "Axes") -> None:
        numbers = [number for number, *_ in scored]
        best = list(accumulate((value for _, value, *_ in scored), max))
        last = max(trial.number for trial in trials)  # the line reaches trials that have not finished
        axes.step([*numbers, last], [*best, best[-1]], where="post", color=ACCENT, linewidth=2, label="best so far")
        for verdict, (mark, colour) in MARKS.items():
            points = [(number, value, error) for number, value, error, given in scored if given == verdict]
            if points:
                x, y, errors = zip(*points, strict=True)
                axes.errorbar(x, y, yerr=errors, fmt=mark, color=colour, elinewidth=1, label=f"{verdict} (± SE)")
        axes.set_xlim(0.5, last + 0.5)

    return _png(draw if scored else None, "trial", "validation NDCG@10")


def learning_curves(curves: Sequence[Curve]) -> bytes:
    """PNG: validation NDCG@10 by epoch, a line per trial."""

    def draw(axes: "Axes") -> None:
        for curve, (colour, dashes) in zip(curves, SERIES, strict=False):
            axes.plot(curve.epochs, curve.values, dashes, marker=".", color=colour, label=curve.trial)

    return _png(draw if curves else None, "epoch", "validation NDCG@10, no score priors")


def _png(draw: Any, across: str, up: str) -> bytes:
    """The picture that `draw` makes on a pair of axes; a sentence instead if it is None."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import, and few clients ask for pictures
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    with _drawing:
        figure = Figure(figsize=SIZE, dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        if draw is None:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no finished trial yet", ha="center", va="center", color=INK)
        else:
            draw(axes)
            axes.set_xlabel(across, color=INK)
            axes.set_ylabel(up, color=INK)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.grid(axis="y", color=LINE, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()
