"""Convert records to database rows and back: nested values are stored as JSON text."""

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
    """The current UTC time in ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def to_row(record: BaseModel, leave_out: Iterable[str] = ()) -> Row:
    """The fields of `record` as columns of the same names, except those in `leave_out`."""
    fields = record.model_dump(exclude=set(leave_out))
    return {name: to_json(value) if isinstance(value, (dict, list)) else value for name, value in fields.items()}


def from_row(row: Mapping[str, Any], nested: Iterable[str]) -> Row:
    """Convert columns back to fields; `nested` names the columns that contain JSON."""
    fields = dict(row)
    for name in nested:
        if fields[name] is not None:
            fields[name] = json.loads(fields[name])
    return fields


def to_json(value: Any) -> str:
    """JSON text; NaN and infinities become null, as SQLite itself stores NaN."""
    return json.dumps(_replace_nonfinite(value), allow_nan=False)


def insert(db: Database, table: str, row: Row) -> int:
    """Insert a row and return its rowid. Column names are not escaped: they must come from this package."""
    rowid = _insert(db, "INSERT", table, row).lastrowid
    assert rowid is not None  # every INSERT sets it
    return rowid


def insert_or_ignore(db: Database, table: str, row: Row) -> None:
    """Insert a row unless a row with the same key exists."""
    _insert(db, "INSERT OR IGNORE", table, row)


def columns_of(record: type[BaseModel], leave_out: Iterable[str] = ()) -> str:
    """The quoted column names of a record type, for a SELECT."""
    return ", ".join(f'"{name}"' for name in record.model_fields if name not in set(leave_out))


def _insert(db: Database, command: str, table: str, row: Row) -> sqlite3.Cursor:
    columns = ", ".join(f'"{name}"' for name in row)
    placeholders = ", ".join("?" for _ in row)
    return db.execute(f"{command} INTO {table} ({columns}) VALUES ({placeholders})", list(row.values()))


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _replace_nonfinite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
