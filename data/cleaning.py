"""What may be done to a log that has unusable values; `interactions.py` does it. No polars: servers start with this."""

from dataclasses import dataclass

from .errors import DataError
from .time_units import TIME_UNITS, TimeUnit


@dataclass(frozen=True)
class Cleaning:
    """What may be done to a log that has unusable values. Raises DataError for an unknown unit."""

    drop_missing: bool = False  # leave out rows whose user or item is missing
    drop_bad_times: bool = False  # leave out rows whose time is missing, unreadable or implausible
    time_unit: TimeUnit = "auto"  # of numeric times

    def __post_init__(self) -> None:
        if self.time_unit not in TIME_UNITS:
            raise DataError(f"time_unit={self.time_unit!r} is not known; use one of {', '.join(TIME_UNITS)}")


STRICT = Cleaning()  # refuse a log with unusable rows
