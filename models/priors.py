"""Score priors: popularity, item transitions and item co-occurrence in training histories, added to finished scores.

    s(u, j) = z(u, j) + w_pop pop(j) + w_tr T[last item of u, j] + w_co sum_{i in last items of u} C[i, j]

z is the model's score, standardised per user over the whole catalogue where score_normalisation="zscore". Everything
is computed from the train part of a dataset. T and C are sparse rows (flat index arrays); nothing is V x V.

    pop(j)   log(1 + count of j), scaled to [0, 1]
    T[i, j]  how often j follows i within `transition_window` steps, step s counted 1/s; divided by its row's sum
             ("row"), by the square root of it ("sqrt"), or not ("none")
    C[i, j]  number of training histories that hold both i and j, i != j; divided by sqrt(n_i n_j) ("cosine", n_i the
             number of histories that hold i), by its row's sum ("row"), or not ("none")
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.prepared import PreparedDataset
from .batch import keep_last
from .config import TrialConfig

MERGE_ABOVE = 1 << 24  # pairs held before equal ones are added up: about half a gigabyte while sorting
MIN_DEVIATION = 1e-12  # a model that scores all items alike keeps its zeros

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SparseRows:
    """A sparse (num_items, num_items) matrix by rows: row i is `columns[starts[i]:starts[i + 1]]` with its values."""

    starts: Tensor  # (num_items + 1,) int64
    columns: Tensor  # (entries,) int32, ascending within a row
    values: Tensor  # (entries,) float32

    def add_to(self, scores: Tensor, owners: Tensor, rows: Tensor, weight: float) -> None:
        """scores[owners[k]] += weight * row rows[k], for every k; an owner may come several times."""
        first = self.starts[rows]
        counts = self.starts[rows + 1] - first
        shift = first - (counts.cumsum(0) - counts)
        entries = torch.arange(int(counts.sum()), device=scores.device) + shift.repeat_interleave(counts)
        places = (owners * scores.shape[1]).repeat_interleave(counts) + self.columns[entries]
        scores.view(-1).index_add_(0, places, self.values[entries], alpha=weight)


@dataclass(frozen=True)
class ScorePriors:
    """The priors of one configuration on one device; those without a weight are left out."""

    config: TrialConfig
    popularity: Tensor | None  # (num_items,) float32
    transition: SparseRows | None
    cooccurrence: SparseRows | None

    @classmethod
    def from_dataset(
        cls, dataset: PreparedDataset, config: TrialConfig, device: torch.device | str = "cpu"
    ) -> "ScorePriors | None":
        """The priors that have a weight in `config`, or None if none has: the model's scores then stand as they are."""
        if not (config.popularity_weight or config.transition_weight or config.cooccurrence_weight):
            return None
        items, offsets, size = np.asarray(dataset.items, np.int64), np.asarray(dataset.offsets), dataset.num_items
        popularity = transition = cooccurrence = None
        if config.popularity_weight:
            popularity = torch.tensor(popularity_prior(items, size), dtype=torch.float32, device=device)
        if config.transition_weight:
            window, norm = config.transition_window, config.transition_normalisation
            transition = _to_rows(*transition_prior(items, offsets, size, window, norm), size, device)
        if config.cooccurrence_weight:
            norm_ = config.cooccurrence_normalisation
            cooccurrence = _to_rows(*cooccurrence_prior(items, offsets, size, norm_), size, device)
        return cls(config, popularity, transition, cooccurrence)

    def add_to(self, scores: Tensor, items: Tensor, offsets: Tensor) -> Tensor:
        """Fuse into `scores` float32 (users, num_items), contiguous, in place; returns them.

        Histories: items integer (num_events,) on the scores' device, offsets int64 (users + 1,) on the CPU, none empty.
        """
        if self.config.score_normalisation == "zscore":
            standardise(scores)
        if self.popularity is not None:
            scores.add_(self.popularity, alpha=self.config.popularity_weight)
        if self.transition is not None:
            self._add_rows(scores, items, offsets, self.transition, 1, self.config.transition_weight)
        if self.cooccurrence is not None:
            window, weight = self.config.cooccurrence_window, self.config.cooccurrence_weight
            self._add_rows(scores, items, offsets, self.cooccurrence, window, weight)
        return scores

    def _add_rows(
        self, scores: Tensor, items: Tensor, offsets: Tensor, rows: SparseRows, window: int, weight: float
    ) -> None:
        index, bounds = keep_last(offsets, window)
        owners = torch.arange(len(scores)).repeat_interleave(bounds.diff())
        rows.add_to(scores, owners.to(scores.device), items[index.to(items.device)].long(), weight)


