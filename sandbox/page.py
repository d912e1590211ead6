"""What a SANDBOX.md states: the rows of its tables, with their lines.

Two kinds of table count, told by their first column: `rule` (the budgets) and `knob` (the action space, one table under
the heading of each dimension). Everything else is prose.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..data.errors import ProtocolError
from ..models.config import KNOBS
from .toml_page import toml_tables

BACKBONE_COLUMNS = {"sasrec": "SASRec", "hstu": "HSTU"}
RANGE_COLUMN = "range or choices"
ABSENT = "–"  # in the column of a backbone that a knob is not offered for
_RANGE = re.compile(r"([^\s…]+)\s*…\s*([^\s,…]+)\s*(?:,\s*(\w+))?")
_FENCE = re.compile(r"\s*(```|~~~)")


@dataclass(frozen=True)
class Entry:
    """A rule or a knob as a page states it. `where` is its line ("SANDBOX.md:12")."""

    where: str
    name: str
    values: Mapping[str, Any]

    def error(self, text: str) -> ProtocolError:
        """The refusal of this entry, with its line."""
        return ProtocolError(f"{self.where}: {text}")


@dataclass(frozen=True)
class Page:
    """All that a page states; `end` is the line to name where something is missing altogether."""

    rules: tuple[Entry, ...]
    knobs: tuple[Entry, ...]
    end: str


def read_page(text: str, source: str) -> Page:
    """The rules and knobs of a page; `source` names it in errors.

    Raises ProtocolError for rows that cannot be read. Pages of version 0.1 state rules and knobs in fenced toml blocks
    beside the tables; where a page has such blocks, they count and the tables of the same kind do not.
    """
    older = toml_tables(text, source)
    rules = [Entry(where, name, {"value": value}) for where, name, value in older.rules]
    knobs = [Entry(where, name, table) for where, name, table in older.knobs]
    return Page(
        tuple(rules or (_rule(row) for row in _rows(text, source, "rule"))),
        tuple(knobs or (_knob(row) for row in _rows(text, source, "knob"))),
        f"{source}:{text.count(chr(10)) + 1}",
    )


@dataclass(frozen=True)
class _Row:
    """One row of a table; `heading` is the one that the table stands under."""

    where: str
    heading: str
    cells: Mapping[str, str]

    def error(self, text: str) -> ProtocolError:
        return ProtocolError(f"{self.where}: {text}")

    def cell(self, column: str) -> str:
        if column not in self.cells:
            raise self.error(f"the table has no column {column!r}; its columns are {', '.join(self.cells)}")
        return self.cells[column]


def _rows(text: str, source: str, first_column: str) -> Iterator[_Row]:
    """The rows of all tables whose first column is `first_column`, outside fenced blocks."""
    heading, fenced = "", False
    columns: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        fenced ^= bool(_FENCE.match(line))
        if fenced or not line.lstrip().startswith("|"):
            heading = line.lstrip("#").strip() if line.startswith("#") and not fenced else heading
            columns = []
        elif not columns:
            columns = _header(line, f"{source}:{number}")
        elif columns[0] == first_column and not re.fullmatch(r"[\s|:-]+", line):
            cells = _cells(line)
            row = _Row(f"{source}:{number}", heading, dict(zip(columns, cells, strict=False)))
            if len(cells) != len(columns):
                raise row.error(f"the row has {len(cells)} cells and its table {len(columns)} columns; make them equal")
            yield row


def _header(line: str, where: str) -> list[str]:
    """The columns of a table. A row of ours in their place would be ignored, with all rows below it: it is refused."""
    columns = _cells(line)
    if _plain(columns[0]) in KNOBS or re.fullmatch(r"`\w+`", columns[0]):
        raise ProtocolError(
            f"{where}: the row of {_plain(columns[0])} is cut off from its table; remove the line between them, or give "
            "the row a header of its own"
        )
    return columns


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|").removesuffix("|")
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", inner)]


def _rule(row: _Row) -> Entry:
    return Entry(row.where, _plain(row.cell("rule")), {"value": _rule_value(_plain(row.cell("value")))})


def _rule_value(cell: str) -> bool | int | float | str:
    if cell in ("true", "false"):
        return cell == "true"
    for number in (int, float):
        try:
            return number(cell)
        except ValueError:
            continue
    return cell


def _knob(row: _Row) -> Entry:
    """A row as the values that a knob is made of; a cell that cannot be read as its type stays text."""
    name = _plain(row.cell("knob"))
    kind = KNOBS[name].type if name in KNOBS else "choice"  # an unknown name is refused later, with the nearest ones
    defaults = {backbone: _plain(row.cell(column)) for backbone, column in BACKBONE_COLUMNS.items()}
    offered = {backbone: _READ[kind](cell) for backbone, cell in defaults.items() if cell not in (ABSENT, "-", "")}
    values: dict[str, Any] = {"dimension": row.heading, "default": offered, "backbones": list(offered)}
    values |= {"type": row.cells["type"]} if "type" in row.cells else {}
    return Entry(row.where, name, values | _extent(row, kind))


def _extent(row: _Row, kind: str) -> dict[str, Any]:
    """The range of a number, or the choices of another knob."""
    cell = row.cell(RANGE_COLUMN)
    if kind in ("int", "float"):
        found = _RANGE.fullmatch(cell.replace("...", "…").replace("..", "…"))
        if not found:
            raise row.error(f"{cell!r} is not a range; write LOW … HIGH, or LOW … HIGH, log")
        low, high, scale = found.groups()
        return {"low": _READ[kind](low), "high": _READ[kind](high), "scale": scale or "linear"}
    choices = [_plain(choice) for choice in cell.split(",") if choice.strip()]
    if kind == "choice":
        return {"choices": choices}
    if sorted(choices) != ["false", "true"]:
        raise row.error(f"{cell!r} are not both truth values; write true, false, or remove the row to fix the knob")
    return {}


def _plain(cell: str) -> str:
    return cell.strip().strip("`\"'")


def _or_text(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def reader(cell: str) -> Any:
        try:
            return read(cell)
        except (KeyError, ValueError):
            return cell

    return reader


_READ: Mapping[str, Callable[[str], Any]] = {
    "int": _or_text(int),
    "float": _or_text(float),
    "bool": _or_text(lambda cell: {"true": True, "false": False}[cell]),
    "choice": str,
}
"""Cells as values, by the type of the knob."""
