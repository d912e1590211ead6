"""The manner of a report's charts: inline SVG whose colours are CSS variables of the page, to follow its theme.

Importing this module imports matplotlib, which takes half a second; only the functions that render a page import it.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# matplotlib needs colours but the page uses CSS variables: `svg` replaces each placeholder colour by its variable.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
KEEP, DISCARD, CRASH, ACCENT = "#040404", "#050505", "#060606", "#070707"
SERIES = ("#080808", "#090909", "#0a0a0a", "#0b0b0b", "#0c0c0c", "#0d0d0d")
"""Colours of lines that stand side by side; `LINES` tells the same lines apart without colour."""
LINES: tuple[tuple[str, Any], ...] = (
    ("o", "solid"), ("s", (0, (5, 2))), ("^", (0, (1, 1.5))),
    ("D", (0, (6, 2, 1, 2))), ("v", "solid"), ("P", (0, (3, 3))),
)  # fmt: skip
"""Marker and dash pattern of each of `SERIES`."""
VARIABLES = {
    INK: "--ink", MUTED: "--muted", LINE: "--line", KEEP: "--keep", DISCARD: "--discard", CRASH: "--crash",
    ACCENT: "--accent", **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)},
}  # fmt: skip
WIDE, SMALL = (7.2, 3.4), (3.5, 2.3)
"""Width and height in inches: a chart of its own, and one of several side by side."""
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


@contextmanager
def chart(size: tuple[float, float]) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure of `size` in inches with one pair of axes, under the style of the report.

    A report has many small figures: their margins are fixed, because computing them takes most of the time of a figure.
    """
    small = {"font.size": 9.5} if size == SMALL else {}
    with matplotlib.rc_context(STYLE | small):
        figure = Figure(figsize=size, layout=None if small else "constrained")
        if small:
            figure.subplots_adjust(left=0.2, right=0.97, bottom=0.2, top=0.89)
        yield figure, figure.add_subplot()


def svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element with a title for screen readers; a prefix makes its ids unique in the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    source = buffer.getvalue()
    source = re.sub(r"<metadata>.*?</metadata>", "", source[source.index("<svg") :], flags=re.DOTALL)
    source = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", source)
    source = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", source)  # use the font of the page
    for placeholder, variable in VARIABLES.items():
        source = source.replace(placeholder, f"var({variable})")
    head, body = source.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    label = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    return f'{head} role="img" aria-labelledby="{name}-title {name}-desc">{label}{body}'


def small_title(figure: Figure, title: str) -> None:
    """The title of a small chart; matplotlib's own would measure every tick to find its place."""
    figure.text(0.2, 0.93, title, fontsize=10, color=INK)


def legend_above(axes: Axes, columns: int) -> None:
    """The legend in one or more rows above the axes."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, columnspacing=1.2, handletextpad=0.4)
