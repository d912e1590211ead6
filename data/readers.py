"""Raw interaction logs → one frame of (user, item, timestamp) in file order.

Covered: CSV and TSV (with a header, or three bare columns user, item, timestamp), JSON lines, the Amazon-2014 review
files (strict JSON or Python-literal lines), all of them also gzipped, and Parquet. Not covered: filtering and splitting
(`prepare.py`). Whatever is wrong with a row is reported with its row number; no row is dropped in silence.
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
from .times import parse_times

Format = Literal["csv", "tsv", "jsonl", "parquet"]
FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",  # the Amazon files hold JSON lines under this ending
    ".parquet": "parquet",
}
SEPARATORS = {"csv": ",", "tsv": "\t"}
ROLES = ("user", "item", "timestamp")
GUESSES = {  # column names compared in lower case without punctuation, best guess first
    "user": ("user", "userid", "uid", "reviewerid", "customerid", "visitorid", "memberid", "sessionid"),
    "item": ("item", "itemid", "iid", "asin", "parentasin", "productid", "movieid", "trackid", "articleid"),
    "timestamp": ("timestamp", "unixreviewtime", "time", "ts", "unixtime", "datetime", "eventtime", "date"),
}
CHUNK_ROWS = 500_000  # JSON lines are turned into columns in chunks: Python objects of 20 M rows would fill the memory


@dataclass(frozen=True)
class Log:
    """A raw log: `frame` has user (String), item (String), timestamp (Int64) in file order."""

    frame: pl.DataFrame
    columns: dict[str, str]  # role → name of the column it was read from, guessed or given
    rows_read: int


def read_log(
    path: Path,
    *,
    user: str | None = None,
    item: str | None = None,
    timestamp: str | None = None,
    format: Format | None = None,
) -> Log:
    """Read an interaction log; columns that are not named are guessed, and `Log.columns` says what was taken.

    Raises DataError for a file that is missing, empty, cut off or of an unknown kind, for columns that are not there,
    and for the first row without a user or an item or with an unreadable time.
    """
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}; check the path")
    kind = format or _format_of(path)
    given = {role: name for role, name in zip(ROLES, (user, item, timestamp), strict=True) if name is not None}
    raw, columns, first_row = _READERS[kind](path, kind, given)
    if raw.is_empty():
        raise DataError(f"{path.name} has no rows; a log needs one interaction per row")
    return Log(_typed(path, raw, first_row), columns, raw.height)


def _format_of(path: Path) -> Format:
    endings = [ending.lower() for ending in path.suffixes if ending.lower() != ".gz"]
    kind = FORMATS.get(endings[-1]) if endings else None
    if kind is None:
        raise DataError(
            f"{path.name} has no ending that says what it is; use one of {', '.join(FORMATS)} (with .gz or without), "
            "or name the format: --format csv, tsv, jsonl or parquet"
        )
    return kind


def _choose(path: Path, found: list[str], given: dict[str, str]) -> dict[str, str]:
    """Role → column, for the columns `found`: the given name, else the best guess. DataError if one is not there."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower().split(":")[0]): name for name in reversed(found)}
    columns = {}
    for role in ROLES:
        name = given.get(role) or next((plain[guess] for guess in GUESSES[role] if guess in plain), None)
        if name is None or name not in found:
            wanted = f"column {name!r}" if name else f"a column for the {role}"
            raise DataError(
                f"{path.name} lacks {wanted}; it has {', '.join(repr(n) for n in found)}: name it with --{role}"
            )
        columns[role] = name
    if len(set(columns.values())) < len(ROLES):
        raise DataError(f"{path.name}: user, item and timestamp must be three columns, not {columns}")
    return columns


def _typed(path: Path, raw: pl.DataFrame, first_row: int) -> pl.DataFrame:
    """Ids as text and times as whole numbers; `first_row` is the row number of the frame's first row in the file."""
    for role in ("user", "item"):
        text = raw[role].cast(pl.String)
        bad = (text.is_null() | (text == "")).arg_true()
        if len(bad):
            raise DataError(f"{path.name}, row {first_row + bad[0]}: the {role} is empty; remove or repair the row")
        raw = raw.with_columns(text.alias(role))
    times, bad_row = parse_times(raw["timestamp"])
    if bad_row is not None:
        raise DataError(
            f"{path.name}, row {first_row + bad_row}: the time {raw['timestamp'][bad_row]!r} cannot be read; "
            "use Unix times (numbers) or ISO dates like 2024-05-31T12:00:00 throughout"
        )
    return raw.select("user", "item", times.alias("timestamp"))


# CSV and TSV


