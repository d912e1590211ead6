"""The two ways to split ordered events into train, validation and test: leave-one-out, and two cuts in global time.

With leave-one-out, every user has a validation and a test target. With the split by time, a user's target in a part is
the first event in it, and users without an event in it, or without one before it, have none: they are trained on, but
not ranked. This is the global temporal split with the target "first" and validation by time, in the terms of Gusak et
al., "Time to Split" (RecSys 2025).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from .histories import last_events
from .holdout import Cuts
from .prepared import Counts
from .seal import NO_TARGET

Ints = npt.NDArray[np.int64]
Items = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Events:
    """The events that remain after the k-core filter, grouped by user, in time order, with new ids."""

    items: Ints  # (num_events,)
    timestamps: Ints  # (num_events,)
    offsets: Ints  # (num_users + 1,)
    user_ids: pl.Series  # original ids (String), indexed by new id
    item_ids: pl.Series
    before_core: Counts  # before the k-core filter


@dataclass(frozen=True)
class Split:
    """The parts of a log, of which only the test targets are sealed."""

    items: Items  # train, (num_train_events,)
    timestamps: Ints
    offsets: Ints  # (num_users + 1,)
    valid_items: Items  # (num_ranked,), with leave-one-out (num_users,)
    valid_timestamps: Ints
    test_items: Items  # (num_users,), NO_TARGET for users without a test target
    test_timestamps: Ints
    num_interactions: int  # over all parts that the k-core counts: without test if it counts visible events only
    between: "Between | None" = None  # None: leave-one-out


@dataclass(frozen=True)
class Between:
    """What a split by time has in addition: who is ranked in validation, and the events between the cuts."""

    valid_users: Items  # (num_ranked,): the user of each validation target, ascending
    recent_items: Items  # (num_recent_events,): the last events of each user between the cuts, the history at the look
    recent_timestamps: Ints
    recent_offsets: Ints  # (num_users + 1,)

    def arrays(self) -> dict[str, npt.NDArray[np.integer]]:
        """The arrays by name, as a prepared dataset stores them."""
        return dict(vars(self))


def split_events(events: Events, max_events: int) -> Split:
    """Keep the last `max_events` events of each user: the last is test, the second last validation, the rest train."""
    ends = events.offsets[1:]
    lengths = np.minimum(np.diff(events.offsets), max_events)
    from_end = np.repeat(ends, np.diff(events.offsets)) - np.arange(len(events.items))  # 1 = a user's last event
    train = (from_end > 2) & (from_end <= max_events)
    return Split(
        items=events.items[train].astype(np.int32),
        timestamps=events.timestamps[train],
        offsets=np.concatenate([[0], np.cumsum(lengths - 2)]),
        valid_items=events.items[ends - 2].astype(np.int32),
        valid_timestamps=events.timestamps[ends - 2],
        test_items=events.items[ends - 1].astype(np.int32),
        test_timestamps=events.timestamps[ends - 1],
        num_interactions=int(lengths.sum()),
    )


def last_of_each_user(frame: pl.DataFrame) -> pl.Series:
    """Which rows of a log are the last event of a user, bool (num_rows,); of equal times, the later row is the last."""
    order = ["timestamp", "nanosecond"] if "nanosecond" in frame.columns else ["timestamp"]
    rows = frame.with_row_index("row").sort(order, maintain_order=True)
    last = rows.unique("user", keep="last")["row"]
    return pl.Series(np.isin(np.arange(frame.height), last.to_numpy()))


def split_before_last(events: Events, last: pl.DataFrame, max_events: int) -> Split:
    """As `split_events`, but `events` are without the last event of each user, whose rows are `last`.

    A user whose last event is of an item that is not among `events` has no test target.
    """
    ends = events.offsets[1:]
    lengths = np.minimum(np.diff(events.offsets), max_events - 1)
    from_end = np.repeat(ends, np.diff(events.offsets)) - np.arange(len(events.items))  # 1 = the validation target
    train = (from_end > 1) & (from_end < max_events)
    test_items, test_timestamps = _first_of_each_user(events, last)
    return Split(
        items=events.items[train].astype(np.int32),
        timestamps=events.timestamps[train],
        offsets=np.concatenate([[0], np.cumsum(lengths - 1)]),
        valid_items=events.items[ends - 1].astype(np.int32),
        valid_timestamps=events.timestamps[ends - 1],
        test_items=test_items,
        test_timestamps=test_timestamps,
        num_interactions=int(lengths.sum()),
    )


def split_by_time(events: Events, later: pl.DataFrame, cuts: Cuts, max_events: int) -> Split:
    """Split `events`, which are all before `cuts.test_from`, at `cuts.valid_from`; the targets of test are in `later`.

    later: the rows of the log from `cuts.test_from` on, with original ids, in file order. Rows of users and items that
    are not among `events` cannot be ranked and are passed over. Of each user, the last `max_events` train events and
    the last `max_events` events between the cuts are kept.
    """
    begins, ends = events.offsets[:-1], events.offsets[1:]
    users = np.repeat(np.arange(len(begins)), np.diff(events.offsets))
    cut = begins + np.bincount(users[events.timestamps < cuts.valid_from], minlength=len(begins))
    train, offsets = last_events(begins, cut, max_events)
    recent, recent_offsets = last_events(cut, ends, max_events)
    valid_users = np.flatnonzero((cut > begins) & (cut < ends))
    targets = cut[valid_users]
    test_items, test_timestamps = _first_of_each_user(events, later)
    return Split(
        items=events.items[train].astype(np.int32),
        timestamps=events.timestamps[train],
        offsets=offsets,
        valid_items=events.items[targets].astype(np.int32),
        valid_timestamps=events.timestamps[targets],
        test_items=test_items,
        test_timestamps=test_timestamps,
        num_interactions=len(train) + len(recent),
        between=Between(
            valid_users=valid_users.astype(np.int32),
            recent_items=events.items[recent].astype(np.int32),
            recent_timestamps=events.timestamps[recent],
            recent_offsets=recent_offsets,
        ),
    )


def _first_of_each_user(events: Events, later: pl.DataFrame) -> tuple[Items, Ints]:
    """Item and time of the first row in `later` of each user of `events`, (num_users,); NO_TARGET and 0 for none."""
    order = ["timestamp", "nanosecond"] if "nanosecond" in later.columns else ["timestamp"]
    known = _numbered(_numbered(later, "user", events.user_ids), "item", events.item_ids)
    first = known.sort(order, maintain_order=True).unique("user", keep="first", maintain_order=True)
    items = np.full(len(events.user_ids), NO_TARGET, np.int32)
    times = np.zeros(len(events.user_ids), np.int64)
    owners = first["user"].to_numpy()
    items[owners], times[owners] = first["item"].to_numpy(), first["timestamp"].to_numpy()
    return items, times


def _numbered(frame: pl.DataFrame, column: str, ids: pl.Series) -> pl.DataFrame:
    """`frame` with the new ids in `column`, without the rows whose id is not in `ids`, in the same order."""
    numbers = pl.DataFrame({column: ids}).with_row_index("number")
    found = frame.join(numbers, on=column, how="inner", maintain_order="left")
    return found.drop(column).rename({"number": column})
