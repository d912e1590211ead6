"""Parse a SANDBOX.md into the rows of its tables, with line numbers.

Two kinds of table are parsed, identified by the header of their first column: `rule` (budgets) and `knob` (the action
space, one table under the heading of each dimension). Everything else is prose and is ignored.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..data.errors import ProtocolError
from ..models.config import KNOBS
from ..models.knobs.trial_names import NAMING, NO_TRIALS
from .toml_page import toml_tables

BACKBONE_COLUMNS = {"sasrec": "SASRec", "hstu": "HSTU"}
RANGE_COLUMN = "range or choices"
ABSENT = "–"  # default cell of a backbone for which the knob is not offered
NONE = "none"  # default cell of a knob that names trials: a page cannot name any
_RANGE = re.compile(r"([^\s…]+)\s*…\s*([^\s,…]+)\s*(?:,\s*(\w+))?")
_FENCE = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A rule or a knob as stated on a page. `where` is its line, e.g. "SANDBOX.md:12"."""

    where: str
    name: str
    values: Mapping[str, Any]

    def error(self, text: str) -> ProtocolError:
        """An error about this entry that names its line."""
        return ProtocolError(f"{self.where}: {text}")


@dataclass(frozen=True)
class Page:
    """The contents of a page. `end` is its last line (e.g. "SANDBOX.md:218"), for errors about missing tables."""

    rules: tuple[Entry, ...]
    knobs: tuple[Entry, ...]
    end: str


def read_page(text: str, source: str) -> Page:
    """Read the rules and knobs of a page; `source` is its name in error messages.

    Raises ProtocolError for rows that cannot be parsed. Pages of version 0.1 state rules and knobs in fenced toml
    blocks; if a page has such blocks, its tables of the same kind are ignored.
    """
    toml = toml_tables(text, source)
    rules = [Entry(where, name, {"value": value}) for where, name, value in toml.rules]
    knobs = [Entry(where, name, table) for where, name, table in toml.knobs]
    return Page(
        tuple(rules or (_rule_entry(row) for row in _rows(text, source, "rule"))),
        tuple(knobs or (_knob_entry(row) for row in _rows(text, source, "knob"))),
        f"{source}:{text.count(chr(10)) + 1}",
    )


@dataclass(frozen=True)
class _Row:
    """One row of a table; `heading` is the nearest heading above the table."""

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
    """The rows of all tables whose first column is `first_column`, outside fenced blocks and HTML comments."""
    heading = ""
    columns: list[str] = []
    lines = _visible_lines(text, source)
    for number, line in enumerate(lines, 1):
        if not line.lstrip().startswith("|"):
            heading = line.lstrip("#").strip() if line.startswith("#") else heading
            columns = []
        elif not columns:
            columns = _header(line, lines[number] if number < len(lines) else "", f"{source}:{number}")
        elif _is_read(columns, first_column) and not re.fullmatch(r"[\s|:-]+", line):
            cells = _cells(line)
            row = _Row(f"{source}:{number}", heading, dict(zip(columns, cells, strict=False)))
            if len(cells) != len(columns):
                raise row.error(f"the row has {len(cells)} cells and its table {len(columns)} columns; make them equal")
            yield row


def _is_read(columns: list[str], first_column: str) -> bool:
    """Whether this is a table of rules or knobs; `_Row.cell` refuses one whose first header is misspelt."""
    return re.sub(r"\W", "", columns[0]).lower() == first_column or (first_column == "knob" and RANGE_COLUMN in columns)


def _visible_lines(text: str, source: str) -> list[str]:
    """The lines of a page, empty where they belong to a fenced block or an HTML comment.

    Raises ProtocolError for a block or comment without an end, because it would silently hide the tables below it.
    """
    lines, fence, opened = text.split("\n"), "", 0
    for index, line in enumerate(lines):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence, opened = mark[1], index + 1
        elif not fence:
            continue
        elif mark and mark[1].startswith(fence) and line.strip() == mark[1]:
            fence = ""
        lines[index] = ""
    if fence:
        raise ProtocolError(f"{source}:{opened}: this fenced block is not closed; end it with a line {fence}")
    visible = _COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), "\n".join(lines))
    before, unclosed, _ = visible.partition("<!--")
    if unclosed:
        where = f"{source}:{before.count(chr(10)) + 1}"
        raise ProtocolError(f"{where}: this comment is not closed; end it with -->")
    return visible.split("\n")


