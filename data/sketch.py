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
are those with so little information that they are unique by chance: a token needs log2(number of users) + SPARE_BITS
bits, as the sum over its parts of -log2(share of the log's events, or intervals, with the same part).

Two logs whose users and items are numbered share names by chance. `names` is corrected for that, as Cohen's kappa is:
a share s becomes (s - c) / (1 - c), where c = (tokens per user) * sum over items of (share of the tokens)^2.

A sketch keeps of each family the number of tokens, c, and the KEPT smallest hashes (bottom-k MinHash: Broder 1997,
Cohen and Kaplan 2007). Below the smaller of the two largest kept hashes, both sketches are complete, so the share of
the smaller set that is also in the larger is estimated there, with a standard error of at most 0.5 / sqrt(n) for n
hashes of the smaller set. The similarity of two logs is the largest of the five shares. With `names`, it estimates the
share of test targets that are equal. With the other families it is a lower bound: a token is lost if one of up to eight
items or intervals changes, but two different users hardly ever get the same one.

On real and synthetic logs (benchmarks/results/content-sketch.md), the similarity of different logs is at most 0.01.
That of near-duplicates under their own names is at least 0.8, and of renamed ones, with up to 5 % of the users or rows
missing and all times replaced, at least 0.25; SAME_CONTENT lies between. Not recognised: a log whose names and times
were all replaced and which was also filtered heavily (a 10-core), and a part of a log with fewer than MIN_TOKENS of the
kept hashes, that is, about 2 % of a large log.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .prepared import MIN_EVENTS

if TYPE_CHECKING:
    import polars as pl

FAMILIES = ("names", "items", "times", "degrees", "shares")
KEPT = 1024  # hashes of a family; 20 KiB for a sketch
WINDOW, ITEM_WINDOW = 8, 6
SPARE_BITS = 6.0
MIN_TOKENS = 20  # comparisons of fewer tokens say nothing
SAME_CONTENT = 0.15  # similarity from which two logs count as the same content

_PADDING = np.uint32(2**32 - 1)  # fills a family with fewer than KEPT tokens; no token has this value
_HEAD, _UNIT = 2, 2**31  # numbers before the hashes, and the unit of the second
_MOST_BY_CHANCE = 0.9
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

    array: npt.NDArray[np.uint32]  # (families, 2 + KEPT): number of tokens, c * 2^31, the smallest hashes, ascending

    def to_bytes(self) -> bytes:
        """The sketch as bytes; the size is the same for all logs."""
        return self.array.astype("<u4").tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Sketch | None":
        """The inverse of `to_bytes`; None if the bytes are not a sketch of this version."""
        if len(content) != len(FAMILIES) * (_HEAD + KEPT) * 4:
            return None
        return cls(np.frombuffer(content, "<u4").astype(np.uint32).reshape(len(FAMILIES), _HEAD + KEPT))


def similarity(one: Sketch, other: Sketch) -> Similarity:
    """That of the family with the largest share."""
    return max(similarities(one, other), key=lambda found: found.share)


def similarities(one: Sketch, other: Sketch) -> list[Similarity]:
    """For each of FAMILIES, the share of the smaller log's tokens that the other log has as well."""
    return [_shared(*rows) for rows in zip(one.array, other.array, FAMILIES, strict=True)]


def _shared(one: npt.NDArray[np.uint32], other: npt.NDArray[np.uint32], family: str) -> Similarity:
    limit = min(row[-1] for row in (one, other))  # the padding, unless a set has more tokens than are kept
    first, second = (hashes[(hashes <= limit) & (hashes != _PADDING)] for hashes in (one[_HEAD:], other[_HEAD:]))
    smaller, larger = sorted((len(first), len(second)))
    if smaller < MIN_TOKENS:
        return Similarity(0.0, family)
    share = len(np.intersect1d(first, second, assume_unique=True)) / smaller
    chance = max(int(one[1]), int(other[1])) / _UNIT
    return Similarity(
        max((share - chance) / (1 - chance), 0.0), family, contains=len(first) == larger > _LARGER * smaller
    )


def log_sketch(frame: "pl.DataFrame") -> Sketch:
    """The sketch of the complete content of a log with the columns user, item (String) and timestamp (Int64).

    Only users with MIN_EVENTS or more events count: others never have a test target. It does not depend on how the log
    is filtered or split afterwards, nor on repeated rows.
    """
    frame = frame.unique(["user", "item", "timestamp"])
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
    chance = {"names": _agreement_by_chance(*named)}
    return Sketch(np.stack([_row(tokens[family], family, chance.get(family, 0.0)) for family in FAMILIES]))


def hashed(names: Iterable[str]) -> Hashes:
    """A 64-bit hash of each name, the same on every machine."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _numbered(ids: "pl.Series") -> tuple[Ints, Hashes]:
    """Numbers 0..n-1 of text ids, (num_events,), and the hash of each number's id."""
    import polars as pl  # noqa: PLC0415 - slow to import; comparing sketches needs none of it

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
    starts, lengths = _runs(users)
    ends = starts + lengths
    kept = times >= np.repeat(times[ends - np.minimum(lengths, WINDOW)], lengths)
    is_last = times == np.repeat(times[ends - 1], lengths)
    return _Tail(users[kept], items[kept], times[kept], is_last[kept])


def _runs(users: Ints) -> tuple[Ints, Ints]:
    """The start and the number of events of each user in sorted `users`."""
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    return starts, np.diff(np.append(starts, len(users)))


def _label_tokens(tail: _Tail, labels: Hashes, window: int, degrees: Ints) -> Hashes:
    """One token for each user whose last `window` labels identify the user; labels: (num_items,)."""
    order = np.lexsort((labels[tail.items], tail.times, tail.users))
    position, starts, chosen = _last(tail.users[order], window)
    found = tail.items[order][chosen]
    return _identifying(labels[found], _bits(labels, degrees)[found], position, starts)


def _interval_tokens(tail: _Tail) -> Hashes:
    """One token for each user whose last intervals identify the user."""
    position, starts, chosen = _last(tail.users, WINDOW)
    times = tail.times[chosen]
    intervals = np.diff(times, prepend=times[:1])
    intervals[starts] = 0  # before the first event of a user
    divisors = np.gcd.reduceat(intervals, starts) if len(starts) else starts
    quotients = intervals // np.repeat(np.maximum(divisors, 1), np.diff(np.append(starts, len(times))))
    bits = _bits(quotients, np.ones(len(quotients), np.int64))
    bits[starts] = 0.0
    return _identifying(quotients.astype(np.uint64), bits, position, starts)


def _bits(labels: npt.NDArray[Any], weights: Ints) -> Floats:
    """The information of each label: -log2 of the share of all weight that equal labels have; the shape of `labels`."""
    _, inverse = np.unique(labels, return_inverse=True)
    equal = np.bincount(inverse, weights=weights)[inverse] if len(labels) else np.empty(0)
    bits: Floats = np.log2(max(weights.sum(), 1)) - np.log2(np.maximum(equal, 1))
    return bits


def _identifying(labels: Hashes, bits: Floats, position: Hashes, starts: Ints) -> Hashes:
    """A hash of the labels of each user with enough information; labels of a user are consecutive, from `starts` on."""
    if not len(starts):
        return np.empty(0, np.uint64)
    lengths = np.diff(np.append(starts, len(labels))).astype(np.uint64)
    tokens = _mixed(np.add.reduceat(_mixed(labels, position), starts), lengths)
    identify: npt.NDArray[np.bool_] = np.add.reduceat(bits, starts) >= np.log2(len(starts)) + SPARE_BITS
    return tokens[identify]


def _last(users: Ints, window: int) -> tuple[Hashes, Ints, npt.NDArray[np.bool_]]:
    """Of events sorted by user, the last `window` of each user: positions (1 = last), starts of users, and the mask."""
    starts, lengths = _runs(users)
    from_end = np.repeat(starts + lengths, lengths) - np.arange(len(users))
    chosen = from_end <= window
    kept = np.minimum(lengths, window)
    return from_end[chosen].astype(np.uint64), np.cumsum(kept) - kept, chosen


def _class(sizes: Floats) -> Hashes:
    """floor(2 log2 size) of each item, exact at the bounds, shifted to be positive; items without events get any."""
    exponents: npt.NDArray[np.int32] = np.frexp(sizes * sizes)[1]
    return (exponents.astype(np.int64) + 2**20).astype(np.uint64)


def _agreement_by_chance(users: Ints, items: Ints) -> float:
    """The expected share of equal (user, item) pairs in a log of the same names with independently drawn items."""
    per_user = len(users) / max(len(np.unique(users)), 1)
    shares = np.bincount(items) / max(len(items), 1)
    return min(per_user * float((shares**2).sum()), _MOST_BY_CHANCE)


def _row(tokens: Hashes, family: str, chance: float) -> npt.NDArray[np.uint32]:
    """The row of a family in a sketch. A token of several users identifies none of them, except in `names`."""
    hashes, counts = np.unique((tokens >> np.uint64(32)).astype(np.uint32), return_counts=True)
    hashes = hashes[((counts == 1) | (family == "names")) & (hashes != _PADDING)]
    row = np.full(_HEAD + KEPT, _PADDING, np.uint32)
    row[:_HEAD] = len(hashes), int(chance * _UNIT)
    row[_HEAD : _HEAD + min(KEPT, len(hashes))] = hashes[:KEPT]
    return row


def _mixed(one: Hashes, other: Hashes) -> Hashes:
    """A 64-bit hash of each pair."""
    return _scrambled(_scrambled(one) * np.uint64(0x9E3779B97F4A7C15) + other)


def _scrambled(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
