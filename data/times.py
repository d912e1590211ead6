"""Conversion of the times of a log, in any supported notation, to Int64."""

import polars as pl

MICROSECONDS = 1_000_000


def parse_times(raw: pl.Series) -> tuple[pl.Series, int | None]:
    """Convert to Int64; also returns the position of the first unreadable time (None if all are readable).

    Integers keep their unit. Dates and fractional numbers become Unix seconds; if any of them has a fraction of a
    second, all become microseconds, so that the order of events is preserved.
    """
    if raw.dtype.is_integer():
        return _first_null(raw.cast(pl.Int64, strict=False))
    if raw.dtype.is_float():
        return _from_numbers(raw.cast(pl.Float64))
    if raw.dtype.is_temporal():
        return _from_dates(raw.cast(pl.Datetime("us"), strict=False))
    text = raw.cast(pl.String).str.strip_chars()
    if str(text[0] or "").count("-") >= 2:  # 2024-05-31…; a number has at most one '-'
        return _from_dates(_parse_iso(text))
    numbers = text.cast(pl.Int64, strict=False)
    return _first_null(numbers) if numbers.null_count() == 0 else _from_numbers(text.cast(pl.Float64, strict=False))


def _parse_iso(text: pl.Series) -> pl.Series:
    """Parse ISO 8601 only, because 05/06/2024 may be in May or in June. Times without a zone are UTC."""
    complete = (
        text.str.replace(r"^(\d{4}-\d{2}-\d{2})$", "${1}T00:00:00")
        .str.replace(r"^(\d{4}-\d{2}-\d{2}) ", "${1}T")
        .str.replace(r"T(\d{2}:\d{2})(Z|[+-]|$)", "T${1}:00${2}")
        .str.replace(r"(:\d{2}(?:\.\d+)?)Z?$", "${1}+00:00")
    )
    # The last replacement mistakes the ':mm' of a zone ±hh:mm for seconds and appends a second zone: remove that one
    complete = complete.str.replace(r"([+-]\d{2}:\d{2})\+00:00$", "${1}")
    return complete.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z", strict=False, time_unit="us")


def _from_dates(dates: pl.Series) -> tuple[pl.Series, int | None]:
    stamps = dates.dt.timestamp("us")
    return _first_null(stamps if (stamps % MICROSECONDS != 0).any() else stamps // MICROSECONDS)


def _from_numbers(numbers: pl.Series) -> tuple[pl.Series, int | None]:
    finite = numbers.set(~numbers.is_finite().fill_null(False), None)
    fractions = (finite != finite.floor()).any()
    return _first_null(((finite * MICROSECONDS).round() if fractions else finite).cast(pl.Int64, strict=False))


def _first_null(times: pl.Series) -> tuple[pl.Series, int | None]:
    bad = times.is_null().arg_true()
    return times, int(bad[0]) if len(bad) else None
