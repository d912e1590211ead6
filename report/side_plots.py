"""Charts of several sessions: the best validation NDCG@10 so far, by finished trials and by training seconds."""

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from .drawing import LINES, SERIES, WIDE, chart, legend_above, svg

Progress = tuple[str, list[float], list[float]]
"""A session's id; per finished trial, the training seconds until its end, and the best NDCG@10 until then."""


def progress_charts(sessions: Sequence[Progress]) -> list[str]:
    """Two charts; none if no trial of any session has finished."""
    if not any(best for _, _, best in sessions):
        return []
    by_trial = [(name, list(map(float, range(1, len(best) + 1))), best) for name, _, best in sessions]
    return [
        _chart("trials", "finished trials", "Best so far, by finished trials", by_trial),
        _chart("seconds", "training seconds", "Best so far, by training seconds", sessions),
    ]


def _chart(name: str, across: str, title: str, sessions: Sequence[Progress]) -> str:
    with chart(WIDE) as (figure, axes):
        for (session, at, best), colour, (mark, dashes) in zip(sessions, SERIES, LINES, strict=False):
            axes.step(
                at, best, where="post", color=colour, linestyle=dashes, marker=mark, markersize=4, label=session
            )
        axes.set(xlabel=across, ylabel="best validation NDCG@10")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y")
        legend_above(axes, 2)
        ends = "; ".join(f"{session} ended at {best[-1]:.4f}" for session, _, best in sessions if best)
        return svg(figure, name, title, f"{ends}.")
