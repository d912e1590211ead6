"""JSON → the columns user, item and timestamp, as text: lines, an array of objects, or one list per column.

Lines may be Python literals, as in the older Amazon review files, and blank. An array is decoded element by element and
counts them as rows. Not covered: objects that hold the records under a key.
"""

import ast
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import polars as pl

from .columns import Column, choose_columns
from .errors import DataError
from .reading import NOT_UTF_8, BadRows, Format, RawLog, Reading

CHUNK_ROWS = 500_000  # records are converted to columns in chunks: Python objects of 20 M rows would fill the memory
SAMPLE_RECORDS = 200
LINE_END = b"\n"
BETWEEN_VALUES = re.compile(r"[\s,]*")

Record = dict[str, Any]


def read_json(source: str, file: BinaryIO, declared: Format, reading: Reading) -> RawLog:
    """Read JSON in any of the three layouts. Raises DataError."""
    bad = BadRows(source, reading.skip_bad_rows)
    records = _records(source, file, bad)
    sample = list(itertools.islice(records, SAMPLE_RECORDS))
    if not sample:
        bad.notes()  # raises if there are rows, but none is a record
        raise DataError(f"{source} is empty; a log needs one interaction per row")
    keys = list(dict.fromkeys(key for _, record in sample for key in record))
    columns = [Column(key, [_sample_text(record.get(key)) for _, record in sample]) for key in keys]
    choice = choose_columns(source, columns, reading.given())
    names = {role: keys[position] for role, position in choice.positions.items()}
    frames = []
    rows = _values(itertools.chain(sample, records), names, bad)
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        frames.append(_frame(chunk, names))
    frame = pl.concat([*frames, _frame([], names)])
    return RawLog(frame.select("user", "item", "timestamp"), names, frame["row"], (*choice.notes, *bad.notes()))


def _records(source: str, file: BinaryIO, bad: BadRows) -> Iterator[tuple[int, Record]]:
    """Row number and object of every row; rows without an object are added to `bad`."""
    lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    number, line = first
    record = _parse_line(line)
    if line.lstrip().startswith(b"[") or (record is None and line.strip() == b"{"):
        record, records = None, _elements(source, _text(source, number, line + file.read()), bad)
    else:
        records = _lines(itertools.chain([first], lines), bad)
    opening = next(records, None)
    if opening is None:
        return
    if _is_by_column(opening[1]):
        yield from _by_column(source, opening[1])
    else:
        yield from itertools.chain([opening], records)


def _lines(lines: Iterable[tuple[int, bytes]], bad: BadRows) -> Iterator[tuple[int, Record]]:
    for number, line in lines:
        record = _parse_line(line)
        if record is not None:
            yield number, record
        else:
            bad.add(number, _line_reason(line))


def _parse_line(line: bytes) -> Record | None:
    try:
        text = line.decode()
        record = json.loads(text)
    except UnicodeDecodeError:
        return None
    except (ValueError, RecursionError):
        try:
            record = ast.literal_eval(text.strip())  # the older Amazon files contain one Python dictionary per line
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return record if isinstance(record, dict) else None


def _line_reason(line: bytes) -> str:
    try:
        line.decode()
    except UnicodeDecodeError:
        return NOT_UTF_8
    return "not a JSON object; every line must be one"


def _text(source: str, number: int, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{source}, line {number + content.count(LINE_END, 0, error.start)}: {NOT_UTF_8}") from None


def _elements(source: str, text: str, bad: BadRows) -> Iterator[tuple[int, Record]]:
    """The objects of arrays, or objects one after the other, each over several lines; rows are counted from 1."""
    decoder = json.JSONDecoder()
    is_array = text.lstrip().startswith("[")
    position = text.index("[") + 1 if is_array else 0
    row = 1
    while (position := _end_of(BETWEEN_VALUES, text, position)) < len(text):
        if is_array and text[position] == "]":
            position = _end_of(BETWEEN_VALUES, text, position + 1)
            if position == len(text):
                return
            if text[position] != "[":
                raise DataError(f"{source}, after row {row - 1}: there is text after the closing bracket; remove it")
            position += 1
            continue
        try:
            element, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}, row {row}: broken JSON ({str(error):.80}); correct or cut the file") from None
        if isinstance(element, dict):
            yield row, element
        else:
            bad.add(row, "not a JSON object; every element must be one")
        row += 1
    if is_array:
        raise DataError(f"{source} ends within the array: there is no closing bracket; copy or download it again")


def _end_of(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position


def _is_by_column(record: Record) -> bool:
    """Whether an object holds a whole log, one list or one object of values per column (pandas writes this)."""
    return len(record) >= 3 and all(isinstance(value, (dict, list)) for value in record.values())


def _by_column(source: str, table: Record) -> Iterator[tuple[int, Record]]:
    indices = [list(values) if isinstance(values, dict) else range(len(values)) for values in table.values()]
    if any(len(index) != len(indices[0]) for index in indices):
        lengths = ", ".join(
            f"{name!r:.40} {len(index)}" for name, index in zip(list(table)[:10], indices, strict=False)
        )
        raise DataError(
            f"{source} has one list per column, and they differ in length ({lengths}); "
            "write one JSON object per row and line instead"
        )
    for row, key in enumerate(indices[0], start=1):
        yield (
            row,
            {name: values.get(key) if isinstance(values, dict) else values[key] for name, values in table.items()},
        )


def _values(
    records: Iterable[tuple[int, Record]], names: dict[str, str], bad: BadRows
) -> Iterator[tuple[str | int | None, ...]]:
    """The values of each record in the order of `names`, and its row number; a missing value is None."""
    for row, record in records:
        values = [record.get(name) for name in names.values()]
        reason = next((fault for name, value in zip(names.values(), values, strict=True)
                       if (fault := _fault(name, value))), None)  # fmt: skip
        if reason:
            bad.add(row, reason)
        else:
            yield (*(None if value is None else str(value) for value in values), row)


def _fault(name: str, value: object) -> str | None:
    if isinstance(value, str):
        if value.isascii() or _is_unicode(value):
            return None
        return f"{name!r} holds half of a surrogate pair, which is no text"
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return None
    return f"{name!r} is {value!r:.40}; use a string or a number"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sample_text(value: object) -> str:
    return "" if value is None else str(value)


def _frame(chunk: list[tuple[str | int | None, ...]], names: dict[str, str]) -> pl.DataFrame:
    return pl.DataFrame(chunk, schema={**dict.fromkeys(names, pl.String), "row": pl.Int64}, orient="row")
