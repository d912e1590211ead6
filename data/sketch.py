"""Sketches of logs: whether two logs have the same test targets, whatever their users and items are called.

A log is described by five sets of tokens, families. Tokens are 32-bit hashes; a user contributes one token to each
family, except to the first. The events of a user are those of the whole log, ordered by time, and events of one time by
what is hashed, so that no family depends on the order of rows.

    names     one token for each (user, item) at the user's last time: the possible test targets, by name
    items     the names of the last ITEM_WINDOW items: users may be renamed
    times     the intervals between the last WINDOW events, divided by their greatest common divisor: everything may be
              renamed, and times may be shifted or in another unit
    degrees   the degrees (numbers of events) of the last WINDOW items, as classes floor(2 log2 degree): names and times
              do not matter, as long as the times keep their order
    shares    the same with floor(2 log2 (degree / number of events)): if many users are missing, all degrees shrink

Degrees are taken in classes because a user who is dropped changes the degrees of all items of that user by one. This
is a colouring of the items without Weisfeiler-Leman refinement: each round of refinement spreads a change to all
neighbours, so that after two rounds one dropped user changes the tokens of nearly all others.

A token must identify its user. In the last four families, tokens that several users of a log have are left out, and so
are those that carry too little information to be unique by more than chance: of `items`, `degrees` and `shares`, a
token needs log2(number of users) + SPARE_BITS bits, counted as the sum over its items of -log2(share of the events
whose item has the same label); of `times`, MIN_INTERVALS intervals that are not zero.

A sketch keeps of each family the number of tokens and the KEPT smallest hashes (bottom-k MinHash: Broder 1997, Cohen
and Kaplan 2007). Below the smaller of the two largest kept hashes, both sketches are complete, so the share of the
smaller set that is also in the larger is estimated there, with a standard error of at most 0.5 / sqrt(n) for n hashes
of the smaller set. The similarity of two logs is the largest of the five shares. With `names`, it estimates the share
of test targets that are equal. With the other families it is a lower bound: a token is lost if one of up to eight items
or intervals changes, but two different users hardly ever get the same one.

On real and synthetic logs (benchmarks/results/content-sketch.md), the similarity of different logs stays far below
SAME_CONTENT, that of copies with up to 5 % of the users or rows missing above it. Not recognised: a part of a log that
has fewer than MIN_TOKENS of the kept hashes (about 2 % of a log with many users), and a log whose names and times were
all replaced and which was also filtered heavily (a 10-core without names and without times).
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from .prepared import MIN_EVENTS

FAMILIES = ("names", "items", "times", "degrees", "shares")
KEPT = 1024  # hashes of a family; 20 KiB for a sketch
WINDOW, ITEM_WINDOW = 8, 6
SPARE_BITS = 6.0
MIN_INTERVALS = 3
MIN_TOKENS = 20  # comparisons of fewer tokens say nothing
SAME_CONTENT = 0.2  # similarity from which two logs count as the same content

_PADDING = np.uint32(2**32 - 1)  # fills a family with fewer than KEPT tokens; no token has this value
_LARGER = 1.25  # a log with more tokens than this multiple of another's contains the other, rather than equals it

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Similarity:
    """How much of the smaller of two logs is also in the other."""

    share: float  # 0 to 1
    family: str = "names"  # which tokens agree; unless names, the share is a lower bound
    contains: bool = False  # whether the first log is clearly larger than the second

    def in_words(self, name: str) -> str:
        """What the first log shares with the second, whose name is `name`."""
        bound = "" if self.family == "names" or self.share > 0.995 else "at least "
        renamed = "" if self.family == "names" else " under other names"
        if self.contains:
            return f"contains {bound}{self.share:.0%} of the test targets of {name}{renamed}"
        return f"{bound}{self.share:.0%} the same test targets as {name}{renamed}"


@dataclass(frozen=True)
class Sketch:
    """What `similarity` needs to know of a log."""

    array: npt.NDArray[np.uint32]  # (families, 1 + KEPT): number of tokens, then the smallest, ascending

    def to_bytes(self) -> bytes:
        """The sketch as bytes; the size is the same for all logs."""
        return self.array.astype("<u4").tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Sketch | None":
        """The inverse of `to_bytes`; None if the bytes are not a sketch of this version."""
        if len(content) != len(FAMILIES) * (1 + KEPT) * 4:
            return None
        return cls(np.frombuffer(content, "<u4").astype(np.uint32).reshape(len(FAMILIES), 1 + KEPT))


def similarity(one: Sketch, other: Sketch) -> Similarity:
    """The family with the largest share of the smaller log's tokens that the other log has as well."""
    shares = [_shared(*rows, family) for *rows, family in zip(one.array, other.array, FAMILIES, strict=True)]
    return max(shares, key=lambda found: found.share)


