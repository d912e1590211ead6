"""A log that is later than an export, as targets to be predicted: which events count, and the history of each.

A target is an event of the later log whose user has an earlier event, in this log or in the log before it. Its history
is all earlier events of the user: by time, and where times are equal, in the order of the files. An event without an
earlier one is a cold start: no model of histories can predict it, so it is counted and measured apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..data.errors import ExportError
from ..data.histories import Histories
from ..data.prepare import collapse_duplicates
from ..data.ties import in_drawn_order
from .item_index import ItemIndex

Targets = Literal["all", "next", "last"]
TARGETS: tuple[Targets, ...] = ("all", "next", "last")
UNKNOWN = -1
CHUNK_EVENTS = 1 << 21  # events of histories that are in memory at once

Ints = NDArray[np.int64]


class TargetChunk(NamedTuple):
    """Consecutive targets with their histories, which hold known items only and may be empty."""

    targets: slice
    histories: Histories


@dataclass(frozen=True)
class LaterEvents:
    """All events of both logs by user and time, and the positions of the targets among them."""

    users: Ints  # (num_events,) 0, 1, …, ascending
    items: NDArray[np.int32]  # (num_events,) numbers of the model, UNKNOWN for others
    times: Ints  # (num_events,) seconds
    targets: Ints  # (num_targets,) positions, ascending
    cold_starts: Ints  # (num_cold_starts,) positions of later events without an earlier one
    num_later_users: int  # users with an event in the later log
    num_unknown_items: int  # different ids of the later log that are no item of the model
    num_in_both: int  # rows of the later log that are rows of the log before it, too; they belong to the histories

    @property
    def target_users(self) -> Ints:
        """The user of each target, (num_targets,)."""
        return self.users[self.targets]

    @property
    def target_items(self) -> NDArray[np.int32]:
        """The item of each target, (num_targets,), UNKNOWN for items that the model does not know."""
        return self.items[self.targets]

    def chunks(self) -> Iterator[TargetChunk]:
        """All targets, in chunks of bounded memory."""
        known = np.flatnonzero(self.items != UNKNOWN)
        items, times = self.items[known], self.times[known]
        firsts = np.searchsorted(self.users, self.target_users)  # the first event of each target's user
        begins, ends = np.searchsorted(known, firsts), np.searchsorted(known, self.targets)
        lengths = ends - begins
        numbers = np.cumsum(lengths) // CHUNK_EVENTS
        bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(lengths)]
        for first, last in zip(bounds[:-1], bounds[1:], strict=True):
            part = slice(int(first), int(last))
            offsets = np.concatenate(([0], np.cumsum(lengths[part])))
            events = np.arange(offsets[-1]) + np.repeat(begins[part] - offsets[:-1], lengths[part])
            yield TargetChunk(part, Histories(items[events], offsets, times[events]))


def later_events(
    later: pl.DataFrame,
    before: pl.DataFrame | None,
    index: ItemIndex,
    targets: Targets = "all",
    *,
    random_ties: bool = False,
) -> LaterEvents:
    """Arrange the events of a later log, and of the log before it, which gives histories only.

    Frames as `read_log` returns them. targets: every possible target, or only the first or the last of each user.
    random_ties: draw the order of a user's events at one time (`data/ties.py`) instead of taking the file's.
    ExportError if there is none. Identical rows count once.
    """
    if targets not in TARGETS:
        raise ExportError(f"targets={targets!r:.60} is not known; use one of {', '.join(TARGETS)}")
    frame, num_in_both = _arranged(later, before, random_ties)
    users, items = frame["code"].to_numpy(), index.find(frame["item"])
    is_later = frame["later"].to_numpy()
    has_earlier = np.diff(users, prepend=-1) == 0
    positions = _chosen(np.flatnonzero(is_later & has_earlier), users, targets)
    if not len(positions):
        raise ExportError(
            "no event of the later log has an earlier one of the same user, so that there is nothing to predict; give "
            "the log before it with --history, or a longer log"
        )
    return LaterEvents(
        users=users,
        items=items,
        times=frame["timestamp"].to_numpy(),
        targets=positions,
        cold_starts=np.flatnonzero(is_later & ~has_earlier),
        num_later_users=len(np.unique(users[is_later])),
        num_unknown_items=frame["item"].filter(pl.Series(is_later & (items == UNKNOWN))).n_unique(),
        num_in_both=num_in_both,
    )


def by_user_and_time(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame sorted by user and time, in file order where times are equal; users get numbers in the column code."""
    frame = frame.sort([name for name in ("timestamp", "nanosecond") if name in frame.columns], maintain_order=True)
    numbers = (pl.col("user").rank("dense").cast(pl.Int64) - 1).alias("code")
    return frame.with_columns(numbers).sort("code", maintain_order=True)


def _arranged(later: pl.DataFrame, before: pl.DataFrame | None, random_ties: bool) -> tuple[pl.DataFrame, int]:
    """Both logs by user and time, with the column later; and the rows of the later log that are in both."""
    logs = [
        frame.with_columns(later=pl.lit(is_later))
        for frame, is_later in ((before, False), (later, True))
        if frame is not None
    ]
    frame, num_in_both = _without_repeats(pl.concat(logs, how="diagonal"))
    return by_user_and_time(in_drawn_order(frame) if random_ties else frame), num_in_both


def _without_repeats(frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """The frame with identical events once, the earlier log first; and how many of the later log were left out."""
    if "nanosecond" in frame.columns:
        frame = frame.with_columns(pl.col("nanosecond").fill_null(0))
    later = frame.filter(pl.col("later"))
    if later.height == frame.height:
        return collapse_duplicates(frame)[0], 0
    events = [name for name in frame.columns if name != "later"]
    kept = frame.unique(events, keep="first", maintain_order=True)
    in_both = later.unique(events).height - kept.filter(pl.col("later")).height
    return kept, in_both


def _chosen(positions: Ints, users: Ints, targets: Targets) -> Ints:
    if targets == "all":
        return positions
    of_users = users[positions]
    edge = np.diff(of_users, prepend=-1) if targets == "next" else np.diff(of_users, append=-1)
    return np.asarray(positions[edge != 0])