def standardise(scores: Tensor) -> None:
    """Subtract each row's mean and divide by its standard deviation (over all columns, not n - 1), in place."""
    scores.sub_(scores.mean(dim=1, keepdim=True))
    deviation = torch.linalg.vector_norm(scores, dim=1, keepdim=True) / scores.shape[1] ** 0.5
    scores.div_(deviation.clamp_min(MIN_DEVIATION))


def popularity_prior(items: Ints, num_items: int) -> Floats:
    """(num_items,) in [0, 1]: log(1 + count) over its maximum."""
    logs = np.log1p(np.bincount(items, minlength=num_items))
    return np.asarray(logs / logs.max())


def transition_prior(
    items: Ints, offsets: Ints, num_items: int, window: int, normalisation: str
) -> tuple[Ints, Floats]:
    """(keys, values) of T, keys ascending = i * num_items + j."""
    steps = ((first, second, 1.0 / lag) for lag, first, second in _pairs(items, offsets, window))
    keys, values = _count_pairs(steps, num_items)
    power = {"row": 1.0, "sqrt": 0.5, "none": 0.0}[normalisation]
    return keys, values / _row_sums(keys, values, num_items) ** power


def cooccurrence_prior(items: Ints, offsets: Ints, num_items: int, normalisation: str) -> tuple[Ints, Floats]:
    """(keys, values) of C, keys ascending = i * num_items + j."""
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    distinct = np.unique(users * num_items + items)  # an item counts once per history
    owners, held = distinct // num_items, distinct % num_items
    bounds = np.concatenate(([0], np.cumsum(np.bincount(owners, minlength=len(offsets) - 1))))
    pairs = ((first, second) for _, first, second in _pairs(held, bounds, None))
    both = ((a, b, 1.0) for first, second in pairs for a, b in ((first, second), (second, first)))
    keys, values = _count_pairs(both, num_items)
    if normalisation == "row":
        values = values / _row_sums(keys, values, num_items)
    if normalisation == "cosine":
        histories = np.bincount(held, minlength=num_items)
        values = values / np.sqrt(histories[keys // num_items] * histories[keys % num_items])
    return keys, values


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
    keys, weights = [np.empty(0, np.int64)], [np.empty(0)]
    for first, second, weight in pairs:
        keys.append(first * num_items + second)
        weights.append(np.full(len(first), weight))
        if sum(map(len, keys)) > MERGE_ABOVE:
            merged = _merge(np.concatenate(keys), np.concatenate(weights))
            keys, weights = [merged[0]], [merged[1]]
    return _merge(np.concatenate(keys), np.concatenate(weights))


def _merge(keys: Ints, weights: Floats) -> tuple[Ints, Floats]:
    order = np.argsort(keys, kind="stable")
    keys, weights = keys[order], weights[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat(weights, starts) if len(starts) else weights


def _row_sums(keys: Ints, values: Floats, num_items: int) -> Floats:
    """The sum of the row that each entry is in."""
    rows = keys // num_items
    return np.asarray(np.bincount(rows, weights=values, minlength=num_items)[rows], np.float64)


def _to_rows(keys: Ints, values: Floats, num_items: int, device: torch.device | str) -> SparseRows:
    starts = np.searchsorted(keys, np.arange(num_items + 1) * num_items)
    return SparseRows(
        torch.tensor(starts, dtype=torch.int64, device=device),
        torch.tensor(keys % num_items, dtype=torch.int32, device=device),
        torch.tensor(values, dtype=torch.float32, device=device),
    )
