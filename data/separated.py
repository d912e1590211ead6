"""Text tables (CSV, TSV and their relatives) → the columns user, item and timestamp, as text.

polars parses the bytes in one pass. As long as each row of the result is one line with the right number of cells,
nothing else is done. Otherwise Python's csv module reads the file again, slowly and with the number of each row, and
tells quoted line breaks, which are legal, from stray quotes, which swallow rows. Not covered: the dialect
(`dialect.py`) and the conversion of values.
"""

import csv
import io
import re
from collections.abc import Iterator
from typing import BinaryIO

import polars as pl

from .columns import choose_columns
from .dialect import Dialect, detect, split_line
from .errors import DataError
from .reading import NOT_UTF_8, BadRows, Format, RawLog, Reading
from .wording import counted

HEAD_BYTES = 1 << 17
CHUNK_BYTES = 1 << 24
STAND_IN = "\x1f"  # polars separates by a single byte, so this one (ASCII "unit separator") replaces e.g. "::"
TIME_SHAPE = re.compile(
    r'\s*"?(-?\d[\d.eE+]*|\d{4}[-/]\d{2}[-/]\d{2}.*'
    r'|(\w{3}, ?)?\d{1,2} \w{3} \d{4} .*|\w{3} \w{3} +\d{1,2} \d{2}:.*)"?\s*'  # RFC 2822, Twitter
)
CHUNK_ROWS = 500_000


def read_separated(source: str, file: BinaryIO, declared: Format, reading: Reading) -> RawLog:
    """Read a text table. Raises DataError."""
    first = file.read(HEAD_BYTES)
    if b"\r" in first and b"\n" not in first:  # the line ends of old Macintosh programs
        first = (first + file.read()).replace(b"\r", b"\n")
    head = first if len(first) < HEAD_BYTES or b"\n" not in first else first[: first.rindex(b"\n")]
    dialect = detect(source, head, declared, reading)
    choice = choose_columns(source, dialect.columns, reading.given(), dialect.header)
    text = _Table(source, _body(first, file, dialect), dialect, choice.positions)
    bad = BadRows(source, reading.skip_bad_rows)
    frame, rows, notes = text.read(bad)
    names = {role: dialect.columns[position].name for role, position in choice.positions.items()}
    return RawLog(frame, names, rows, (*dialect.notes, *choice.notes, *notes, *bad.notes()))


def _body(first: bytes, file: BinaryIO, dialect: Dialect) -> bytes:
    """One line that is a cell wider than the rows, so that polars keeps surplus cells; then all rows."""
    separator = dialect.separator.encode()  # "x^" would be the start of a zlib stream, which polars unpacks
    chunks = [first[dialect.offset :], *iter(lambda: file.read(CHUNK_BYTES), b"")]
    while chunks and not (last := chunks.pop().rstrip(b"\r\n")):
        pass
    if chunks or last:
        chunks.append(last)
    content = b"".join([separator.join([b"c"] * (dialect.width + 1)), *([b"\n"] if chunks else []), *chunks])
    if dialect.blank_before_quote:
        content = re.sub(re.escape(separator) + rb' +"', separator + b'"', content)
    return content.replace(separator, STAND_IN.encode()) if len(separator) > 1 else content


