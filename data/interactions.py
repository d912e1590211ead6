"""What happens to the values of a log after its columns are chosen: ids become text, times become Unix seconds.

A row without a usable user, item or time is never passed on: the log is refused with the rows named, unless `Cleaning`
allows to leave such rows out.
"""

import polars as pl

from .cleaning import Cleaning
from .errors import DataError
from .ids import read_ids
from .rows import Source
from .times import ADVICE, read_times


def clean_interactions(raw: pl.DataFrame, source: Source, cleaning: Cleaning) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Convert the columns user, item and timestamp of `raw`; also returns notes: what was changed, found or left out.

    The frame has the columns user (String), item (String), timestamp (Int64, Unix seconds) in file order and, if the
    log has fractions of seconds, nanosecond (Int64, within the second), which only serves to sort events.

    Raises DataError if a row has no usable value and `cleaning` does not allow to leave it out, or if no row is left.
    """
    users, items = (read_ids(raw[role], role, source) for role in ("user", "item"))
    notes: list[str] = [*users.notes, *items.notes]
    dropped = pl.zeros(0, pl.Boolean, eager=True)
    for ids in (users, items):
        if ids.missing is None:
            continue
        if not cleaning.drop_missing:
            raise DataError(f"{ids.complaint}; correct these rows, or leave them out with --drop-missing")
        notes.append(f"{ids.complaint}: these rows were left out")
        dropped = ids.missing if dropped.is_empty() else dropped | ids.missing
    times = read_times(raw["timestamp"], cleaning.time_unit, source)
    notes += times.notes
    if times.bad is not None:
        if not cleaning.drop_bad_times:
            raise DataError(f"{times.complaint}; {ADVICE}")
        notes.append(f"{times.complaint}: these rows were left out")
        dropped = times.bad if dropped.is_empty() else dropped | times.bad
    columns = {"user": users.text, "item": items.text, "timestamp": times.seconds, "nanosecond": times.nanoseconds}
    frame = pl.DataFrame({name: column for name, column in columns.items() if column is not None})
    if not dropped.is_empty():
        frame = frame.filter(~dropped)
        if frame.is_empty():
            raise DataError(f"{source.file} has no usable row: {'; '.join(notes)}")
    return frame, tuple(notes)