def _read_separated(path: Path, kind: Format, given: dict[str, str]) -> tuple[pl.DataFrame, dict[str, str], int]:
    content, separator = _content(path), SEPARATORS[kind]
    cells = _first_line(path, content).split(separator)
    bare = _is_bare(cells, given)
    names = _bare_names(cells) if bare else [cell.strip().strip('"') for cell in cells]
    columns = _choose(path, names, given)
    try:
        frame = pl.read_csv(
            content,
            separator=separator,
            has_header=False,  # names come from us, so that bare files and headers go one way
            skip_rows=0 if bare else 1,
            new_columns=names,
            infer_schema=False,  # everything as text: an id '007' stays what it is
            quote_char='"' if kind == "csv" else None,
        )
    except pl.exceptions.NoDataError:
        frame = pl.DataFrame({name: [] for name in names})
    except pl.exceptions.PolarsError as error:
        raise DataError(_csv_problem(path, content, separator, len(cells), error)) from None
    return frame.select(**{role: pl.col(name) for role, name in columns.items()}), columns, 1 if bare else 2


def _first_line(path: Path, content: bytes) -> str:
    line = content.split(b"\n", 1)[0].removeprefix(b"\xef\xbb\xbf").rstrip(b"\r")
    if not content.strip():
        raise DataError(f"{path.name} is empty; a log needs one interaction per row")
    return _text(path, line, 1)


def _is_bare(cells: list[str], given: dict[str, str]) -> bool:
    """Whether the first line is already data: no column name that was given, and a number at the end."""
    named = any(name in cells for name in given.values())
    return not named and re.fullmatch(r"-?\d+(\.\d+)?", cells[-1].strip()) is not None


def _bare_names(cells: list[str]) -> list[str]:
    if len(cells) == len(ROLES):
        return list(ROLES)
    return [f"column_{number}" for number in range(1, len(cells) + 1)]


def _csv_problem(path: Path, content: bytes, separator: str, width: int, error: pl.exceptions.PolarsError) -> str:
    """Where a file that the reader refused is wrong: the first row with too many fields, or its own words."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        _text(path, line, number)
        if '"' not in line.decode() and line.count(separator.encode()) >= width:
            fields = line.count(separator.encode()) + 1
            return f"{path.name}, row {number}: {fields} fields instead of {width}; remove or repair the row"
    reason = str(error).strip().splitlines()[-1]
    return f"{path.name} cannot be read: {reason}; repair the quotes or name another --format"


def _text(path: Path, line: bytes, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise DataError(f"{path.name}, row {number}: not UTF-8 text; convert the file to UTF-8") from None


def _content(path: Path) -> bytes:
    """The whole file, gunzipped in memory: nothing of a log, hence of its test events, is written anywhere else."""
    with _opened(path) as file:
        return b"".join(_guarded(path, iter(lambda: file.read(1 << 24), b"")))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path.name} cannot be read ({error.strerror}); check its permissions") from None
    with file:
        zipped = file.peek(2)[:2] == b"\x1f\x8b"
        yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if zipped else file


def _guarded(path: Path, parts: Iterator[bytes]) -> Iterator[bytes]:
    """The same parts; a damaged gzip stream becomes a DataError."""
    try:
        yield from parts
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} is not a whole gzip file ({error}); download or copy it again") from None


# JSON lines and the Amazon files


def _read_lines(path: Path, kind: Format, given: dict[str, str]) -> tuple[pl.DataFrame, dict[str, str], int]:
    columns: dict[str, str] = {}
    frames: list[pl.DataFrame] = []
    chunk: list[tuple[Any, ...]] = []
    with _opened(path) as file:
        for number, line in enumerate(_guarded(path, iter(file)), start=1):
            record = _record(path, line, number)
            columns = columns or _choose(path, list(record), given)
            chunk.append(_picked(path, record, columns, number))
            if len(chunk) == CHUNK_ROWS:
                frames.append(_frame(chunk))
                chunk = []
    if not columns:
        raise DataError(f"{path.name} is empty; a log needs one interaction per row")
    return pl.concat([*frames, _frame(chunk)]), columns, 1


def _record(path: Path, line: bytes, number: int) -> dict[str, Any]:
    text = _text(path, line, number)
    try:
        record = json.loads(text)
    except ValueError:
        try:
            record = ast.literal_eval(text.strip())  # the older Amazon files hold Python dictionaries, one per line
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            record = None
    if not isinstance(record, dict):
        raise DataError(f"{path.name}, row {number}: not a JSON object; every line must hold one")
    return record


def _picked(path: Path, record: dict[str, Any], columns: dict[str, str], number: int) -> tuple[str, str, str]:
    values = []
    for role in ROLES:
        value = record.get(columns[role])
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise DataError(f"{path.name}, row {number}: {columns[role]!r} is {value!r}; it must be a text or a number")
        values.append(str(value))
    return values[0], values[1], values[2]


def _frame(chunk: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(chunk, schema=dict.fromkeys(ROLES, pl.String), orient="row")


# Parquet


def _read_parquet(path: Path, kind: Format, given: dict[str, str]) -> tuple[pl.DataFrame, dict[str, str], int]:
    try:
        columns = _choose(path, list(pl.read_parquet_schema(path)), given)
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
