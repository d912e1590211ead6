"""The times of a log, in any supported notation, to Unix seconds (Int64) and the nanoseconds within the second.

Covered: numbers in the units of `time_units.py`; ISO 8601 dates and times with their usual variants (a blank for the T,
a comma before the fraction, the zones Z, UTC, +00, +0000 and +00:00); RFC 2822 dates and those of Twitter
(Tue Apr 03 18:00:09 +0000 2012); date columns of Parquet. Times without a zone are UTC.

Not covered: notations whose order of day and month is unclear (05/06/2024).
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from .errors import DataError
from .rows import Source
from .time_units import (
    LATEST,
    PER_SECOND,
    ROUNDED,
    SECONDS_PER_DAY,
    UNIT_NAMES,
    MixedUnitsError,
    Numbers,
    Reading,
    TimeUnit,
    UnknownUnitError,
    implausible_seconds,
    read_numbers,
)
from .wording import counted

NANOSECONDS = 10**9
MANY_ROWS, FEW_TIMES = 30, 11  # an order of many rows with so few different numbers may be a rating
CLOCK = r"\d:\d{2}(?::\d{2}(?:[.,]\d+)?)?"  # the end of a time of day
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
RFC_2822 = r"^(?:[A-Z][a-z]{2}, ?)?(\d{1,2}) ([A-Z][a-z]{2}) (\d{4}) (\d{2}:\d{2}(?::\d{2})?)(?: ?(\S+))?$"
TWITTER = r"^[A-Z][a-z]{2} ([A-Z][a-z]{2}) +(\d{1,2}) (\d{2}:\d{2}:\d{2})(?: (\S+))? (\d{4})$"
ISO_8601 = (
    r"^(\d{4})[-/](\d{2})[-/](\d{2})"  # date
    r"(?:[Tt ](\d{2}:\d{2})(:\d{2})?(?:[.,](\d+))?"  # time
    r" ?(Z|z|UTC|GMT|UT|[+-](?:0\d|1[0-4])(?::?[0-5]\d)?)?)?$"  # zone
)
ADVICE = (
    "use Unix times (numbers) or ISO dates like 2024-05-31T12:00:00 throughout, "
    "or leave these rows out with --drop-bad-times"
)


@dataclass(frozen=True)
class Times:
    """The times of all rows. Where `bad`, a row has no usable time, and `complaint` says which rows and why."""

    seconds: pl.Series  # Int64, Unix seconds
    nanoseconds: pl.Series | None  # Int64 within the second; None if all are 0
    bad: pl.Series | None
    complaint: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Parsed:
    """Times before plausibility is checked; `readable` is None if all are."""

    numbers: Numbers  # in an unknown unit, or Unix seconds if `dates`
    nanoseconds: pl.Series | None
    readable: pl.Series | None
    dates: bool


def read_times(raw: pl.Series, unit: TimeUnit, source: Source) -> Times:
    """Convert the column `raw` of numbers, text or dates. Raises DataError if the column as a whole has no reading."""
    column = f"{source.file}: the times in column {source.columns.get('timestamp', 'timestamp')!r}"
    parsed = _parse(raw, column, source)
    if parsed.readable is not None and not parsed.readable.any():
        raise DataError(
            f"{source.place(~parsed.readable)}: the time {raw[0]!r:.60} cannot be read, nor any other; {ADVICE}"
        )
    if parsed.dates and unit != "auto":
        raise DataError(f"{column} are dates, to which --time-unit {unit} does not apply; leave it out")
    readable = None if parsed.readable is None else parsed.readable.to_numpy()
    values = parsed.numbers if readable is None else parsed.numbers[readable]
    if parsed.dates:
        seconds = values.astype(np.int64, copy=False)
        bad = implausible_seconds(seconds)
        reading = Reading("s", seconds if bad is None else np.where(bad, 0, seconds), None, bad)
    else:
        reading = _read_numbers(values, readable, unit, column, raw, source)
    _check_rounding(raw if parsed.readable is None else raw.filter(parsed.readable), reading, column)
    return _assemble(raw, reading, parsed, column, source)


def _read_numbers(
    values: Numbers, readable: np.ndarray | None, unit: TimeUnit, column: str, raw: pl.Series, source: Source
) -> Reading:
    try:
        return read_numbers(values, unit)
    except MixedUnitsError as error:
        found = []
        for name, place in (error.first, error.second):
            position = place if readable is None else int(np.flatnonzero(readable)[place])
            found.append(f"{UNIT_NAMES[name]} (first in row {source.row(position)}: {raw[position]})")
        raise DataError(
            f"{column} mix {' and '.join(found)}; convert them to one unit, or keep only those of one unit with "
            "--drop-bad-times and --time-unit s, ms, us or ns"
        ) from None
    except UnknownUnitError:
        raise DataError(
            f"{column} are in an unknown unit (row {source.row(0)}: {raw[0]}); "
            "say which one with --time-unit s, ms, us, ns or day, or choose another column with --timestamp"
        ) from None


def _assemble(raw: pl.Series, reading: Reading, parsed: _Parsed, column: str, source: Source) -> Times:
    """Spread the reading, which covers the readable rows only, over all rows; collect bad rows and notes."""
    seconds, nanoseconds = pl.Series(reading.seconds), parsed.nanoseconds
    if reading.nanoseconds is not None:
        nanoseconds = pl.Series(reading.nanoseconds)
    bad = None if reading.bad is None else pl.Series(reading.bad)
    complaint = "" if bad is None else _implausible(raw, bad, parsed, reading.unit, source)
    if parsed.readable is not None:
        unreadable = ~parsed.readable
        complaint = _unreadable(raw, unreadable, source) + (f"; {complaint}" if complaint else "")
        seconds = _spread(seconds, parsed.readable)
        if reading.nanoseconds is not None:
            nanoseconds = _spread(pl.Series(reading.nanoseconds), parsed.readable)
        bad = unreadable if bad is None else unreadable | _spread(bad, parsed.readable).cast(pl.Boolean)
    notes = _notes(raw, reading, nanoseconds, column) + (_zone_notes(raw, column) if parsed.dates else ())
    return Times(seconds, nanoseconds, bad, complaint, notes)


def _spread(values: pl.Series, readable: pl.Series) -> pl.Series:
    """`values` of the readable rows at their places among all rows; 0 elsewhere."""
    spread = np.zeros(len(readable), dtype=values.to_numpy().dtype)
    spread[readable.to_numpy()] = values.to_numpy()
    return pl.Series(spread)


def _unreadable(raw: pl.Series, bad: pl.Series, source: Source) -> str:
    value = raw[int(bad.arg_true()[0])]
    return f"{source.place(bad)}: the time {value!r:.60} cannot be read ({source.extent(bad)})"


def _implausible(raw: pl.Series, bad: pl.Series, parsed: _Parsed, unit: str, source: Source) -> str:
    if parsed.readable is not None:
        bad = _spread(bad, parsed.readable).cast(pl.Boolean)
    values = raw.filter(bad).unique(maintain_order=True)
    shown = ", ".join(str(value) for value in values[:3]) + (", ..." if len(values) > 3 else "")
    return (
        f"{source.place(bad)}: the time {shown} is not the time of an event"
        f"{'' if parsed.dates else f' in {UNIT_NAMES[unit]}'} from 1973-03-03 to 2050-01-01 ({source.extent(bad)})"
    )


def _notes(raw: pl.Series, reading: Reading, nanoseconds: pl.Series | None, column: str) -> tuple[str, ...]:
    notes = []
    if reading.unit == "order":
        notes.append(
            f"{column} are small whole numbers: they are kept as they are, as an order and not as a clock; "
            "if they are a clock, name its unit with --time-unit"
        )
        if len(raw) > MANY_ROWS and pl.Series(reading.seconds).n_unique() <= FEW_TIMES:
            notes.append(f"{column} are few different numbers; if they are ratings, name the times with --timestamp")
    elif reading.unit != "s":
        notes.append(f"{column} were read as {UNIT_NAMES[reading.unit]} and are stored as seconds")
    if raw.dtype == pl.Float32 and reading.unit == "s":
        notes.append(f"{column} are 32-bit floating-point numbers, which round Unix seconds to steps of 128 s")
    usable = reading.seconds if reading.bad is None else reading.seconds[~reading.bad]
    if len(usable) > 1 and nanoseconds is None and usable.min() == usable.max():
        notes.append(f"{column} are all equal: the order of events is the order of rows in the file")
    elif reading.unit != "order" and nanoseconds is None and len(usable) > MANY_ROWS and not np.any(usable % ROUNDED):
        notes.append(f"{column} are all multiples of {ROUNDED:,} s: they seem to be rounded, and events may be tied")
    return tuple(notes)


def _zone_notes(raw: pl.Series, column: str) -> tuple[str, ...]:
    """A note if only a part of the dates have a time zone: their order relative to the others is then a guess."""
    if raw.dtype != pl.String:
        return ()
    has_zone = raw.str.contains(CLOCK + r" ?(?:[A-Za-z]{1,4}|[+-]\d{2}(?::?\d{2})?)\s*$")
    zoned = int(has_zone.sum())
    plain = int((raw.str.contains(CLOCK + r"\s*$") & ~has_zone).sum()) if zoned < len(raw) else 0
    if not zoned or not plain:
        return ()
    return (f"{column} have a time zone in {counted(zoned, 'row')} and none in {plain:,}, which were read as UTC",)


def _check_rounding(raw: pl.Series, reading: Reading, column: str) -> None:
    """Refuse times such as 1.70E+09: scientific notation whose digits do not reach the seconds."""
    if raw.dtype != pl.String or reading.unit == "order" or not raw.str.contains("[eE]").any():
        return
    if raw.str.contains(r"^\s*\d(?:\.\d+)?[eE]\+?\d+\s*$").all() and not np.any(reading.seconds % ROUNDED):
        raise DataError(
            f"{column} are rounded ({raw[0]}): a spreadsheet has replaced their last digits, so that the order of "
            "events is lost; export the log again with this column formatted as a number without decimals"
        )


# Parsing


def _parse(raw: pl.Series, column: str, source: Source) -> _Parsed:
    if raw.dtype in (pl.Date, pl.Datetime):
        return _from_dates(raw)
    if raw.dtype.is_decimal():
        raw = raw.cast(pl.Float64)
    if raw.dtype.is_numeric():
        return _from_numbers(raw)
    if raw.dtype in (pl.String, pl.Categorical, pl.Enum):
        return _from_text(raw.cast(pl.String).str.strip_chars(" \t\r\n\"'"), column, source)
    raise DataError(
        f"{column} have the type {raw.dtype}, which is not a moment in time; "
        "choose another column with --timestamp, or store Unix seconds or dates"
    )


def _from_dates(raw: pl.Series) -> _Parsed:
    ticks = raw.to_physical().cast(pl.Int64).fill_null(0).to_numpy()
    if raw.dtype == pl.Date:
        return _Parsed(ticks * SECONDS_PER_DAY, None, _readable(raw), True)
    per_second = PER_SECOND[raw.dtype.time_unit]  # type: ignore[attr-defined]
    seconds, rest = np.divmod(ticks, per_second)
    rest *= NANOSECONDS // per_second
    return _Parsed(seconds, pl.Series(rest) if rest.any() else None, _readable(raw), True)


def _from_numbers(raw: pl.Series) -> _Parsed:
    if raw.dtype.is_integer():
        integers = raw.cast(pl.Int64, strict=False)
        return _Parsed(integers.fill_null(0).to_numpy(), None, _readable(integers), False)
    numbers = raw.cast(pl.Float64)
    finite = numbers.set(~numbers.is_finite().fill_null(False), None)
    values = finite.fill_null(0.0).to_numpy()
    if np.abs(values).max(initial=0) < LATEST * NANOSECONDS and np.array_equal(values, np.floor(values)):
        return _Parsed(values.astype(np.int64), None, _readable(finite), False)
    return _Parsed(values, None, _readable(finite), False)


def _from_text(text: pl.Series, column: str, source: Source) -> _Parsed:
    integers = text.cast(pl.Int64, strict=False)
    if integers.null_count() == 0:
        return _from_numbers(integers)
    numbers = text.cast(pl.Float64, strict=False)
    numbers = numbers.set(~numbers.is_finite().fill_null(False), None)
    if numbers.null_count() == text.null_count():
        return _from_numbers(numbers)
    if integers.null_count() == numbers.null_count():
        numbers = integers  # exact beyond 2^53
    seconds, nanoseconds = _parse_dates(text)
    if seconds.null_count() == len(text):
        return _from_numbers(numbers)
    number = numbers.is_not_null() & (numbers > 1)  # 0 and -1 stand for an unknown time
    if number.any():
        place = {name: int(mask.arg_true()[0]) for name, mask in (("d", seconds.is_not_null()), ("n", number))}
        raise DataError(
            f"{column} mix dates (first in row {source.row(place['d'])}: {text[place['d']]}) and numbers "
            f"(first in row {source.row(place['n'])}: {text[place['n']]}); convert them to one notation"
        )
    return _Parsed(seconds.fill_null(0).to_numpy(), nanoseconds, _readable(seconds), True)


def _readable(parsed: pl.Series) -> pl.Series | None:
    return parsed.is_not_null() if parsed.null_count() else None


def _parse_dates(text: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    """Unix seconds (null where the text is no date) and nanoseconds within the second, None if there are none."""
    parts = _iso_parts(text)
    if (parts["year"].is_null() & text.is_not_null()).any():
        iso = text.str.replace(RFC_2822, "${3}-${2}-${1}T${4}${5}").str.replace(TWITTER, "${5}-${1}-${2}T${3}${4}")
        parts = _iso_parts(
            iso.str.replace(r"-(\d)T", "-0${1}T").str.replace_many(MONTHS, [f"{number:02d}" for number in range(1, 13)])
        )
    columns = pl.DataFrame(parts).lazy().select(
        day=pl.format("{}-{}-{}", "year", "month", "day").str.to_date("%Y-%m-%d", strict=False).cast(pl.Int64),
        clock=pl.concat_str(pl.col("minute").fill_null("00:00"), pl.col("second").fill_null(":00"))
        .str.to_time("%H:%M:%S", strict=False).cast(pl.Int64) // NANOSECONDS,
        zone=pl.when(pl.col("zone").str.contains(r"^[+-]")).then(
            pl.concat_str(pl.col("zone").str.slice(0, 1), pl.lit("1")).cast(pl.Int64)
            * (pl.col("zone").str.slice(1, 2).cast(pl.Int64) * 3600
               + pl.col("zone").str.extract(r"^.\d\d:?(\d\d)$").cast(pl.Int64).fill_null(0) * 60)
        ).otherwise(0),
        fraction=pl.col("fraction").str.pad_end(9, "0").str.slice(0, 9).cast(pl.Int64).fill_null(0),
    ).collect()  # fmt: skip
    seconds = columns["day"] * SECONDS_PER_DAY + columns["clock"] - columns["zone"]
    fraction = columns["fraction"]
    return seconds, fraction if (fraction != 0).any() else None


def _iso_parts(text: pl.Series) -> pl.DataFrame:
    names = ["year", "month", "day", "minute", "second", "fraction", "zone"]
    return text.str.extract_groups(ISO_8601).struct.rename_fields(names).struct.unnest()
