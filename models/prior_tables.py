"""Statistics of training histories that score priors are made of: popularity, transitions, co-occurrence.

    pop(j)   log(1 + count of j) over its maximum; counted are the latest `popularity_window` of all events
    T[i, j]  how often j follows i within `transition_window` steps, step s counted s ** -transition_decay
             ("backward": how often i follows j; "both": their sum)
    C[i, j]  number of training histories that hold both i and j, i != j; with `cooccurrence_span`, number of pairs of
             events of i and j at most that many steps apart

T and C are then scaled: "row" divides by the row's sum, "sqrt" by its square root, "cosine" by the square root of row's
times column's total (for C: of the numbers of histories that hold i and j), "none" not at all. `…_neighbours` keeps the
strongest entries of each row. Everything is sparse; nothing is V x V.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .config import TrialConfig

MERGE_ABOVE = 1 << 24  # pairs held before equal ones are added up: about half a gigabyte while sorting

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def popularity_prior(items: Ints, times: Ints, num_items: int, window: float) -> Floats:
    """(num_items,) in [0, 1]; times (num_events,) decide which events are the latest, ties by their place."""
    if window < 1:
        latest = max(1, round(window * len(items)))
        items = items[np.argsort(times, kind="stable")[-latest:]]
    logs = np.log1p(np.bincount(items, minlength=num_items))
    return np.asarray(logs / logs.max())


def transition_prior(items: Ints, offsets: Ints, num_items: int, config: TrialConfig) -> tuple[Ints, Floats]:
    """(keys, values) of T, keys ascending = i * num_items + j."""
    steps = (
        (first, second, float(lag) ** -config.transition_decay)
        for lag, first, second in _pairs(items, offsets, config.transition_window)
    )
    keys, values = _count_pairs(_directed(steps, config.transition_direction), num_items)
    values = _scaled(keys, values, num_items, config.transition_normalisation)
    return _strongest(keys, values, num_items, config.transition_neighbours)


def cooccurrence_prior(items: Ints, offsets: Ints, num_items: int, config: TrialConfig) -> tuple[Ints, Floats]:
    """(keys, values) of C, keys ascending = i * num_items + j."""
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    distinct = np.unique(users * num_items + items)  # an item counts once per history
    owners, held = distinct // num_items, distinct % num_items
    histories = np.bincount(held, minlength=num_items)
    if config.cooccurrence_span:
        found = _pairs(items, offsets, config.cooccurrence_span)
        pairs = ((first[first != second], second[first != second], 1.0) for _, first, second in found)
    else:
        bounds = np.concatenate(([0], np.cumsum(np.bincount(owners, minlength=len(offsets) - 1))))
        pairs = ((first, second, 1.0) for _, first, second in _pairs(held, bounds, None))
    keys, values = _count_pairs(_directed(pairs, "both"), num_items)
    if config.cooccurrence_normalisation == "cosine":
        values = values / np.sqrt(histories[keys // num_items] * histories[keys % num_items])
    else:
        values = _scaled(keys, values, num_items, config.cooccurrence_normalisation)
    return _strongest(keys, values, num_items, config.cooccurrence_neighbours)


def _directed(pairs: Iterable[tuple[Ints, Ints, float]], direction: str) -> Iterable[tuple[Ints, Ints, float]]:
    for first, second, weight in pairs:
        if direction != "backward":
            yield first, second, weight
        if direction != "forward":
            yield second, first, weight


def _scaled(keys: Ints, values: Floats, num_items: int, normalisation: str) -> Floats:
    rows = _sums(keys // num_items, values, num_items)
    if normalisation == "cosine":
        return values / np.sqrt(rows * _sums(keys % num_items, values, num_items))
    power = {"row": 1.0, "sqrt": 0.5, "none": 0.0}[normalisation]
    return np.asarray(values / rows**power)


def _strongest(keys: Ints, values: Floats, num_items: int, neighbours: int) -> tuple[Ints, Floats]:
    """The `neighbours` largest entries of each row, of those equal in float32 the first; all of them if 0."""
    if not neighbours:
        return keys, values
    rows = keys // num_items
    # in float32, or the order in which weights were summed would decide between equals
    order = np.lexsort((keys, -values.astype(np.float32), rows))
    starts = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=num_items))))
    places = np.arange(len(keys)) - starts[rows[order]]
    kept = np.sort(order[places < neighbours])
    return keys[kept], values[kept]


def _pairs(items: Ints, offsets: Ints, window: int | None) -> Iterable[tuple[int, Ints, Ints]]:
    """(lag, items, items `lag` steps later in the same history), for lag = 1, 2, … up to `window` or to the longest."""
    lengths = np.diff(offsets)
    longest = int(lengths.max(initial=1)) - 1
    places = np.arange(len(items))
    left = np.repeat(offsets[1:], lengths) - places - 1  # events that follow in the same history
    for lag in range(1, min(window or longest, longest) + 1):
        places = places[left[places] >= lag]
        yield lag, items[places], items[places + lag]


def _count_pairs(pairs: Iterable[tuple[Ints, Ints, float]], num_items: int) -> tuple[Ints, Floats]:
    """Sum of the weights of equal (first, second) pairs, by ascending key first * num_items + second."""
    total: tuple[Ints, Floats] = np.empty(0, np.int64), np.empty(0)
    waiting: dict[float, list[Ints]] = {}  # keys by their weight: counting is several times faster than summing
    held = 0
    for first, second, weight in pairs:
        waiting.setdefault(weight, []).append(first * num_items + second)
        held += len(first)
        if held > MERGE_ABOVE:
            total, waiting, held = _merge(total, waiting), {}, 0
    return _merge(total, waiting)


def _merge(total: tuple[Ints, Floats], waiting: dict[float, list[Ints]]) -> tuple[Ints, Floats]:
    parts = [total] if len(total[0]) else []
    for weight, alike in waiting.items():
        distinct, counts = np.unique(np.concatenate(alike), return_counts=True)
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
    """The sum over the group (row or column) that each entry is in."""
    return np.asarray(np.bincount(groups, weights=values, minlength=num_items)[groups], np.float64)
