"""The order of a user's events at one time, drawn at random instead of taken from the file: a control.

A file may order the events of one day by something that tells of the next item: Amazon's logs have them in the order of
item ids, which can be read from a model even if the ids are permuted. The draw takes nothing from the file but the
events themselves: equal events give equal data, on every machine and in whatever order their rows are.
"""

import hashlib

import numpy as np
import numpy.typing as npt
import polars as pl

DOMAIN = b"VMLE-TIES-1\n"
ORDER = ("timestamp", "nanosecond")  # what events are sorted by, as far as a log has it

Ints = npt.NDArray[np.int64]


def has_ties(frame: pl.DataFrame) -> bool:
    """Whether a user has two different events at one time; columns as `clean_interactions` gives them.

    Different events differ in their item: repeated rows are one event.
    """
    events = frame.unique()
    moments = events.select("user", *(name for name in ORDER if name in events.columns))
    return moments.n_unique() < events.height


def in_drawn_order(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows of a log in an order drawn at random, so that sorting by time afterwards leaves ties in this order.

    The generator (PCG64) is seeded by the SHA-256 of the events in the order of user, item and time, and its raw output
    is what rows are sorted by: numpy keeps both the same in all versions (NEP 19).
    """
    digest = hashlib.sha256(DOMAIN)
    columns = [*(_ranks(frame[name], digest) for name in ("user", "item"))]
    columns += [frame[name].to_numpy().astype(np.int64) for name in ORDER if name in frame.columns]
    canonical = np.lexsort(columns[::-1])  # by user first; repeated rows are equal, so their order does not matter
    for column in columns:
        digest.update(column[canonical].astype("<i8").tobytes())
    draws = np.random.PCG64(int.from_bytes(digest.digest(), "little")).random_raw(frame.height)
    return frame[canonical[np.argsort(draws, kind="stable")]]


def _ranks(ids: pl.Series, digest: "hashlib._Hash") -> Ints:
    """The position of each id among the sorted different ids, int64 (num_rows,); the ids are added to `digest`."""
    names = ids.unique().sort()
    digest.update("\0".join([str(len(names)), *names]).encode() + b"\0")
    ranks: Ints = ids.rank("dense").to_numpy().astype(np.int64) - 1
    return ranks
