"""Histories of users as flat arrays with offsets, and how to take some of them or join two parts. numpy only."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Histories(NamedTuple):
    """A jagged batch of histories: user u has the events `items[offsets[u]:offsets[u + 1]]`, oldest first."""

    items: NDArray[np.int32]  # (num_events,)
    offsets: NDArray[np.int64]  # (num_users + 1,)
    times: NDArray[np.int64] | None = None  # (num_events,) seconds; read only with config.time_bias

    def of_users(self, users: NDArray[np.integer]) -> "Histories":
        """The histories of `users`, in this order."""
        index, offsets = last_events(self.offsets[users], self.offsets[users + 1])
        return Histories(self.items[index], offsets, None if self.times is None else self.times[index])


def last_events(
    begins: NDArray[np.int64], ends: NDArray[np.int64], most: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The positions begins[u]:ends[u] of every user, at most the last `most` of each, and their offsets."""
    lengths = ends - begins if most is None else np.minimum(ends - begins, most)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.arange(offsets[-1]) + np.repeat(ends - lengths - offsets[:-1], lengths), offsets


def joined(earlier: Histories, later: Histories, most: int) -> Histories:
    """The last `most` events of each user, who has those of `earlier` before those of `later`; both have times."""
    num_users = len(earlier.offsets) - 1
    parts = (earlier, later)
    owners = np.concatenate([np.repeat(np.arange(num_users), np.diff(part.offsets)) for part in parts])
    order = np.argsort(owners, kind="stable")
    offsets = earlier.offsets + later.offsets
    index, kept = last_events(offsets[:-1], offsets[1:], most)
    items = np.concatenate([part.items for part in parts])[order][index]
    times = np.concatenate([np.asarray(part.times) for part in parts])[order][index]
    return Histories(items, kept, times)
