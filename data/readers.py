"""Raw interaction logs → one frame of (user, item, timestamp) in file order.

Covered: CSV and TSV (with a header, or without one and with the three columns user, item, timestamp), JSON lines, the
Amazon-2014 review files (lines of strict JSON or Python literals), each of them optionally gzipped, and Parquet. Not
covered: filtering and splitting (`prepare.py`). Errors name the row number; no row is dropped silently.
"""

import ast
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import polars as pl

from .errors import DataError
from .interactions import STRICT, Cleaning, clean_interactions
from .rows import Source

Format = Literal["csv", "tsv", "jsonl", "parquet"]
FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",  # the Amazon files contain JSON lines despite this extension
    ".parquet": "parquet",
}
SEPARATORS = {"csv": ",", "tsv": "\t"}
ROLES = ("user", "item", "timestamp")
GUESSES = {  # column names, compared in lower case without punctuation; the first match wins
    "user": ("user", "userid", "uid", "reviewerid", "customerid", "visitorid", "memberid", "sessionid"),
    "item": ("item", "itemid", "iid", "asin", "parentasin", "productid", "movieid", "trackid", "articleid"),
    "timestamp": ("timestamp", "unixreviewtime", "time", "ts", "unixtime", "datetime", "eventtime", "date"),
}
CHUNK_ROWS = 500_000  # JSON lines are converted to columns in chunks: Python objects of 20 M rows would fill the memory


@dataclass(frozen=True)
class Log:
    """A raw log: `frame` as `clean_interactions` returns it, in file order; its timestamps are Unix seconds."""

    frame: pl.DataFrame
    columns: dict[str, str]  # role → the column that was used, given or guessed
    rows_read: int
    notes: tuple[str, ...] = ()  # what was noticed, changed or left out; whole sentences for people


def read_log(
    path: Path,
    *,
    user: str | None = None,
    item: str | None = None,
    timestamp: str | None = None,
    format: Format | None = None,
    cleaning: Cleaning = STRICT,
) -> Log:
    """Read an interaction log; columns that are not given are guessed, and `Log.columns` records the choice.

    Raises DataError if the file is missing, empty, truncated or of an unknown format, if a column is missing, or if a
    row has no user, no item or an unreadable time.
    """
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}; check the path")
    kind = format or _format_of(path)
    given = {role: name for role, name in zip(ROLES, (user, item, timestamp), strict=True) if name is not None}
    raw, columns, first_row = _READERS[kind](path, kind, given)
    if raw.is_empty():
        raise DataError(f"{path.name} has no rows; a log needs one interaction per row")
    frame, notes = clean_interactions(raw, Source(path.name, columns, first_row), cleaning)
    return Log(frame, columns, raw.height, notes)


def _format_of(path: Path) -> Format:
    extensions = [extension.lower() for extension in path.suffixes if extension.lower() != ".gz"]
    kind = FORMATS.get(extensions[-1]) if extensions else None
    if kind is None:
        raise DataError(
            f"{path.name} has no known file name extension; use one of {', '.join(FORMATS)} (optionally with .gz), "
            "or name the format: --format csv, tsv, jsonl or parquet"
        )
    return kind


def _choose_columns(path: Path, found: list[str], given: dict[str, str]) -> dict[str, str]:
    """Map each role to one of the columns `found`: the given name, else the best guess. Raises DataError otherwise."""
    normalised = {re.sub(r"[^a-z0-9]", "", name.lower().split(":")[0]): name for name in reversed(found)}
    columns = {}
    for role in ROLES:
        name = given.get(role) or next((normalised[guess] for guess in GUESSES[role] if guess in normalised), None)
        if name is None or name not in found:
            wanted = f"column {name!r}" if name else f"a column for the {role}"
            raise DataError(
                f"{path.name} lacks {wanted}; it has {', '.join(repr(n) for n in found)}: name it with --{role}"
            )
        columns[role] = name
    if len(set(columns.values())) < len(ROLES):
        raise DataError(f"{path.name}: user, item and timestamp must be three columns, not {columns}")
    return columns


# CSV and TSV


def _read_separated(path: Path, kind: Format, given: dict[str, str]) -> tuple[pl.DataFrame, dict[str, str], int]:
    content, separator = _read_content(path), SEPARATORS[kind]
    cells = _first_line(path, content).split(separator)
    headerless = _has_no_header(cells, given)
    names = _default_names(cells) if headerless else [cell.strip().strip('"') for cell in cells]
    columns = _choose_columns(path, names, given)
    try:
        frame = pl.read_csv(
            content,
            separator=separator,
            has_header=False,  # we set the names, so that files with and without a header are read alike
            skip_rows=0 if headerless else 1,
            new_columns=names,
            infer_schema=False,  # read everything as text: an id '007' keeps its zeros
            quote_char='"' if kind == "csv" else None,
        )
    except pl.exceptions.NoDataError:
        frame = pl.DataFrame({name: [] for name in names})
    except pl.exceptions.PolarsError as error:
        raise DataError(_csv_error(path, content, separator, len(cells), error)) from None
    return frame.select(**{role: pl.col(name) for role, name in columns.items()}), columns, 1 if headerless else 2