def _shared(one: npt.NDArray[np.uint32], other: npt.NDArray[np.uint32], family: str) -> Similarity:
    limit = min(row[-1] for row in (one, other))  # the padding, unless a set has more tokens than are kept
    first, second = (row[1:][(row[1:] <= limit) & (row[1:] != _PADDING)] for row in (one, other))
    smaller, larger = sorted((len(first), len(second)))
    if smaller < MIN_TOKENS:
        return Similarity(0.0, family)
    common = len(np.intersect1d(first, second, assume_unique=True))
    return Similarity(common / smaller, family, contains=len(first) == larger > _LARGER * smaller)


def log_sketch(frame: pl.DataFrame) -> Sketch:
    """The sketch of the complete content of a log with the columns user, item (String) and timestamp (Int64).

    Only users with MIN_EVENTS or more events count: others never have a test target. It does not depend on how the log
    is filtered or split afterwards.
    """
    (users, user_names), (items, item_names) = (_numbered(frame[column]) for column in ("user", "item"))
    times = frame["timestamp"].to_numpy()
    kept = np.bincount(users)[users] >= MIN_EVENTS
    return sketch_of(users[kept], items[kept], times[kept], user_names, item_names)


def sketch_of(
    users: Ints,
    items: Ints,
    times: Ints,
    user_names: Hashes,
    item_names: Hashes,
    every_event: bool = False,
) -> Sketch:
    """The sketch of a log of numbered users and items, (num_events,) each; names by number, from `hashed`.

    With `every_event`, the family `names` has a token for every event instead of the last ones.
    """
    degrees = np.bincount(items, minlength=len(item_names))
    tail = _tail(users, items, times)
    named = (users, items) if every_event else (tail.users[tail.is_last], tail.items[tail.is_last])
    labels = {
        "items": (item_names, ITEM_WINDOW),
        "degrees": (_class(degrees.astype(np.float64)), WINDOW),
        "shares": (_class(degrees / max(len(users), 1)), WINDOW),
    }
    tokens = {
        "names": _mixed(user_names[named[0]], item_names[named[1]]),
        "times": _interval_tokens(tail),
        **{family: _label_tokens(tail, label, window, degrees) for family, (label, window) in labels.items()},
    }
    return Sketch(np.stack([_smallest(tokens[family], family) for family in FAMILIES]))


def hashed(names: Iterable[str]) -> Hashes:
    """A 64-bit hash of each name, the same on every machine."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _numbered(ids: pl.Series) -> tuple[Ints, Hashes]:
    """Numbers 0..n-1 of text ids, (num_events,), and the hash of each number's id."""
    names = pl.DataFrame({"id": ids.unique()}).with_row_index("number")
    numbers = pl.DataFrame({"id": ids}).join(names, on="id", how="left", maintain_order="left")["number"]
    return numbers.to_numpy().astype(np.int64), hashed(names["id"])


@dataclass(frozen=True)
class _Tail:
    """The last WINDOW events of every user, and all events of the same time as the first of them, by user and time."""

    users: Ints
    items: Ints
    times: Ints
    is_last: npt.NDArray[np.bool_]  # whether the event has the user's last time


def _tail(users: Ints, items: Ints, times: Ints) -> _Tail:
    order = np.lexsort((times, users))
    users, items, times = users[order], items[order], times[order]
    ends = np.searchsorted(users, users, side="right")
    begins = np.maximum(np.searchsorted(users, users), ends - WINDOW)
    kept = times >= times[begins]
    return _Tail(users[kept], items[kept], times[kept], (times == times[ends - 1])[kept])


