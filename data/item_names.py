"""Names of items that occur in test events only: they lie with the seal, and `item_ids.parquet` has null instead.

An item without a visible event can only be known from test events, or from events that were cut off at `max_events`.
Which items these are follows from the visible arrays and the number of items, so the nulls tell nothing new. Their
place in the order of item ids does: ids are ordered by a keyed hash of the name, and the key is in the manifest, so a
name that is known from elsewhere can be excluded if its hash does not fit between those of the neighbours.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

NUMBERS, NAMES, LENGTHS = "nameless_items", "nameless_names", "nameless_lengths"
LEAST_WIDTH = 64  # bytes per name in the seal; a power of two above it if a name is longer

Items = npt.NDArray[np.integer[Any]]


def without_names(item_ids: pl.Series, nameless: Items) -> pl.Series:
    """`item_ids` (String) with null for the items `nameless`."""
    return item_ids if not len(nameless) else item_ids.clone().scatter(nameless, None)


def nameless_items(num_items: int, *visible: Items) -> npt.NDArray[np.int64]:
    """The items, ascending, that are in none of the arrays `visible`."""
    unseen = np.ones(num_items, dtype=bool)
    for items in visible:
        unseen[items] = False
    return np.flatnonzero(unseen)


def sealed_names(item_ids: pl.Series, nameless: Items) -> dict[str, npt.NDArray[Any]]:
    """The arrays in which `test.sealed` keeps the names of the items `nameless`; empty if there are none.

    Every name takes the same number of bytes, so that the size of the seal tells only how many names there are, and
    between which powers of two the longest lies if it is longer than LEAST_WIDTH.
    """
    if not len(nameless):
        return {}
    names = [name.encode() for name in item_ids.gather(nameless)]
    lengths = np.array([len(name) for name in names], np.int32)
    width = max(LEAST_WIDTH, 1 << int(lengths.max() - 1).bit_length())
    padded = np.frombuffer(b"".join(name.ljust(width, b"\0") for name in names), np.uint8).reshape(len(names), width)
    return {NUMBERS: np.asarray(nameless, np.int32), NAMES: padded, LENGTHS: lengths}


def opened_names(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[int, str]:
    """The inverse of `sealed_names`: item → name; empty for a seal without such arrays."""
    if NUMBERS not in arrays:
        return {}
    rows = zip(arrays[NUMBERS].tolist(), arrays[NAMES], arrays[LENGTHS].tolist(), strict=True)
    return {number: name[:length].tobytes().decode() for number, name, length in rows}


def with_names(item_ids: pl.Series, names: Mapping[int, str]) -> pl.Series:
    """`item_ids` with `names` (item → name) in place of nulls."""
    return item_ids if not names else item_ids.clone().scatter(list(names), list(names.values()))
