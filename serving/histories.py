"""Histories as callers write them: one list of original ids or a list of such lists, with times or without."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..data.errors import ExportError
from .item_index import ItemIndex

LISTS = (list, tuple, np.ndarray, pl.Series)
MAX_SECONDS = 2**62  # of a time


@dataclass(frozen=True)
class ReadHistories:
    """Known events of a jagged batch of users, oldest first, and the ids that no item has."""

    items: NDArray[np.int32]  # (num_events,)
    offsets: NDArray[np.int64]  # (num_users + 1,)
    times: NDArray[np.int64] | None  # (num_events,) seconds
    unknown: list[tuple[Any, ...]]  # per user, in their order, each once
    single: bool  # the caller gave one history, not a list of histories


def read_histories(histories: Iterable[Any], times: Iterable[Any] | None, index: ItemIndex) -> ReadHistories:
    """Look up the ids of one history, or of a list of histories.

    Without times, the order of a history is its order in time, oldest first; with times (seconds since 1970 as numbers,
    or datetime; those without a zone are in UTC), it is sorted by them, and the given order decides between equal ones.
    ExportError if times and ids differ in number.
    """
    rows, single = _rows(histories)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = [each for row in rows for each in row]
    if not all(isinstance(each, Hashable) for each in ids):
        raise ExportError("an item id is a string or a number; a history is a list of ids, a batch a list of histories")
    found, users = index.find(ids), np.repeat(np.arange(len(rows)), lengths)
    seconds = None if times is None else _seconds(times, rows, single)
    unknown: list[dict[Any, None]] = [{} for _ in rows]
    for event in np.flatnonzero(found < 0):
        unknown[users[event]][ids[event]] = None
    kept = np.flatnonzero(found >= 0)
    if seconds is not None:
        kept = kept[np.lexsort((seconds[kept], users[kept]))]
    offsets = np.concatenate(([0], np.cumsum(np.bincount(users[kept], minlength=len(rows)))))
    return ReadHistories(
        items=found[kept],
        offsets=offsets.astype(np.int64),
        times=None if seconds is None else seconds[kept],
        unknown=[tuple(ids_of_user) for ids_of_user in unknown],
        single=single,
    )


def _rows(histories: Iterable[Any]) -> tuple[list[Sequence[Any]], bool]:
    if isinstance(histories, (str, bytes)):
        raise ExportError(f"a history is a list of item ids, not {histories!r}; write [{histories!r}]")
    rows = list(histories)
    nested = [isinstance(row, LISTS) for row in rows]
    if any(nested) and not all(nested):
        raise ExportError("a batch holds histories only, and a history item ids only; these are mixed")
    return ([list(row) for row in rows], False) if any(nested) else ([rows], True)


def _seconds(times: Iterable[Any], rows: list[Sequence[Any]], single: bool) -> NDArray[np.int64]:
    given = [list(times)] if single else [list(row) for row in times]
    for user, (row, row_times) in enumerate(zip(rows, given, strict=False)):
        if len(row) != len(row_times):
            raise ExportError(f"history {user} has {len(row)} items and {len(row_times)} times; give a time for each")
    if len(given) != len(rows):
        raise ExportError(f"there are {len(rows)} histories and times for {len(given)}; give times for each, or none")
    return np.array([_second(time) for row in given for time in row], dtype=np.int64)


def _second(time: Any) -> int:
    if isinstance(time, datetime):
        return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp())
    try:
        second = int(time)
    except (TypeError, ValueError, OverflowError):
        raise ExportError(f"a time is a number of seconds or a datetime, not {time!r:.60}") from None
    if abs(second) >= MAX_SECONDS:
        raise ExportError(f"a time is a number of seconds since 1970, and {time!r:.60} is too large for one")
    return second
