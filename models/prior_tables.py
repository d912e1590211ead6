"""Statistics of the training histories that score priors use: popularity, transitions and co-occurrence.

    pop(j)   log(1 + count of j), divided by its maximum; counted in the latest events only, a share
             `popularity_window` of all
    T[i, j]  how often j follows i within `transition_window` steps; s steps have weight s ** -transition_decay
             ("backward": how often i follows j; "both": the sum)
    C[i, j]  number of training histories that contain both i and j, i != j; with `cooccurrence_span`, number of pairs
             of events of i and j that are at most that many steps apart

These sums over the events add: those of two logs without a common history are the sums of both logs together. T and C
are then normalised: "row" divides by the sum of the row, "sqrt" by its square root, and "cosine" by the square
root of the row sum times the column sum (for C: the number of histories with i times the number with j); "none"
leaves them unchanged. `…_neighbours` keeps the largest entries of each row. All tables are sparse; none is a dense
V x V matrix.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .config import TrialConfig

MERGE_ABOVE = 1 << 24  # pairs to collect before equal pairs are summed; sorting them takes about half a gigabyte

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def popularity_prior(items: Ints, times: Ints, num_items: int, window: float) -> Floats:
    """(num_items,) in [0, 1]. times (num_events,) decides which events are the latest, and the index breaks ties."""
    return popularity_of(latest_counts(items, times, num_items, window))


def latest_counts(items: Ints, times: Ints, num_items: int, window: float) -> Ints:
    """(num_items,): events per item among the latest share `window` of all events."""
    if window < 1:
        latest = max(1, round(window * len(items)))
        items = items[np.argsort(times, kind="stable")[-latest:]]
    return np.bincount(items, minlength=num_items)


def popularity_of(counts: Ints) -> Floats:
    """The popularity prior of `latest_counts`."""
    logs = np.log1p(counts)
    return np.asarray(logs / logs.max())


def transition_prior(items: Ints, offsets: Ints, num_items: int, config: TrialConfig) -> tuple[Ints, Floats]:
    """(keys, values) of T: keys i * num_items + j, ascending."""
    return transitions_of(*transition_sums(items, offsets, num_items, config), num_items, config)


def transition_sums(items: Ints, offsets: Ints, num_items: int, config: TrialConfig) -> tuple[Ints, Floats]:
    """(keys, values) of T before it is normalised: keys i * num_items + j, ascending."""
    steps = (
        (first, second, float(lag) ** -config.transition_decay)
        for lag, first, second in _pairs(items, offsets, config.transition_window)
    )
    return _count_pairs(_directed(steps, config.transition_direction), num_items)


def transitions_of(keys: Ints, values: Floats, num_items: int, config: TrialConfig) -> tuple[Ints, Floats]:
    """The transition prior of `transition_sums`."""
    values = _normalised(keys, values, num_items, config.transition_normalisation)
    return _strongest(keys, values, num_items, config.transition_neighbours)


def cooccurrence_prior(items: Ints, offsets: Ints, num_items: int, config: TrialConfig) -> tuple[Ints, Floats]:
    """(keys, values) of C: keys i * num_items + j, ascending."""
    keys, values, histories = cooccurrence_sums(items, offsets, num_items, config)
    return cooccurrences_of(keys, values, histories, num_items, config)


def cooccurrence_sums(items: Ints, offsets: Ints, num_items: int, config: TrialConfig) -> tuple[Ints, Floats, Ints]:
    """(keys, values) of C before it is normalised, and the number of histories with each item, (num_items,)."""
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    distinct = np.unique(users * num_items + items)  # an item counts once per history
    owners, contained = distinct // num_items, distinct % num_items
    histories = np.bincount(contained, minlength=num_items)
    if config.cooccurrence_span:
        found = _pairs(items, offsets, config.cooccurrence_span)
        pairs = ((first[first != second], second[first != second], 1.0) for _, first, second in found)
    else:
        bounds = np.concatenate(([0], np.cumsum(np.bincount(owners, minlength=len(offsets) - 1))))
        pairs = ((first, second, 1.0) for _, first, second in _pairs(contained, bounds, None))
    return *_count_pairs(_directed(pairs, "both"), num_items), histories


def cooccurrences_of(
    keys: Ints, values: Floats, histories: Ints, num_items: int, config: TrialConfig
) -> tuple[Ints, Floats]:
    """The co-occurrence prior of `cooccurrence_sums`."""
    if config.cooccurrence_normalisation == "cosine":
        values = values / np.sqrt(histories[keys // num_items] * histories[keys % num_items])
    else:
        values = _normalised(keys, values, num_items, config.cooccurrence_normalisation)
    return _strongest(keys, values, num_items, config.cooccurrence_neighbours)


def _directed(pairs: Iterable[tuple[Ints, Ints, float]], direction: str) -> Iterable[tuple[Ints, Ints, float]]:
    for first, second, weight in pairs:
        if direction != "backward":
            yield first, second, weight
        if direction != "forward":
            yield second, first, weight


def _normalised(keys: Ints, values: Floats, num_items: int, normalisation: str) -> Floats:
    rows = _sums(keys // num_items, values, num_items)
    if normalisation == "cosine":
        return values / np.sqrt(rows * _sums(keys % num_items, values, num_items))
    power = {"row": 1.0, "sqrt": 0.5, "none": 0.0}[normalisation]
    return np.asarray(values / rows**power)


def _strongest(keys: Ints, values: Floats, num_items: int, neighbours: int) -> tuple[Ints, Floats]:
    """The `neighbours` largest entries of each row, of equal entries those with the smaller column; 0 = all entries."""
    if not neighbours:
        return keys, values
    rows = keys // num_items
    # compared in float32, because in float64 the order of summation would decide between equal entries
    order = np.lexsort((keys, -values.astype(np.float32), rows))
    starts = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=num_items))))
    ranks = np.arange(len(keys)) - starts[rows[order]]  # within the row, 0 = largest
    kept = np.sort(order[ranks < neighbours])
    return keys[kept], values[kept]


def _pairs(items: Ints, offsets: Ints, window: int | None) -> Iterable[tuple[int, Ints, Ints]]:
    """(lag, items, items `lag` steps later in the same history) for lag = 1, 2, …, at most `window` if it is given."""
    lengths = np.diff(offsets)
    longest = int(lengths.max(initial=1)) - 1
    events = np.arange(len(items))
    num_later = np.repeat(offsets[1:], lengths) - events - 1  # later events of the same history
    for lag in range(1, min(window or longest, longest) + 1):
        events = events[num_later[events] >= lag]
        yield lag, items[events], items[events + lag]


def _count_pairs(pairs: Iterable[tuple[Ints, Ints, float]], num_items: int) -> tuple[Ints, Floats]:
    """(keys, sums): the summed weights of equal (first, second) pairs, keys first * num_items + second, ascending."""
    total: tuple[Ints, Floats] = np.empty(0, np.int64), np.empty(0)
    pending: dict[float, list[Ints]] = {}  # keys by weight: counting equal keys is several times faster than summing
    num_pending = 0
    for first, second, weight in pairs:
        pending.setdefault(weight, []).append(first * num_items + second)
        num_pending += len(first)
        if num_pending > MERGE_ABOVE:
            total, pending, num_pending = _merge(total, pending), {}, 0
    return _merge(total, pending)


def _merge(total: tuple[Ints, Floats], pending: dict[float, list[Ints]]) -> tuple[Ints, Floats]:
    """`total` plus the pending pairs, with equal keys summed and keys ascending."""
    parts = [total] if len(total[0]) else []
    for weight, keys_of_weight in pending.items():
        distinct, counts = np.unique(np.concatenate(keys_of_weight), return_counts=True)
        parts.append((distinct, np.multiply(counts, weight, dtype=np.float64)))
    if len(parts) < 2:
        return parts[0] if parts else total
    keys = np.concatenate([part for part, _ in parts])
    weights = np.concatenate([part for _, part in parts])
    order = np.argsort(keys, kind="stable")
    keys, weights = keys[order], weights[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat(weights, starts) if len(starts) else weights


def _sums(groups: Ints, values: Floats, num_items: int) -> Floats:
    """For each entry, the sum over its group (row or column)."""
    return np.asarray(np.bincount(groups, weights=values, minlength=num_items)[groups], np.float64)