def _label_tokens(tail: _Tail, labels: Hashes, window: int, degrees: Ints) -> Hashes:
    """One token for each user whose last `window` labels identify the user; labels: (num_items,)."""
    order = np.lexsort((labels[tail.items], tail.times, tail.users))
    owners, position, starts, chosen = _last(tail.users[order], window)
    found = tail.items[order][chosen]
    tokens = _sums(_mixed(labels[found], position), starts)
    bits = np.add.reduceat(_bits(labels, degrees)[found], starts) if len(starts) else np.empty(0)
    num_users = len(owners)
    return tokens[bits >= np.log2(max(num_users, 1)) + SPARE_BITS]


def _bits(labels: Hashes, degrees: Ints) -> Floats:
    """The information of each item's label: -log2 of the share of events whose item has the label; (num_items,)."""
    _, inverse = np.unique(labels, return_inverse=True)
    events = np.bincount(inverse, weights=degrees)[inverse]
    return np.log2(max(degrees.sum(), 1)) - np.log2(np.maximum(events, 1))


def _interval_tokens(tail: _Tail) -> Hashes:
    """One token for each user with enough intervals that are not zero."""
    _, position, starts, chosen = _last(tail.users, WINDOW)
    times = tail.times[chosen]
    intervals = np.diff(times, prepend=times[:1])
    intervals[starts] = 0  # before the first event of a user
    if not len(starts):
        return np.empty(0, np.uint64)
    divisors = np.gcd.reduceat(intervals, starts)
    lengths = np.diff(np.append(starts, len(times)))
    quotients = intervals // np.repeat(np.maximum(divisors, 1), lengths)
    tokens = _sums(_mixed(quotients.astype(np.uint64), position), starts)
    return tokens[np.add.reduceat((intervals > 0).astype(np.int64), starts) >= MIN_INTERVALS]


def _last(users: Ints, window: int) -> tuple[Ints, Hashes, Ints, npt.NDArray[np.bool_]]:
    """Of events sorted by user, the last `window` of each user: the users, positions from the end, starts, and a mask.

    Positions (1 = last) are of the chosen events; the mask is of all.
    """
    from_end = np.searchsorted(users, users, side="right") - np.arange(len(users))
    chosen = from_end <= window
    owners, starts = np.unique(users[chosen], return_index=True)
    return owners, from_end[chosen].astype(np.uint64), starts, chosen


def _sums(hashes: Hashes, starts: Ints) -> Hashes:
    """A hash of the hashes of each user, which are consecutive."""
    sums: Hashes = np.add.reduceat(hashes, starts) if len(starts) else np.empty(0, np.uint64)
    lengths = np.diff(np.append(starts, len(hashes))).astype(np.uint64)
    return _mixed(sums, lengths)


def _class(sizes: Floats) -> Hashes:
    """floor(2 log2 size) of each item, exact at the bounds, shifted to be positive; items without events get any."""
    exponents: npt.NDArray[np.int32] = np.frexp(sizes * sizes)[1]
    return (exponents.astype(np.int64) + 2**20).astype(np.uint64)


def _smallest(tokens: Hashes, family: str) -> npt.NDArray[np.uint32]:
    """The row of a family in a sketch. A token of several users identifies none of them, except in `names`."""
    hashes, counts = np.unique((tokens >> np.uint64(32)).astype(np.uint32), return_counts=True)
    hashes = hashes[((counts == 1) | (family == "names")) & (hashes != _PADDING)]
    row = np.full(1 + KEPT, _PADDING, np.uint32)
    row[0] = len(hashes)
    row[1 : 1 + min(KEPT, len(hashes))] = hashes[:KEPT]
    return row


def _mixed(one: Hashes, other: Hashes) -> Hashes:
    """A 64-bit hash of each pair."""
    return _scrambled(_scrambled(one) * np.uint64(0x9E3779B97F4A7C15) + other)


def _scrambled(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
