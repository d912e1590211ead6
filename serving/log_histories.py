"""The histories in a log, as arrays of a model's item numbers: read once, kept as files, and mapped into memory.

Reading takes memory in proportion to the log, as `data/` reads it; afterwards an event takes 4 bytes on disk (12 with
times), of which only those of the users in work are in memory. Users are in the order of their first row in the log.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..data.atomic import write_json
from ..data.cleaning import STRICT, Cleaning
from ..data.errors import ExportError
from ..data.histories import Histories
from ..data.prepare import collapse_duplicates
from ..data.readers import read_log
from ..data.reading import Reading
from .item_index import ItemIndex, typed_ids

USERS, ITEMS, OFFSETS, TIMES, COUNTS = "users.parquet", "items.npy", "offsets.npy", "times.npy", "counts.json"


@dataclass(frozen=True)
class LogCounts:
    """What a log holds, seen from the model."""

    num_users: int
    num_events: int  # rows, without rows that repeat user, item and time of an earlier one
    num_unknown_items: int  # different ids that are no item of the model
    num_unknown_events: int  # the events of these items, which are left out
    num_cold_users: int  # users without an event of a known item
    notes: tuple[str, ...] = ()  # of the reader: what was guessed, detected and left out


@dataclass(frozen=True)
class LogHistories:
    """All users of a log with their known events in time order."""

    users: pl.Series  # (num_users,) original ids: Int64 if all are whole numbers, else String
    items: NDArray[np.int32]  # (num_known_events,)
    offsets: NDArray[np.int64]  # (num_users + 1,)
    times: NDArray[np.int64] | None  # (num_known_events,) seconds; None if the model does not use times
    counts: LogCounts

    def part(self, first: int, last: int) -> Histories:
        """The histories of users first..last-1."""
        bounds = np.asarray(self.offsets[first : last + 1])
        events = slice(int(bounds[0]), int(bounds[-1]))
        times = None if self.times is None else np.asarray(self.times[events])
        return Histories(np.asarray(self.items[events]), bounds - bounds[0], times)

    def position(self, user: str) -> int:
        """The position of a user by the text of its id. ExportError if the log has no such user."""
        found = (self.users.cast(pl.String) == user).arg_true()
        if not len(found):
            raise ExportError(f"user {user!r:.60} is not one of the {len(self.users):,} users of the log")
        return int(found[0])

    def save(self, directory: Path) -> None:
        """Write all arrays to an existing directory; `load` maps them. COUNTS is written last."""
        pl.DataFrame([self.users.alias("user")]).write_parquet(directory / USERS)
        np.save(directory / ITEMS, self.items)
        np.save(directory / OFFSETS, self.offsets)
        if self.times is not None:
            np.save(directory / TIMES, self.times)
        write_json(directory / COUNTS, asdict(self.counts))

    @classmethod
    def load(cls, directory: Path) -> "LogHistories":
        """The histories that `save` has written, mapped read-only."""
        counts = json.loads((directory / COUNTS).read_text())
        times = directory / TIMES
        return cls(
            pl.read_parquet(directory / USERS)["user"],
            np.load(directory / ITEMS, mmap_mode="r"),
            np.load(directory / OFFSETS),
            np.load(times, mmap_mode="r") if times.exists() else None,
            LogCounts(**{**counts, "notes": tuple(counts["notes"])}),
        )


def read_log_histories(
    path: Path,
    index: ItemIndex,
    *,
    reading: Reading | None = None,
    cleaning: Cleaning = STRICT,
    keep_duplicates: bool = False,
    with_times: bool = False,
) -> LogHistories:
    """Read a log and look its items up. Raises DataError if the log cannot be read."""
    log = read_log(path, **asdict(reading or Reading()), cleaning=cleaning)
    frame = log.frame if keep_duplicates else collapse_duplicates(log.frame)[0]
    names = frame["user"].unique(maintain_order=True)
    users = _codes(frame["user"], names)
    item_names = frame["item"].unique(maintain_order=True)
    numbers = index.find(item_names)
    items = numbers[_codes(frame["item"], item_names)]
    order = _time_order(frame, users)
    order = order[items[order] >= 0]
    lengths = np.bincount(users[order], minlength=len(names))
    return LogHistories(
        users=typed_ids(names),
        items=items[order],
        offsets=np.concatenate(([0], np.cumsum(lengths))),
        times=frame["timestamp"].to_numpy()[order] if with_times else None,
        counts=LogCounts(
            num_users=len(names),
            num_events=frame.height,
            num_unknown_items=int((numbers < 0).sum()),
            num_unknown_events=frame.height - len(order),
            num_cold_users=int((lengths == 0).sum()),
            notes=log.notes,
        ),
    )


def _codes(ids: pl.Series, names: pl.Series) -> NDArray[np.int32]:
    """The position in `names`, int32, of each id."""
    table = pl.DataFrame([names.alias("id"), pl.Series("code", np.arange(len(names), dtype=np.int32))])
    codes: NDArray[np.int32] = (
        pl.DataFrame([ids.alias("id")]).join(table, on="id", how="left", maintain_order="left")["code"].to_numpy()
    )
    return codes


def _time_order(frame: pl.DataFrame, users: NDArray[np.int32]) -> NDArray[np.int64]:
    """The rows by user, then time; rows of a user with equal times stay in file order."""
    finer = [frame["nanosecond"].to_numpy()] if "nanosecond" in frame.columns else []
    return np.lexsort((*finer, frame["timestamp"].to_numpy(), users))
