"""Generate the knob tables of SANDBOX.md and docs/knobs.md from the declarations of the knobs.

    python -m virtualmle.sandbox.tables SANDBOX.md docs/knobs.md

replaces the table under each dimension's heading and leaves the prose alone. A test checks that both pages are up to
date.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from ..data.atomic import write_bytes
from ..models.config import KNOBS
from ..models.knobs.declaration import DIMENSIONS, DeclaredKnob, Value
from ..models.knobs.trial_names import NO_TRIALS
from .page import ABSENT, BACKBONE_COLUMNS, NONE, RANGE_COLUMN

Columns = dict[str, Callable[[DeclaredKnob], str]]
"""Column header → function that returns the cell of a knob."""


def format_value(value: Value) -> str:
    """Format a value for a page: true, 3e-4, 0.05, adamw, none."""
    if isinstance(value, bool):
        return str(value).lower()
    if value == NO_TRIALS:
        return NONE
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return str(value)


def format_range(knob: DeclaredKnob) -> str:
    """The range or choices of a knob: "1e-5 … 0.01, log", "relu, gelu, swiglu" or "2 to 4 trials"."""
    if knob.type == "trials":
        return knob.engine
    if knob.low is None or knob.high is None:
        return ", ".join(knob.choices) or "true, false"
    return f"{format_value(knob.low)} … {format_value(knob.high)}" + (", log" if knob.about.scale == "log" else "")


def notes(knob: DeclaredKnob) -> str:
    """The notes on a knob: its backbone if only one has it, the reason if it can be inert, and its declared note."""
    only = [f"{BACKBONE_COLUMNS[backbone]} only" for backbone in knob.defaults if len(knob.defaults) == 1]
    inert = [f"no effect: {knob.inert.reason}"] if knob.inert else []
    return "; ".join([*only, *inert, *([knob.about.note] if knob.about.note else [])])


def _default_on(backbone: str) -> Callable[[DeclaredKnob], str]:
    def cell(knob: DeclaredKnob) -> str:
        return next((format_value(value) for name, value in knob.defaults.items() if name == backbone), ABSENT)

    return cell


SANDBOX: Columns = {
    "knob": lambda knob: f"`{knob.name}`",
    "type": lambda knob: knob.type,
    RANGE_COLUMN: format_range,
    **{title: _default_on(backbone) for backbone, title in BACKBONE_COLUMNS.items()},
    "what it does": lambda knob: knob.about.text,
}
KNOBS_PAGE: Columns = {
    "knob": lambda knob: f"`{knob.name}`",
    "engine's bounds": lambda knob: knob.engine,
    "resolution": lambda knob: str(knob.resolution or ""),
    "source": lambda knob: knob.about.source or ABSENT,
    "known to help": lambda knob: knob.about.helps or ABSENT,
    "cost": lambda knob: knob.about.cost or "none",
    "notes": notes,
}


def table(columns: Columns, dimension: str) -> str:
    """The Markdown table of one dimension, without a trailing newline."""
    rows = [[cell(knob) for cell in columns.values()] for knob in KNOBS.values() if knob.dimension == dimension]
    lines = [list(columns), *rows]
    head, *body = [f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines]
    return "\n".join([head, f"|{'---|' * len(columns)}", *body])


def replace_tables(page: str, columns: Columns) -> str:
    """Replace the first table under the heading of each dimension of `page`."""
    lines = page.split("\n")
    for dimension in DIMENSIONS:
        headings = [number for number, line in enumerate(lines) if line.lstrip("#").strip() == dimension]
        if not headings or not lines[headings[0]].startswith("#"):
            raise ValueError(f"the page has no heading {dimension!r}; add the heading with a table below it")
        start = next(number for number in range(headings[0], len(lines)) if lines[number].startswith("|"))
        end = next(number for number in range(start, len(lines)) if not lines[number].startswith("|"))
        lines[start:end] = table(columns, dimension).split("\n")
    return "\n".join(lines)


def main(sandbox: str, knobs: str) -> None:
    """Update the tables in the pages at these two paths."""
    for path, columns in ((Path(sandbox), SANDBOX), (Path(knobs), KNOBS_PAGE)):
        write_bytes(path, replace_tables(path.read_text(encoding="utf-8"), columns).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
