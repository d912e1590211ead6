"""Numeric times → Unix seconds: the unit follows from the magnitude of the whole column. numpy only.

Every magnitude belongs to one unit, because a time of an event is taken to lie between 1973-03-03 and 2050-01-01:

    [0, 1e8)            a calendar day YYYYMMDD, days since 1970 or (as spreadsheets count) 1899-12-30, or just an order
    [1e8, 2.5e9]        seconds, or YYYYMMDDhh
    [1e11, 2.5e12]      milliseconds, or YYYYMMDDhhmm
    [2e13]              YYYYMMDDhhmmss
    [1e14, 2.5e15]      microseconds
    [2e16]              YYYYMMDDhhmmss and milliseconds
    [1e17, 2.5e18]      nanoseconds

All other values are implausible. A column whose values belong to two of the larger units is mixed and has no reading.
Calendar times are UTC. No note states a time, because notes are visible and the largest times are test events.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

TimeUnit = Literal["auto", "s", "ms", "us", "ns", "day"]
TIME_UNITS: tuple[TimeUnit, ...] = ("auto", "s", "ms", "us", "ns", "day")
EARLIEST, LATEST = 100_000_000, 2_524_608_000  # Unix seconds
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
SECONDS_PER_DAY = 86_400
UNIT_NAMES = {
    "order": "small whole numbers",
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "day": "days since 1970-01-01",
    "excel": "spreadsheet days since 1899-12-30",
    "compact8": "calendar days YYYYMMDD",
    "compact10": "calendar times YYYYMMDDhh",
    "compact12": "calendar times YYYYMMDDhhmm",
    "compact14": "calendar times YYYYMMDDhhmmss",
    "compact17": "calendar times YYYYMMDDhhmmss with milliseconds",
}
MAGNITUDES = {  # in ascending order and disjoint
    "order": (0, EARLIEST - 1),
    "s": (EARLIEST, LATEST),
    "ms": (EARLIEST * 10**3, LATEST * 10**3),
    "compact14": (19730303000000, 20500101000000),
    "us": (EARLIEST * 10**6, LATEST * 10**6),
    "compact17": (19730303000000000, 20500101000000000),
    "ns": (EARLIEST * 10**9, LATEST * 10**9),
}
UNITS = tuple(MAGNITUDES)
LAST_SECONDS = (2**31 - 1, 253_402_214_400, 253_402_300_799)  # the end of int32, 9999-12-31T00:00:00 and T23:59:59
SENTINELS = tuple(second * factor for factor in (1, 10**3, 10**6) for second in LAST_SECONDS)  # meaning "unknown"
TICKS = (  # 2000 to 2050 in ticks of 100 ns since the years 1 (.NET) and 1601 (Windows): as nanoseconds before 1991
    (630_822_816_000_000_000, 646_602_048_000_000_000),
    (125_911_584_000_000_000, 141_690_816_000_000_000),
)
COMPACT_INSIDE = {"s": 10, "ms": 12}  # magnitude → digits of the calendar notation that shares it
DAYS_EPOCH, DAYS_EXCEL = (10_957, 26_000), (32_874, 54_789)  # 2000 to 2041, and 1990 to 2050
EXCEL_EPOCH = 25_569  # 1970-01-01 in days since 1899-12-30
MOST = 0.8  # the share of small numbers that must be days for the others to be taken as wrong
ROUNDED = 1_000  # seconds; times that are all multiples of it were rounded, e.g. to 1.70E+09 by a spreadsheet

Ints = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int64] | npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Reading:
    """Numeric times as Unix seconds. `seconds` and `nanoseconds` are 0 where `bad`."""

    unit: str  # a key of UNIT_NAMES
    seconds: Ints
    nanoseconds: Ints | None  # 0..999_999_999 within the second; None if all are 0
    bad: Mask | None  # implausible times; None if there are none


class MixedUnitsError(Exception):
    """A column has values of two units; `first` and `second` are their names and first positions."""

    def __init__(self, first: tuple[str, int], second: tuple[str, int]) -> None:
        super().__init__(f"{first[0]} and {second[0]} in one column")
        self.first, self.second = first, second


class UnknownUnitError(Exception):
    """The magnitude of the values belongs to no unit."""


def read_numbers(values: Numbers, unit: TimeUnit) -> Reading:
    """Convert numeric times (num_rows,), all finite. Raises MixedUnitsError, UnknownUnitError."""
    found, bad = _given_unit(values, unit) if unit != "auto" else _find_unit(values)
    if bad is not None:
        values = np.where(bad, 0, values)
    if found.startswith("compact"):
        seconds, nanoseconds, valid = compact_seconds(values, int(found.removeprefix("compact")))
        bad = ~valid if bad is None else bad | ~valid
    else:
        seconds, nanoseconds = _to_seconds(values, found)
    if bad is not None and bad.any():
        seconds = np.where(bad, 0, seconds)
        nanoseconds = None if nanoseconds is None else np.where(bad, 0, nanoseconds)
    else:
        bad = None
    return Reading(found, seconds, nanoseconds, bad)


def implausible_seconds(seconds: Ints) -> Mask | None:
    """Which Unix seconds cannot be the time of an event, None if all can. See `_outside`."""
    return _outside(seconds, EARLIEST, LATEST, 1)


def are_seconds(seconds: Ints) -> bool:
    """Whether stored times are Unix seconds or an order, as every dataset of format version 2 has them."""
    unit, bad = "s", None
    try:
        unit, bad = _find_unit(seconds)
    except (MixedUnitsError, UnknownUnitError):
        return False
    return unit in ("s", "order") and bad is None


def _given_unit(values: Numbers, unit: str) -> tuple[str, Mask | None]:
    if unit != "day":
        if _unit_of_range(values) not in {None, "order", unit}:  # a clock of another unit: not times from an own start
            return unit, np.ones(len(values), dtype=bool)
        per_second = PER_SECOND[unit]
        return unit, _outside(values, EARLIEST * per_second, LATEST * per_second, per_second)
    first = EARLIEST // SECONDS_PER_DAY
    bad = _outside(values, first, DAYS_EXCEL[1], 1)
    plausible = values if bad is None else values[~bad]
    if len(plausible) and plausible.min() > DAYS_EPOCH[1]:
        return "excel", bad
    return "day", _outside(values, first, LATEST // SECONDS_PER_DAY, 1)


def _outside(values: Numbers, low: int, high: int, per_second: int) -> Mask | None:
    """Mask of values outside [low, high] or at the end of int32, None if there are none.

    If no value is inside, the values count from a start of their own, and [0, low) is allowed.
    """
    least, most = values.min(), values.max()
    unknown = LAST_SECONDS[0] * per_second
    if low <= least and most <= high and most < unknown:
        return None
    bad = (values < low) | (values > high) | (values == unknown)
    if bad.all():
        bad = (values < 0) | (values >= low)
    return bad if bad.any() else None


def _find_unit(values: Numbers) -> tuple[str, Mask | None]:
    """The unit of the column, and a mask of the implausible values or None."""
    unit = _unit_of_range(values)
    bad = None
    if unit is None:
        unit, bad = _unit_of_most(values)
    plausible = values if bad is None else values[~bad]
    if unit == "order":
        unit, worse = _small_unit(plausible)
        return unit, _combined(bad, worse)
    if unit == "ns" and any(low <= plausible.min() and plausible.max() <= high for low, high in TICKS):
        raise UnknownUnitError
    digits = COMPACT_INSIDE.get(unit)
    if digits and _all_compact(plausible, digits):
        unit = f"compact{digits}"
    return unit, bad


def _unit_of_range(values: Numbers) -> str | None:
    """The unit to whose magnitude all values belong, or None. The usual case, found without an array."""
    least, most = values.min(), values.max()
    if any(least <= sentinel <= most for sentinel in SENTINELS):
        return None
    return next((unit for unit, (low, high) in MAGNITUDES.items() if low <= least and most <= high), None)


def _unit_of_most(values: Numbers) -> tuple[str, Mask]:
    lows, highs = (np.array([limits[side] for limits in MAGNITUDES.values()]) for side in (0, 1))
    index = np.searchsorted(lows, values, side="right") - 1
    bad = (index < 0) | (values > highs[index]) | np.isin(values, SENTINELS)
    index[bad] = -1
    present = [number for number in range(len(UNITS)) if (index == number).any()]
    clocks = [number for number in present if UNITS[number] != "order"]
    if len(clocks) > 1:
        first, second = sorted((int(np.argmax(index == number)), UNITS[number]) for number in clocks)[:2]
        raise MixedUnitsError((first[1], first[0]), (second[1], second[0]))
    if not present:
        raise UnknownUnitError
    chosen = (clocks or present)[0]
    return UNITS[chosen], index != chosen


def _small_unit(values: Numbers) -> tuple[str, Mask | None]:
    """The unit of numbers in [0, 1e8): days if most are days, else an order. Fractions need to be days."""
    for unit, (low, high) in (("excel", DAYS_EXCEL), ("day", DAYS_EPOCH), ("compact8", (19730303, 20500101))):
        days = (values >= low) & (values <= high)
        if days.mean() < MOST:
            continue
        if unit == "compact8":
            days &= compact_seconds(np.where(days, values, 0), 8)[2]
        if days.mean() >= MOST:
            return unit, None if days.all() else ~days
    if np.any(values != np.floor(values)):
        raise UnknownUnitError
    return "order", None


def _combined(bad: Mask | None, worse: Mask | None) -> Mask | None:
    """`worse` refers to the values that `bad` leaves."""
    if bad is None or worse is None:
        return worse if bad is None else bad
    combined = bad.copy()
    combined[~bad] = worse
    return combined


def _all_compact(values: Numbers, digits: int) -> bool:
    scale = 10 ** (digits - 8)
    if values.min() < 19730303 * scale or values.max() > 20500101 * scale:
        return False
    return bool(compact_seconds(values, digits)[2].all())


def compact_seconds(values: Numbers, digits: int) -> tuple[Ints, Ints | None, Mask]:
    """Unix seconds and nanoseconds of YYYYMMDD, followed by hh, mm, ss and milliseconds as `digits` has room for them.

    Also returns a mask of the values that name a calendar time. The seconds of the others have no meaning.
    """
    whole = values.astype(np.int64)
    day, clock = np.divmod(whole, 10 ** (digits - 8))
    clock *= 10 ** (17 - digits)  # hhmmss and three digits of milliseconds
    year, month, day_of_month = day // 10_000, day // 100 % 100, day % 100
    hour, minute, second, millisecond = clock // 10**7, clock // 10**5 % 100, clock // 1000 % 100, clock % 1000
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    dates = months.astype("datetime64[D]") + (day_of_month - 1)
    valid = (whole == values) & (month >= 1) & (month <= 12) & (day_of_month >= 1)
    valid &= (dates.astype("datetime64[M]") == months) & (hour < 24) & (minute < 60) & (second < 60)
    seconds = dates.astype(np.int64) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second
    nanoseconds = millisecond * 10**6
    return seconds, nanoseconds if nanoseconds.any() else None, valid


def _to_seconds(values: Numbers, unit: str) -> tuple[Ints, Ints | None]:
    """Unix seconds, rounded down, and the nanoseconds within the second, None if all are 0."""
    if unit in ("day", "excel"):
        days = values - (EXCEL_EPOCH if unit == "excel" else 0)
        days = np.maximum(days, 0)  # a bad value was replaced by 0
        # A spreadsheet writes nine decimals, which is exact to 0.1 ms
        seconds, rest = np.divmod(np.rint(days * (SECONDS_PER_DAY * 1000)).astype(np.int64), 1000)
        rest *= 10**6
    elif values.dtype == np.int64:
        per_second = PER_SECOND.get(unit, 1)
        if per_second == 1:
            return values.astype(np.int64, copy=False), None
        seconds, rest = np.divmod(values.astype(np.int64, copy=False), per_second)
        rest *= 10**9 // per_second
    else:
        per_second = PER_SECOND.get(unit, 1)
        seconds = np.floor(values / per_second).astype(np.int64)
        rest = np.rint((values - seconds * float(per_second)) * (10**9 / per_second)).astype(np.int64)
        np.clip(rest, 0, 10**9 - 1, out=rest)
    return seconds, rest if rest.any() else None
