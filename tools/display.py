"""How the result of a tool is shown to a person: as a table, in a terminal (`print`) and in a notebook.

Programs read the fields; nothing here is part of a schema, and MCP clients never see it.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

LONGEST = 160  # characters of a cell
SHORT_LIST = 5  # longer lists of entries are counted


class Table(NamedTuple):
    """Cells by row; `headings` is empty for a table of names and values."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


class Displayed(BaseModel):
    """A result that `print` and notebooks show as a table of its fields, without those that are empty."""

    def table(self) -> Table:
        """The rows that are shown: one per field."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return Table((), [(name, cell(value)) for name, value in values.items() if not _is_empty(value)])

    def __str__(self) -> str:
        table = self.table()
        rows = [table.headings, *table.rows] if table.headings else list(table.rows)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def _repr_html_(self) -> str:
        """The table for Jupyter; every text is escaped."""
        table = self.table()
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in table.headings)
        cells = (("".join(f"<td>{html.escape(text)}</td>" for text in row)) for row in table.rows)
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def cell(value: Any) -> str:
    """A value on one line: nested ones as `name value` pairs, long lists as their length, long texts cut."""
    if isinstance(value, BaseModel):
        return cell({name: getattr(value, name) for name in type(value).model_fields})
    if isinstance(value, Mapping):
        parts = [f"{name} {cell(entry)}" for name, entry in value.items() if entry is not None]
        return _cut(", ".join(parts))
    if isinstance(value, list | tuple):
        nested = any(isinstance(entry, BaseModel | Mapping | list) for entry in value)
        long = nested and len(value) > SHORT_LIST
        return f"{len(value)} entries" if long else _cut("; ".join(map(cell, value)))
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return _cut(" ".join(str(value).split()))


def _is_empty(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"