class _Table:
    """The rows of a table as bytes, with what is known about them."""

    def __init__(self, source: str, content: bytes, dialect: Dialect, positions: dict[str, int]) -> None:
        self.source = source
        self.content = content
        self.dialect = dialect
        self.positions = positions
        self.separator = STAND_IN if len(dialect.separator.encode()) > 1 else dialect.separator
        self.quoted = dialect.quoted and b'"' in content

    def read(self, bad: BadRows) -> tuple[pl.DataFrame, pl.Series | int, tuple[str, ...]]:
        """The three columns, the row numbers and notes; rows that cannot be parsed are added to `bad`."""
        parsed = self._parse()
        rows = None if parsed is None else self._row_numbers(parsed.height)
        if parsed is None or rows is None:
            return (*self._parse_slowly(bad), ())
        last, surplus = parsed[str(self.dialect.width - 1)], parsed[str(self.dialect.width)]
        frame = parsed.select(**{role: pl.col(str(position)) for role, position in self.positions.items()})
        if self.separator != self.dialect.separator:
            frame = frame.with_columns(pl.all().str.replace_all(STAND_IN, self.dialect.separator, literal=True))
        suspicious = (last.is_null() | surplus.is_not_null()).arg_true()
        if suspicious.is_empty():
            return frame, rows, ()
        return self._without_uneven(frame, suspicious, bad) if isinstance(rows, int) else (*self._parse_slowly(bad), ())

    def _row_numbers(self, height: int) -> pl.Series | int | None:
        """The number of each row, or of the first one if each is one line.

        None if quoted line breaks do not explain why there are `height` rows, or if a cell holds lines that look like
        rows: then a quote may have swallowed them.
        """
        if height == self.content.count(b"\n"):
            return self.dialect.first_row
        lines = self._lines()[1:]
        quotes = lines.str.count_matches('"', literal=True)
        inside = (quotes.cum_sum() - quotes) % 2 == 1  # the line starts within a quoted cell
        ends_inside = inside.shift(-1, fill_value=False)
        spans = (inside | ends_inside).arg_true()  # the lines of rows that have several
        like_rows = pl.Series(map(self._looks_like_row, lines.gather(spans)), dtype=pl.Boolean)
        first, last = ~inside.gather(spans), ~ends_inside.gather(spans)
        ends = like_rows.filter(first | last)  # the first and the last line of each span, in turn
        swallowed = (like_rows & ~first & ~last).any() or (ends.gather_every(2) & ends.gather_every(2, offset=1)).any()
        if swallowed or int((~inside).sum()) != height:
            return None
        return (~inside).arg_true().cast(pl.Int64) + self.dialect.first_row

    def _parse(self) -> pl.DataFrame | None:
        """The columns of the roles, the last column and the surplus one, named by position; None if polars refuses."""
        width = self.dialect.width
        wanted = sorted({*self.positions.values(), width - 1, width})
        try:
            frame = pl.read_csv(
                self.content, separator=self.separator, has_header=False, columns=wanted, truncate_ragged_lines=True,
                infer_schema=False,  # read everything as text: an id '007' keeps its zeros
                quote_char='"' if self.quoted else None,
            )  # fmt: skip
        except pl.exceptions.PolarsError:
            return None
        frame.columns = [str(position) for position in wanted]
        return frame[1:]

    def _without_uneven(
        self, frame: pl.DataFrame, suspicious: pl.Series, bad: BadRows
    ) -> tuple[pl.DataFrame, pl.Series | int, tuple[str, ...]]:
        """Leave out blank lines, and rows with the wrong number of cells, among the rows at `suspicious`."""
        lines = self._lines().gather(suspicious + 1)
        unquoted = lines.str.replace_all(r'"[^"]*"', "") if self.quoted else lines
        cells = unquoted.str.count_matches(self.separator, literal=True) + 1
        width = self.dialect.width
        blank = lines.str.strip_chars(" \r\t") == ""
        right = (cells == width) | (
            (cells == width + 1) & unquoted.str.strip_chars_end(" \r").str.ends_with(self.separator)
        )
        uneven = ~blank & ~right
        for position, number in zip(suspicious.filter(uneven), cells.filter(uneven), strict=True):
            bad.add(self.dialect.first_row + position, _uneven_reason(number, width))
        left_out = suspicious.filter(blank | uneven)
        if left_out.is_empty():
            return frame, self.dialect.first_row, ()
        rows = pl.int_range(self.dialect.first_row, self.dialect.first_row + frame.height, eager=True)
        kept = ~pl.int_range(frame.height, eager=True).is_in(left_out.implode())
        num_blank = int(blank.sum())
        notes = (f"{counted(num_blank, 'blank line')} left out",) if num_blank else ()
        return frame.filter(kept), rows.filter(kept), notes

    def _lines(self) -> pl.Series:
        """The lines as text, the stand-in first."""
        unused = next(
            chr(code) for code in range(32) if chr(code) not in "\n\r" and chr(code).encode() not in self.content
        )
        lines = pl.read_csv(self.content, separator=unused, has_header=False, infer_schema=False, quote_char=None)
        return lines.to_series().fill_null("")

    def _parse_slowly(self, bad: BadRows) -> tuple[pl.DataFrame, pl.Series]:
        frames, chunk = [], []
        for row, cells in self._rows(bad):
            chunk.append((*(cells[position] or None for position in self.positions.values()), row))
            if len(chunk) == CHUNK_ROWS:
                frames.append(self._frame(chunk))
                chunk = []
        frame = pl.concat([*frames, self._frame(chunk)])
        return frame.drop("row"), frame["row"]

    def _frame(self, chunk: list[tuple[str | int | None, ...]]) -> pl.DataFrame:
        schema = {**dict.fromkeys(self.positions, pl.String), "row": pl.Int64}
        return pl.DataFrame(chunk, schema=schema, orient="row").select("user", "item", "timestamp", "row")

    def _rows(self, bad: BadRows) -> Iterator[tuple[int, list[str]]]:
        """Row number and cells of every complete row; the others are added to `bad`. Raises DataError."""
        width = self.dialect.width
        lines = _Lines(self.content, self.dialect.first_row - 1)
        reader = csv.reader(
            lines, delimiter=self.separator, quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        )
        try:
            next(reader)
            lines.take()
            for cells in reader:
                span, decoded = lines.take()
                row = lines.number - len(span) + 1
                if not any(map(str.strip, span)):
                    continue
                self._check_span(row, span)
                reason = self._fault(cells, span, width) if decoded else NOT_UTF_8
                if reason:
                    bad.add(row, reason)
                else:
                    yield row, self._restored(cells)
        except csv.Error as error:
            raise DataError(
                f"{self.source}, row {lines.number - len(lines.span) + 1}: {error}; probably a quote is not closed: "
                "correct it, or read quotes as text with --no-quotes"
            ) from None

    def _restored(self, cells: list[str]) -> list[str]:
        if self.separator == self.dialect.separator:
            return cells
        return [cell.replace(STAND_IN, self.dialect.separator) for cell in cells]

    def _fault(self, cells: list[str], span: list[str], width: int) -> str | None:
        if self.quoted and any('"' in line for line in span):
            try:
                list(csv.reader(span, delimiter=self.separator, strict=True))
            except csv.Error:
                return "a stray quote; remove it, or read quotes as text with --no-quotes"
        if len(cells) == width or (len(cells) == width + 1 and not cells[-1].strip()):
            return None
        return _uneven_reason(len(cells), width)

    def _check_span(self, row: int, span: list[str]) -> None:
        """Raise DataError if lines inside a quoted cell look like rows."""
        if len(span) == 1:
            return
        inside = any(map(self._looks_like_row, span[1:-1]))
        if inside or (self._looks_like_row(span[0]) and self._looks_like_row(span[-1])):
            raise DataError(
                f"{self.source}, row {row}: a quote opens a cell that swallows the rows up to {row + len(span) - 1}; "
                "correct the quote, or read quotes as text with --no-quotes"
            )

    def _looks_like_row(self, line: str) -> bool:
        cells = split_line(line.rstrip("\r\n"), self.separator, quoted=False)
        time = self.positions["timestamp"]
        return len(cells) == self.dialect.width and TIME_SHAPE.fullmatch(cells[time]) is not None


class _Lines:
    """The lines of a text as csv.reader takes them, with the number of the last one."""

    def __init__(self, content: bytes, number: int) -> None:
        self._file = io.BytesIO(content)
        self.number = number - 1  # the first line has the number `number`
        self.span: list[str] = []  # the lines since the last call of `take`
        self._decoded = True  # whether all of them are UTF-8

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.number += 1
        text = line.decode(errors="replace")
        self._decoded &= "\ufffd" not in text or text.encode() == line
        text = text.removesuffix("\n").removesuffix("\r").replace("\r", " ") + "\n"
        self.span.append(text)
        return text

    def take(self) -> tuple[list[str], bool]:
        """The lines since the last call, and whether all of them are UTF-8."""
        taken, decoded = self.span, self._decoded
        self.span, self._decoded = [], True
        return taken, decoded


def _uneven_reason(cells: int, width: int) -> str:
    return f"{cells} fields instead of {width}"
