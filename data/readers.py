"""Raw interaction logs → one frame of (user, item, timestamp) in file order.

Covered: text tables (`separated.py`), JSON (`json_records.py`) and Parquet (`parquet.py`), in any container that
`containers.py` opens. Not covered: filtering and splitting (`prepare.py`). Errors name the row number. No row is
dropped silently: `Log.notes` says what was guessed, detected and left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import polars as pl

from .cleaning import STRICT, Cleaning
from .containers import STANDARD_INPUT, Opened, open_content, source_name
from .errors import DataError
from .interactions import clean_interactions
from .json_records import read_json
from .parquet import MAGIC, read_parquet, read_parquet_parts
from .reading import Format, RawLog, Reading
from .rows import Source
from .separated import read_separated
from .time_units import EARLIEST

FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "csv",  # the separator is found in the content
    ".dat": "csv",
    ".data": "csv",
    ".inter": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",  # the Amazon files contain JSON lines despite this extension
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class Log:
    """A raw log: `frame` as `clean_interactions` returns it, in file order; its timestamps are Unix seconds."""

    frame: pl.DataFrame
    columns: dict[str, str]  # role → the column that was used, given or guessed
    rows_read: int
    notes: tuple[str, ...] = ()  # what was noticed, changed or left out; whole sentences for people
    has_clock: bool = True  # False: the times are small whole numbers, which only give an order


def read_log(
    path: Path,
    *,
    user: str | None = None,
    item: str | None = None,
    timestamp: str | None = None,
    format: Format | None = None,
    separator: str | None = None,
    header: bool | None = None,
    quotes: bool | None = None,
    skip_bad_rows: bool = False,
    cleaning: Cleaning = STRICT,
) -> Log:
    """Read an interaction log: a file, a directory of Parquet parts, or standard input (the path "-").

    Columns are given by name, or by number counted from 1; those that are not given are guessed, and `Log.columns`
    records the choice. Raises DataError if the file is missing, empty, truncated or of an unknown format, if a column
    is missing or ambiguous, if a row cannot be parsed (unless `skip_bad_rows`), or if a row has no user, no item or an
    unreadable time.
    """
    reading = Reading(user, item, timestamp, format, separator, header, quotes, skip_bad_rows)
    raw = _read_raw(path, reading)
    source = source_name(path)
    if raw.frame.is_empty():
        raise DataError(f"{source} has no rows; a log needs one interaction per row")
    frame, notes = clean_interactions(raw.frame, Source(source, raw.columns, raw.rows), cleaning)
    has_clock = cleaning.time_unit != "auto" or int(frame["timestamp"].to_numpy().max()) >= EARLIEST
    return Log(frame, raw.columns, raw.frame.height, (*raw.notes, *notes), has_clock)


def _read_raw(path: Path, reading: Reading) -> RawLog:
    if path != STANDARD_INPUT and not path.exists():
        raise DataError(f"there is no file {str(path)!r}; check the path")
    source = source_name(path)
    if path.is_dir():
        return read_parquet_parts(source, path, reading)
    with open_content(path) as opened:
        kind = reading.format or _format_of(source, opened)
        if kind != "parquet" or opened.packed or path == STANDARD_INPUT:
            raw = _READERS[kind](source, opened.file, kind, reading)
            packing = (f"unpacked from {' in '.join(reversed(opened.packed))}",) if opened.packed else ()
            return RawLog(raw.frame, raw.columns, raw.rows, (*packing, *raw.notes))
    return read_parquet_parts(source, path, reading)


def _format_of(source: str, opened: Opened) -> Format:
    start = opened.file.peek(64)
    if start.startswith(MAGIC):
        return "parquet"
    suffixes = [suffix.lower() for name in (source, opened.name) for suffix in Path(name).suffixes]
    kind = next((FORMATS[suffix] for suffix in reversed(suffixes) if suffix in FORMATS), None)
    if kind is None:
        raise DataError(
            f"{source} has no known file name extension; use one of {', '.join(FORMATS)} (packed or not), "
            "or name the format: --format csv, tsv, jsonl or parquet"
        )
    is_json = kind != "parquet" and start.lstrip().startswith((b'{"', b'[{"'))
    return "jsonl" if is_json else kind


_READERS: dict[Format, Callable[[str, BinaryIO, Format, Reading], RawLog]] = {
    "csv": read_separated,
    "tsv": read_separated,
    "jsonl": read_json,
    "parquet": read_parquet,
}
