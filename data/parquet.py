"""Parquet → the columns user, item and timestamp: one file, or a directory of parts in the order of their names.

Binary ids become hexadecimal text. One row per user with a list of items is accepted: lists are exploded in parallel.
Not covered: conversion of ids and times.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import polars as pl

from .columns import Column, choose_columns
from .errors import DataError
from .reading import ROLES, Format, RawLog, Reading
from .wording import counted

SAMPLE_ROWS = 200
MAGIC = b"PAR1"
NOT_TIMES = (pl.Time, pl.Duration, pl.Boolean, pl.Binary, pl.Struct)


def read_parquet(source: str, file: BinaryIO, declared: Format, reading: Reading) -> RawLog:
    """Read a Parquet file. Raises DataError."""
    return _read(source, [io.BytesIO(file.read())], reading)


def read_parquet_parts(source: str, path: Path, reading: Reading) -> RawLog:
    """Read a file, or all parts below a directory, except in files and folders whose names start with '.' or '_'."""
    if path.is_file():
        return _read(source, [path], reading)
    parts = sorted(part for part in path.rglob("*.parquet") if _is_visible(part.relative_to(path)))
    if not parts:
        raise DataError(f"there is no file {str(path)!r}: it is a directory without Parquet parts (*.parquet)")
    raw = _read(source, list(parts), reading)
    return RawLog(
        raw.frame, raw.columns, raw.rows, (*raw.notes, f"{counted(len(parts), 'Parquet part')} in order of name")
    )


def _is_visible(part: Path) -> bool:
    return not any(name.startswith((".", "_")) for name in part.parts)


def _read(source: str, parts: list[Path] | list[io.BytesIO], reading: Reading) -> RawLog:
    try:
        sample = pl.read_parquet(parts[0], n_rows=SAMPLE_ROWS)
        columns = [Column(name, _sample_texts(sample[name])) for name in sample.columns]
        choice = choose_columns(source, columns, reading.given())
        names = {role: sample.columns[choice.positions[role]] for role in ROLES}
        frames = [_select(source, part, names) for part in parts]
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{source} is not a readable Parquet file ({reason:.160}); write it again") from None
    schemas = {str(frame.schema) for frame in frames}
    if len(schemas) > 1:
        raise DataError(
            f"{source}: the parts differ in the types of their columns ({' and '.join(sorted(schemas)[:2])})"
        )
    raw = pl.concat(frames)
    for role in ROLES:
        raw = raw.with_columns(_plain(source, role, names[role], raw[role]))
    frame, rows, notes = _explode(source, raw)
    return RawLog(frame, names, rows, (*choice.notes, *notes))


def _select(source: str, part: Path | io.BytesIO, names: Mapping[str, str]) -> pl.DataFrame:
    found = pl.read_parquet_schema(part)
    missing = [name for name in names.values() if name not in found]
    if missing:
        raise DataError(f"{source}: the part {getattr(part, 'name', '')!r} lacks the column {missing[0]!r}")
    return pl.read_parquet(part, columns=list(names.values())).select(
        **{role: pl.col(name) for role, name in names.items()}
    )


def _sample_texts(values: pl.Series) -> list[str]:
    return ["" if value is None else str(value) for value in values]


def _plain(source: str, role: str, name: str, values: pl.Series) -> pl.Series:
    """The values with binary ids as text and arrays as lists. Raises DataError for types that a role cannot have."""
    if isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    kind = values.dtype
    inner = kind.inner if isinstance(kind, pl.List) else kind
    refused = NOT_TIMES if role == "timestamp" else (pl.Struct, pl.Object, pl.List)
    if isinstance(inner, refused) or (role == "user" and isinstance(kind, pl.List)):
        advice = "Unix times (numbers), dates or datetimes" if role == "timestamp" else "text or whole numbers"
        raise DataError(f"{source}: the column {name!r} is of type {kind}, which is no {role}; use {advice}")
    if kind == pl.Binary:
        return values.bin.encode("hex").alias(role)
    if inner == pl.Binary:
        return values.list.eval(pl.element().bin.encode("hex")).alias(role)
    return values.alias(role)


def _explode(source: str, raw: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series | int, tuple[str, ...]]:
    """One row per event for a log with one row per user and lists of items and times."""
    lists = [role for role in ("item", "timestamp") if isinstance(raw.schema[role], pl.List)]
    if not lists:
        return raw, 1, ()
    lengths = [raw[role].list.len().fill_null(0) for role in lists]
    if len(lists) == 2 and (differing := (lengths[0] != lengths[1]).arg_true()).len():
        row = differing[0]
        raise DataError(
            f"{source}, row {row + 1}: {lengths[0][row]} items but {lengths[1][row]} times; "
            "both lists of a user must be equally long"
        )
    filled = raw.with_row_index("row", offset=1).filter(lengths[0] > 0)
    events = filled.explode(lists)
    note = (
        f"{counted(raw.height, 'row')} with lists of {' and '.join(lists)}s read as {counted(events.height, 'event')}"
    )
    return events.drop("row"), events["row"].cast(pl.Int64), (note,)
