"""Charts of a dataset's train part: lengths of histories, popularity of items, and events over time."""

from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .dataset import DatasetView
from .drawing import ACCENT, SMALL, chart, small_title, svg

BINS = 24


class DataChart(NamedTuple):
    """A chart, and the sentence below it."""

    svg: str
    caption: str


def data_charts(view: DatasetView) -> list[DataChart]:
    """The charts of the train part; events over time only if the log has a clock."""
    return [_lengths(view), _popularity(view), *([_times(view)] if view.has_clock else [])]


def _lengths(view: DatasetView) -> DataChart:
    lengths, longest = view.lengths, int(view.lengths.max())
    width = max(1, -(-longest // BINS))  # whole numbers of events per bar
    counts, edges = np.histogram(lengths, bins=np.arange(1, longest + width + 1, width))
    with chart(SMALL) as (figure, axes):
        axes.bar(edges[:-1], counts, width=0.9 * width, align="edge", color=ACCENT)
        _label(figure, axes, "length of the histories", "train events of a user", "users")
        median, p90 = np.quantile(lengths, [0.5, 0.9])
        sentence = f"Half of the users have at most {median:.0f} train events, nine of ten at most {p90:.0f}."
        return DataChart(svg(figure, "lengths", "Length of the histories", sentence), sentence)


def _popularity(view: DatasetView) -> DataChart:
    counts = view.popularity[view.popularity > 0]
    top = int(counts[: max(1, len(counts) // 10)].sum())
    with chart(SMALL) as (figure, axes):
        axes.loglog(np.arange(1, len(counts) + 1), counts, color=ACCENT, linewidth=2)
        _label(figure, axes, "popularity of the items", "item, most popular first", "train events")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}"))
        sentence = f"The most popular tenth of the items has {top / counts.sum():.0%} of the train events."
        return DataChart(svg(figure, "popularity", "Popularity of the items", sentence), sentence)


def _times(view: DatasetView) -> DataChart:
    counts, edges = np.histogram(view.times, bins=BINS)
    first, last = (datetime.fromtimestamp(int(edge), UTC) for edge in (edges[0], edges[-1]))
    with chart(SMALL) as (figure, axes):
        axes.bar(edges[:-1], counts, width=0.9 * np.diff(edges), align="edge", color=ACCENT)
        _label(figure, axes, "events over time", "", "train events")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        days = (last - first).days
        pattern = "%Y-%m" if days > 120 else "%Y-%m-%d"
        axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{datetime.fromtimestamp(at, UTC):{pattern}}"))
        sentence = f"The train events are from {first:%Y-%m-%d} to {last:%Y-%m-%d}."
        return DataChart(svg(figure, "times", "Events over time", sentence), sentence)


def _label(figure: Figure, axes: Axes, title: str, across: str, up: str) -> None:
    small_title(figure, title)
    axes.set(xlabel=across, ylabel=up)
    axes.grid(axis="y")
