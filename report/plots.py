"""Charts of a session's trials: the best so far, and the learning curves of the best models."""

from collections.abc import Sequence
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..data.wording import counted
from ..memory.records import TrialRecord
from .curves import LearningCurve
from .drawing import ACCENT, CRASH, DISCARD, KEEP, LINES, MUTED, SERIES, WIDE, chart, legend_above, svg
from .gather import ndcg
from .tables import verdict_label

# Verdicts differ in shape as well as colour, for readers who cannot tell green from red.
MARKS: dict[str, tuple[str, str]] = {"keep": ("o", KEEP), "discard": ("s", DISCARD), "crash": ("x", CRASH)}


def best_so_far(trials: Sequence[TrialRecord], default_ndcg: float | None, baseline: float | None = None) -> str:
    """Chart of validation NDCG@10 by trial, with the best so far as a step line; "" if no trial has finished.

    baseline: NDCG@10 of the best baseline without a model.
    """
    scored = [(trial, value) for trial in trials if (value := ndcg(trial)) is not None]
    if not scored:
        return ""
    with chart(WIDE) as (figure, axes):
        numbers = [trial.number for trial, _ in scored]
        best = list(accumulate((value for _, value in scored), max))
        last = trials[-1].number  # extend the line to the last trial, even if it has not finished
        axes.step([*numbers, last], [*best, best[-1]], where="post", color=ACCENT, linewidth=2, label="best so far")
        if default_ndcg is not None:
            axes.axhline(default_ndcg, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="default")
        if baseline is not None:
            axes.axhline(baseline, color=MUTED, linewidth=1, linestyle=(0, (1, 2)), label="best without a model")
        _dots(axes, scored)
        _bounds(axes, [(trial.number, trial.bound) for trial in trials if trial.bound is not None])
        _crashes(axes, [trial.number for trial in trials if verdict_label(trial) == "crash"])
        axes.set(xlabel="trial", ylabel="validation NDCG@10")
        axes.set_xlim(0.5, last + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y")
        legend_above(axes, 4)
        sentence = f"{counted(len(scored), 'finished trial')}; the best reached {best[-1]:.4f} on validation."
        return svg(figure, "best", "Best validation NDCG@10 so far, by trial", sentence)


def learning_curves(curves: Sequence[LearningCurve], name: str) -> str:
    """Chart of NDCG@10 by epoch, a line per model; "" without a curve. `name` is the prefix of its ids."""
    if not curves:
        return ""
    with chart(WIDE) as (figure, axes):
        for curve, colour, (mark, dashes) in zip(curves, SERIES, LINES, strict=False):
            axes.plot(
                curve.epochs, curve.ndcg10, color=colour, linestyle=dashes, marker=mark, markersize=4, label=curve.label
            )
        axes.set(xlabel="epoch", ylabel=f"validation NDCG@10\n{curves[0].scored}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y")
        legend_above(axes, 3)
        ends = "; ".join(f"{curve.label} from {curve.ndcg10[0]:.4f} to {max(curve.ndcg10):.4f}" for curve in curves)
        title = f"Learning curves of the best models, {curves[0].scored}"
        return svg(figure, name, title, f"Validation NDCG@10 by epoch: {ends}.")


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
        )  # fmt: skip
