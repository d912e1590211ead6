"""The dialect of a text table: separator, quotes, header, and what precedes the first row. Found in the first bytes.

The separator that gives the same number of cells in most lines wins. Ties are decided by whether quotes enclose
complete cells, then by whether a column has times, then by the file name extension. Not covered: reading the rows
(`separated.py`) and choosing columns (`columns.py`).
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .columns import Column, is_role_name, kind_of
from .errors import DataError
from .reading import Format, Reading

SAMPLE_LINES = 200
SEPARATORS = (",", "\t", ";", "|", "::", " ")
DECLARED = {"csv": ",", "tsv": "\t"}
SEPARATOR_NAMES = {"\\t": "\t", "tab": "\t", "comma": ",", "semicolon": ";", "space": " ", "pipe": "|"}
MIN_COLUMNS = 3


@dataclass(frozen=True)
class Dialect:
    """How the rows of one text table are written."""

    separator: str
    quoted: bool  # whether cells may be enclosed in double quotes
    blank_before_quote: bool  # cells are written like this: a, "b"
    header: bool
    columns: list[Column]
    offset: int  # bytes before the first row
    first_row: int  # the row number of the first row: its line number in the file
    notes: tuple[str, ...]

    @property
    def width(self) -> int:
        return len(self.columns)


def detect(source: str, head: bytes, declared: Format, reading: Reading) -> Dialect:
    """The dialect of a table that starts with the bytes `head`. Raises DataError if there are no lines."""
    lines = [line + b"\n" for line in head.split(b"\n", SAMPLE_LINES)[:SAMPLE_LINES]]
    texts = [line.decode(errors="replace").rstrip("\r\n") for line in lines]
    notes, start = [], 0
    announced = re.fullmatch(r'"?sep=(.+?)"?', texts[0], re.IGNORECASE) if texts else None
    if announced:
        notes.append(f"the first line names the separator {announced[1]!r}")
        start = 1
    body = [text for text in texts[start:] if text.strip()]
    if not body:
        raise DataError(f"{source} is empty; a log needs one interaction per row")
    # A line that starts with '#' may also be a header or hold the id of a hashtag: see _first_line
    uncommented = [text for text in body if not text.startswith("#")] or body
    given = announced[1] if announced and reading.separator is None else reading.separator
    separator = _separator(uncommented, declared, given)
    if separator != DECLARED[declared] and given is None:
        notes.append(f"the separator is {separator!r}, by content")
    quoted = reading.quotes if reading.quotes is not None else _has_quotes(uncommented, separator)
    width = _usual_width(split_line(text, separator, quoted) for text in uncommented)
    first = _first_line(texts, start, separator, quoted, width)
    if any(text.strip() for text in texts[start:first]):
        notes.append("comment lines at the start are left out")
    rows = [split_line(text, separator, quoted) for text in texts[first:] if text.strip()]
    header = reading.header if reading.header is not None else _has_header(rows, reading.given())
    names = _names(rows, header, width)
    columns = [Column(name, _cells(rows[header:], number)) for number, name in enumerate(names)]
    first_row = first + header
    return Dialect(
        separator, quoted, quoted and _has_blank_before_quote(uncommented, separator), header, columns,
        sum(map(len, lines[:first_row])), first_row + 1, tuple(notes),
    )  # fmt: skip


def split_line(line: str, separator: str, quoted: bool) -> list[str]:
    """The cells of one line, which is taken to hold a complete row."""
    if len(separator) > 1 or not quoted:
        return line.split(separator)
    return next(csv.reader([line.replace("\r", " ")], delimiter=separator, skipinitialspace=separator != " "), [])


def _separator(lines: list[str], declared: Format, given: str | None) -> str:
    """The given separator, else the one with the same number of cells in most lines. Raises DataError."""
    if given is not None:
        separator = SEPARATOR_NAMES.get(given, given)
        if not separator or any(character in separator for character in '"\r\n'):
            raise DataError(f"separator={given!r} cannot separate cells; use e.g. ',', ';', '|', '::', tab or space")
        return separator
    order = [DECLARED[declared], *(s for s in SEPARATORS if s != DECLARED[declared])]
    scores = {separator: _score(lines, separator) for separator in order}
    candidates = [separator for separator in order if scores[separator]]
    return max(candidates, key=lambda separator: scores[separator], default=order[0])


def _score(lines: list[str], separator: str) -> tuple[()] | tuple[float, float, bool, float]:
    """The share of lines with the usual number of cells, the share with well-formed quotes, whether a column has times,
    and the share of columns that are not empty.

    All but the first decide if an id contains another separator in every row. Empty below MIN_COLUMNS columns.
    """
    rows = [split_line(line, separator, separator != "\t") for line in lines]
    width, count = Counter(map(len, rows)).most_common(1)[0]
    if width < MIN_COLUMNS:
        return ()
    quotes = sum(_has_well_formed_quotes(line, separator) for line in lines)
    kinds = [kind_of(_cells(rows, number)) for number in range(width)]
    has_times = any(kind in ("instant", "date") for kind in kinds)
    filled = sum(kind != "empty" for kind in kinds) / width
    return count / len(lines), quotes / len(lines), has_times, filled


def _has_well_formed_quotes(line: str, separator: str) -> bool:
    """Whether every quote encloses a complete cell or is doubled inside one."""
    mark = re.escape(separator)
    return '"' not in re.sub(rf'(?:^|(?<={mark})) *"(?:[^"]|"")*" *(?={mark}|$)', "", line)


def _usual_width(rows: Iterable[list[str]]) -> int:
    return Counter(map(len, rows)).most_common(1)[0][0]


def _has_quotes(lines: list[str], separator: str) -> bool:
    """Whether quotes enclose cells. In files with tabs a quote is often a plain character, so the sample decides."""
    if separator != "\t":
        return True
    raw = [cell for line in lines for cell in line.split(separator) if cell.startswith('"')]
    complete = sum(cell.endswith('"') and len(cell) > 1 for cell in raw)
    return complete * 2 > len(raw)


def _has_blank_before_quote(lines: list[str], separator: str) -> bool:
    if len(separator) > 1 or separator == " ":
        return False
    parsed = csv.reader([line.replace("\r", " ") for line in lines], delimiter=separator)
    return any(re.fullmatch(r' +"[^"]+" *', cell) for row in parsed for cell in row)


def _first_line(texts: list[str], start: int, separator: str, quoted: bool, width: int) -> int:
    """The position of the first line that is neither blank nor a comment: '#' and another number of cells."""
    for position in range(start, len(texts)):
        text = texts[position]
        comment = text.startswith("#") and len(split_line(text, separator, quoted)) != width
        if text.strip() and not comment:
            return position
    return start


def _has_header(rows: list[list[str]], given: dict[str, str]) -> bool:
    """Whether the first row holds names: a given one, or else texts above columns with values."""
    first = [cell.strip() for cell in rows[0]]
    if any(name in first for name in given.values() if not name.isdecimal()):
        return True
    if any(kind_of([cell]) not in ("text", "empty") for cell in first):
        return False
    if any(is_role_name(cell) for cell in first) or len(rows) == 1:
        return True
    below = [_cells(rows[1:], number) for number in range(len(first))]
    return any(kind_of(values) not in ("text", "empty") for values in below)


def _names(rows: list[list[str]], header: bool, width: int) -> list[str]:
    """The names of the columns, or column_1, column_2, ...; a separator at the end of every row adds none."""
    if not header:
        return [f"column_{number}" for number in range(1, _width_without_trailing(rows, width) + 1)]
    names = [cell.strip() for cell in rows[0]]
    names[0] = names[0].removeprefix("#")
    trailing = names[-1] == "" and all(row[-1] == "" for row in rows[1:] if len(row) == len(names))
    return names[:-1] if trailing else names


def _cells(rows: list[list[str]], number: int) -> list[str]:
    return [row[number] for row in rows if number < len(row)]


def _width_without_trailing(rows: list[list[str]], width: int) -> int:
    """The number of columns of a file without a header, where every row may end with a separator."""
    trailing = all(row[-1].strip() == "" for row in rows if len(row) == width)
    return width - 1 if trailing and width > MIN_COLUMNS else width
