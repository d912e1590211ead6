"""Times of a log as whole numbers, whatever they were written as."""

import polars as pl

MICROSECONDS = 1_000_000


def parse_times(raw: pl.Series) -> tuple[pl.Series, int | None]:
    """Int64 times and the position of the first unreadable one (None if all are readable).

    Whole numbers keep their unit. Dates and fractions become Unix seconds, or microseconds throughout where a time has
    a fraction of a second: the order of events must survive.
    """
    if raw.dtype.is_integer():
        return _checked(raw.cast(pl.Int64, strict=False))
    if raw.dtype.is_float():
        return _from_numbers(raw.cast(pl.Float64))
    if raw.dtype.is_temporal():
        return _from_dates(raw.cast(pl.Datetime("us"), strict=False))
    text = raw.cast(pl.String).str.strip_chars()
    if str(text[0] or "").count("-") >= 2:  # 2024-05-31…; a number has one '-' at most
        return _from_dates(_parse_iso(text))
    numbers = text.cast(pl.Int64, strict=False)
    return _checked(numbers) if numbers.null_count() == 0 else _from_numbers(text.cast(pl.Float64, strict=False))


def _parse_iso(text: pl.Series) -> pl.Series:
    """ISO 8601 only: whether 05/06/2024 is in May or in June cannot be known. Without a zone, times are UTC."""
    whole = (
        text.str.replace(r"^(\d{4}-\d{2}-\d{2})$", "${1}T00:00:00")
        .str.replace(r"^(\d{4}-\d{2}-\d{2}) ", "${1}T")
        .str.replace(r"T(\d{2}:\d{2})(Z|[+-]|$)", "T${1}:00${2}")
        .str.replace(r"(:\d{2}(?:\.\d+)?)Z?$", "${1}+00:00")
    )
    # A clock that ends in ±hh:mm also ends in ':mm', which the last replacement would take for seconds
    whole = whole.str.replace(r"([+-]\d{2}:\d{2})\+00:00$", "${1}")
    return whole.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z", strict=False, time_unit="us")


def _from_dates(dates: pl.Series) -> tuple[pl.Series, int | None]:
    stamps = dates.dt.timestamp("us")
    return _checked(stamps if (stamps % MICROSECONDS != 0).any() else stamps // MICROSECONDS)


def _from_numbers(numbers: pl.Series) -> tuple[pl.Series, int | None]:
    finite = numbers.set(~numbers.is_finite().fill_null(False), None)
    fractions = (finite != finite.floor()).any()
    return _checked(((finite * MICROSECONDS).round() if fractions else finite).cast(pl.Int64, strict=False))


def _checked(times: pl.Series) -> tuple[pl.Series, int | None]:
    bad = times.is_null().arg_true()
    return times, int(bad[0]) if len(bad) else None