def _first_line(path: Path, content: bytes) -> str:
    line = content.split(b"\n", 1)[0].removeprefix(b"\xef\xbb\xbf").rstrip(b"\r")
    if not content.strip():
        raise DataError(f"{path.name} is empty; a log needs one interaction per row")
    return _decode(path, line, 1)


def _has_no_header(cells: list[str], given: dict[str, str]) -> bool:
    """Whether the first line is data: it contains none of the given column names and ends with a number."""
    named = any(name in cells for name in given.values())
    return not named and re.fullmatch(r"-?\d+(\.\d+)?", cells[-1].strip()) is not None


def _default_names(cells: list[str]) -> list[str]:
    if len(cells) == len(ROLES):
        return list(ROLES)
    return [f"column_{number}" for number in range(1, len(cells) + 1)]


def _csv_error(path: Path, content: bytes, separator: str, width: int, error: pl.exceptions.PolarsError) -> str:
    """Why polars refused a file: the first row with too many fields, or else the message of polars."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        _decode(path, line, number)
        if '"' not in line.decode() and line.count(separator.encode()) >= width:
            fields = line.count(separator.encode()) + 1
            return f"{path.name}, row {number}: {fields} fields instead of {width}; remove or correct the row"
    reason = str(error).strip().splitlines()[-1]
    return f"{path.name} cannot be read: {reason}; correct the quotes or choose another --format"


def _decode(path: Path, line: bytes, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise DataError(f"{path.name}, row {number}: not UTF-8 text; convert the file to UTF-8") from None


def _read_content(path: Path) -> bytes:
    """The complete file, decompressed in memory, so that test events of a log are not written to a temporary file."""
    with _open(path) as file:
        return b"".join(_check_gzip(path, iter(lambda: file.read(1 << 24), b"")))


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path.name} cannot be read ({error.strerror}); check its permissions") from None
    with file:
        is_gzip = file.peek(2)[:2] == b"\x1f\x8b"
        yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_gzip else file


def _check_gzip(path: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same chunks, and raise DataError if the gzip stream is damaged."""
    try:
        yield from chunks
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} is not a complete gzip file ({error}); download or copy it again") from None


# JSON lines and the Amazon files


def _read_lines(path: Path, kind: Format, given: dict[str, str]) -> tuple[pl.DataFrame, dict[str, str], int]:
    columns: dict[str, str] = {}
    frames: list[pl.DataFrame] = []
    chunk: list[tuple[Any, ...]] = []
    with _open(path) as file:
        for number, line in enumerate(_check_gzip(path, iter(file)), start=1):
            record = _parse_record(path, line, number)
            columns = columns or _choose_columns(path, list(record), given)
            chunk.append(_pick_values(path, record, columns, number))
            if len(chunk) == CHUNK_ROWS:
                frames.append(_to_frame(chunk))
                chunk = []
    if not columns:
        raise DataError(f"{path.name} is empty; a log needs one interaction per row")
    return pl.concat([*frames, _to_frame(chunk)]), columns, 1


def _parse_record(path: Path, line: bytes, number: int) -> dict[str, Any]:
    text = _decode(path, line, number)
    try:
        record = json.loads(text)
    except ValueError:
        try:
            record = ast.literal_eval(text.strip())  # the older Amazon files contain one Python dictionary per line
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            record = None
    if not isinstance(record, dict):
        raise DataError(f"{path.name}, row {number}: not a JSON object; every line must be one")
    return record


def _pick_values(path: Path, record: dict[str, Any], columns: dict[str, str], number: int) -> tuple[str, str, str]:
    values = []
    for role in ROLES:
        value = record.get(columns[role])
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise DataError(f"{path.name}, row {number}: {columns[role]!r} is {value!r}; use a string or a number")
        values.append(str(value))
    return values[0], values[1], values[2]


def _to_frame(chunk: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(chunk, schema=dict.fromkeys(ROLES, pl.String), orient="row")


# Parquet


def _read_parquet(path: Path, kind: Format, given: dict[str, str]) -> tuple[pl.DataFrame, dict[str, str], int]:
    try:
        columns = _choose_columns(path, list(pl.read_parquet_schema(path)), given)
        frame = pl.read_parquet(path, columns=list(columns.values()))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path.name} is not a readable Parquet file ({error}); write it again") from None
    return frame.select(**{role: pl.col(name) for role, name in columns.items()}), columns, 1


_READERS: dict[Format, Callable[[Path, Format, dict[str, str]], tuple[pl.DataFrame, dict[str, str], int]]] = {
    "csv": _read_separated,
    "tsv": _read_separated,
    "jsonl": _read_lines,
    "parquet": _read_parquet,
}