def _header(line: str, below: str, where: str) -> list[str]:
    """The columns of the table that starts at `line`; empty if the line below does not separate a header from rows.

    Raises ProtocolError for a row of a knob or rule, which would silently be ignored.
    """
    columns = _cells(line)
    name = _unquote(columns[0])
    if name in KNOBS or columns[0] == f"`{name}`":
        raise ProtocolError(
            f"{where}: the row of {name} is separated from its table; remove the lines between them, or add a header "
            "with a line |---|---| below it"
        )
    return columns if re.fullmatch(r"[\s|:-]*-[\s|:-]*", below) else []


def _cells(line: str) -> list[str]:
    content = line.strip().removeprefix("|").removesuffix("|")
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", content)]


def _rule_entry(row: _Row) -> Entry:
    return Entry(row.where, _unquote(row.cell("rule")), {"value": _rule_value(_unquote(row.cell("value")))})


def _rule_value(cell: str) -> bool | int | float | str:
    if cell in ("true", "false"):
        return cell == "true"
    for number in (int, float):
        try:
            return number(cell)
        except ValueError:
            continue
    return cell


def _knob_entry(row: _Row) -> Entry:
    """The entry of a knob row. A cell that cannot be parsed as the knob's type stays text and is refused later."""
    name = _unquote(row.cell("knob"))
    kind = KNOBS[name].type if name in KNOBS else "choice"  # an unknown name is refused later, with suggestions
    defaults = {backbone: _unquote(row.cell(column)) for backbone, column in BACKBONE_COLUMNS.items()}
    offered = {backbone: _PARSERS[kind](cell) for backbone, cell in defaults.items() if cell not in (ABSENT, "-", "")}
    values: dict[str, Any] = {"dimension": row.heading, "default": offered, "backbones": list(offered)}
    values |= {"type": row.cells["type"]} if "type" in row.cells else {}
    return Entry(row.where, name, values | _range_or_choices(row, kind))


def _range_or_choices(row: _Row, kind: str) -> dict[str, Any]:
    """The range or levels of a numeric knob, or the choices of a choice knob; nothing for other knobs."""
    cell = row.cell(RANGE_COLUMN)
    if kind == "trials":
        count = NAMING[_unquote(row.cell("knob"))].count
        if cell != count:
            raise row.error(f"{cell!r} cannot be changed; write {count}, or remove the row to offer none")
        return {}
    if kind in ("int", "float"):
        return _range_or_levels(row, cell, _PARSERS[kind])
    choices = [_unquote(choice) for choice in cell.split(",") if choice.strip()]
    if kind == "choice":
        return {"choices": choices}
    if sorted(choices) != ["false", "true"]:
        raise row.error(f"{cell!r} is not both booleans; write true, false, or remove the row to fix the knob")
    return {}


def _range_or_levels(row: _Row, cell: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The range LOW … HIGH of a numeric knob, or the list of its levels: 0.0003, 0.001, 0.003."""
    found = _RANGE.fullmatch(cell.replace("...", "…").replace("..", "…"))
    if found:
        low, high, scale = found.groups()
        return {"low": parse(low), "high": parse(high), "scale": scale or "linear"}
    levels = [parse(_unquote(level)) for level in cell.split(",")]
    if any(isinstance(level, str) for level in levels):
        raise row.error(
            f"{cell!r} is not a range; write LOW … HIGH, or LOW … HIGH, log, or the only values: 1, 2, 4"
        )
    return {"levels": levels}


def _unquote(cell: str) -> str:
    return cell.strip().strip("`\"'")


def _or_text(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser that returns the cell unchanged if `parse` fails."""

    def reader(cell: str) -> Any:
        try:
            return parse(cell)
        except (KeyError, ValueError):
            return cell

    return reader


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "int": _or_text(int),
    "float": _or_text(float),
    "bool": _or_text(lambda cell: {"true": True, "false": False}[cell]),
    "choice": str,
    "trials": lambda cell: NO_TRIALS if cell == NONE else cell,
}
"""Cell parsers by type of knob."""
