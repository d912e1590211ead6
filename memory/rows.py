"""Records to rows and back: nested values travel as JSON text, everything else as it is."""

import json
import math
import sqlite3
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel
from sqlite_utils import Database

Row = dict[str, Any]


def now() -> str:
    """The time, UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def to_row(record: BaseModel, leave_out: Iterable[str] = ()) -> Row:
    """The fields of `record` as columns of the same names."""
    fields = record.model_dump(exclude=set(leave_out))
    return {name: to_json(value) if isinstance(value, (dict, list)) else value for name, value in fields.items()}


def from_row(row: Mapping[str, Any], nested: Iterable[str]) -> Row:
    """The columns as fields again; `nested` are those that hold JSON."""
    fields = dict(row)
    for name in nested:
        if fields[name] is not None:
            fields[name] = json.loads(fields[name])
    return fields


def to_json(value: Any) -> str:
    """JSON text; a number that is not finite becomes null, as SQLite itself does with NaN."""
    return json.dumps(_finite(value), allow_nan=False)


def insert(db: Database, table: str, row: Row) -> int:
    """Insert a row, whose column names are ours; returns its rowid."""
    rowid = _insert(db, "INSERT", table, row).lastrowid
    assert rowid is not None  # it is set by every INSERT
    return rowid


def insert_new(db: Database, table: str, row: Row) -> None:
    """Insert a row unless there is one with its key already."""
    _insert(db, "INSERT OR IGNORE", table, row)


def columns_of(record: type[BaseModel], leave_out: Iterable[str] = ()) -> str:
    """The columns of a record, quoted, for a SELECT."""
    return ", ".join(f'"{name}"' for name in record.model_fields if name not in set(leave_out))


def _insert(db: Database, command: str, table: str, row: Row) -> sqlite3.Cursor:
    columns = ", ".join(f'"{name}"' for name in row)
    places = ", ".join("?" for _ in row)
    return db.execute(f"{command} INTO {table} ({columns}) VALUES ({places})", list(row.values()))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
