"""Score priors: popularity, item transitions and item co-occurrence in training histories, fused into finished scores.

    s(u, j) = z(u, j) + w_pop pop(j) + w_tr sum_r a^r T[i_r, j] + w_co sum_r b^r C[i_r, j]

z is the model's score, normalised per user over the whole catalogue (`score_normalisation`). i_0, i_1, … are the user's
latest items, latest first; the sums use `transition_recent` and `cooccurrence_window` of them, and a and b are
`transition_recency` and `cooccurrence_recency`. `prior_tables.py` defines the tables, counted on the train split only.

With fusion="rerank", s orders only the model's top `rerank_top` candidates. All other items stay below these, in the
model's order.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.prepared import PreparedDataset
from .batch import keep_last
from .config import TrialConfig
from .prior_tables import Floats, Ints, cooccurrence_prior, popularity_prior, transition_prior

MIN_DEVIATION = 1e-12  # avoids a division by zero if all scores of a user are equal; these scores become 0


@dataclass(frozen=True)
class SparseRows:
    """A sparse (num_items, num_items) matrix (CSR): row i is `starts[i]:starts[i + 1]` of `columns` and `values`."""

    starts: Tensor  # (num_items + 1,) int64
    columns: Tensor  # (entries,) int32, ascending within a row
    values: Tensor  # (entries,) float32

    def to(self, device: torch.device) -> "SparseRows":
        """The matrix on another device."""
        return SparseRows(*(part.to(device) for part in (self.starts, self.columns, self.values)))

    def add_to(self, scores: Tensor, owners: Tensor, rows: Tensor, weights: Tensor) -> None:
        """For every k, add row rows[k], times weights[k], to scores[owners[k]]; an owner may occur several times."""
        first = self.starts[rows]
        counts = self.starts[rows + 1] - first
        source = torch.repeat_interleave(counts)  # the k of each entry to add
        shift = first - (counts.cumsum(0) - counts)
        # index_select is several times as fast on a CPU as indexing with brackets or further repeat_interleaves
        entries = torch.arange(len(source), device=scores.device).add_(shift.index_select(0, source))
        targets = (owners * scores.shape[1]).index_select(0, source).add_(self.columns.index_select(0, entries))
        values = self.values.index_select(0, entries).mul_(weights.index_select(0, source))
        scores.view(-1).index_add_(0, targets, values)


@dataclass(frozen=True)
class ScorePriors:
    """The priors of one configuration on one device; a prior whose weight is 0 is None."""

    config: TrialConfig
    popularity: Tensor | None  # (num_items,) float32
    transition: SparseRows | None
    cooccurrence: SparseRows | None

    @classmethod
    def from_dataset(
        cls, dataset: PreparedDataset, config: TrialConfig, device: torch.device | str = "cpu"
    ) -> "ScorePriors | None":
        """The priors with a non-zero weight in `config`, or None if all weights are 0."""
        return PriorTables(dataset, device).priors(config)

    def to(self, device: torch.device) -> "ScorePriors":
        """The priors on another device."""
        moved = [table and table.to(device) for table in (self.transition, self.cooccurrence)]
        popularity = None if self.popularity is None else self.popularity.to(device)
        return ScorePriors(self.config, popularity, *moved)

    def add_to(self, scores: Tensor, items: Tensor, offsets: Tensor, normalised: bool = False) -> Tensor:
        """Fuse the priors into `scores`, float32 (users, num_items), contiguous, in place; returns `scores`.

        Histories: items integer (num_events,) on the scores' device, offsets int64 (users + 1,) on the CPU, none empty.
        `normalised` says that the caller has applied the configured normalisation to `scores` already.
        """
        if not normalised:
            normalise(scores, self.config.score_normalisation)
        if self.config.fusion == "blend" or self.config.rerank_top >= scores.shape[1]:
            self._add(scores, items, offsets)
            return scores
        outside = _outside_top(scores, items, offsets, self.config.rerank_top)
        model_scores = scores.clone()
        self._add(scores, items, offsets)
        lowest = scores.masked_fill(outside, torch.inf).amin(dim=1, keepdim=True)
        highest = model_scores.masked_fill(~outside, -torch.inf).amax(dim=1, keepdim=True)
        lowered = model_scores.sub_((highest - lowest).clamp_(min=0).add_(1))  # in the model's order, below the top
        return scores.copy_(torch.where(outside, lowered, scores))

    def _add(self, scores: Tensor, items: Tensor, offsets: Tensor) -> None:
        config = self.config
        if self.popularity is not None:
            scores.add_(self.popularity, alpha=config.popularity_weight)
        self._add_rows(scores, items, offsets)

    def _add_rows(self, scores: Tensor, items: Tensor, offsets: Tensor) -> None:
        """Add the rows of the transition and co-occurrence tables that the histories select."""
        config = self.config
        if self.transition is not None:
            owners, rows, ages = _latest(items, offsets, config.transition_recent)
            self.transition.add_to(scores, owners, rows, config.transition_weight * config.transition_recency**ages)
        if self.cooccurrence is not None:
            owners, rows, ages = _latest(items, offsets, config.cooccurrence_window)
            weights = config.cooccurrence_weight * config.cooccurrence_recency**ages
            self.cooccurrence.add_to(scores, owners, rows, weights)


@dataclass(frozen=True)
class RepeatedPriors(ScorePriors):
    """Score priors for the same histories after each epoch: what the histories add on a CPU is summed only once.

    The sums are added to the scores in one step, so that a score may differ from that of `ScorePriors` in the last bit.
    Takes 8 bytes of memory for each pair of a user and an item with a prior.
    """

    _sums: dict[bytes, tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, priors: ScorePriors) -> "RepeatedPriors":
        """The same priors."""
        return cls(priors.config, priors.popularity, priors.transition, priors.cooccurrence)

    def _add_rows(self, scores: Tensor, items: Tensor, offsets: Tensor) -> None:
        if scores.device.type != "cpu":
            super()._add_rows(scores, items, offsets)
            return
        histories = items.numpy().tobytes() + offsets.numpy().tobytes()
        if histories not in self._sums:
            sums = torch.zeros_like(scores)
            super()._add_rows(sums, items, offsets)
            places = sums.view(-1).nonzero()[:, 0]
            self._sums[histories] = places.to(torch.int32), sums.view(-1)[places]
        index, values = self._sums[histories]
        scores.view(-1).index_add_(0, index, values)


POPULARITY_KNOBS = ("popularity_window",)
TRANSITION_KNOBS = (
    "transition_window", "transition_decay", "transition_direction", "transition_normalisation",
    "transition_neighbours",
)  # fmt: skip
COOCCURRENCE_KNOBS = ("cooccurrence_span", "cooccurrence_normalisation", "cooccurrence_neighbours")
"""The knobs that a table of `prior_tables.py` depends on; all other scoring knobs act when the table is added."""


class PriorTables:
    """The tables of one dataset on one device; configurations with the same counting knobs share a table."""

    def __init__(self, dataset: PreparedDataset, device: torch.device | str = "cpu") -> None:
        self._items, self._offsets = np.asarray(dataset.items, np.int64), np.asarray(dataset.offsets)
        self._times, self._size = np.asarray(dataset.timestamps), dataset.num_items
        self.device = torch.device(device)
        self._tables: dict[tuple[Any, ...], Any] = {}

    def priors(self, config: TrialConfig) -> ScorePriors | None:
        """The priors with a non-zero weight in `config`, or None if all weights are 0."""
        if not (config.popularity_weight or config.transition_weight or config.cooccurrence_weight):
            return None
        return ScorePriors(
            config,
            self._table(config, POPULARITY_KNOBS, self._popularity) if config.popularity_weight else None,
            self._table(config, TRANSITION_KNOBS, self._transition) if config.transition_weight else None,
            self._table(config, COOCCURRENCE_KNOBS, self._cooccurrence) if config.cooccurrence_weight else None,
        )

    def _table(self, config: TrialConfig, knobs: tuple[str, ...], count: Callable[[TrialConfig], Any]) -> Any:
        key = (knobs, *(getattr(config, knob) for knob in knobs))
        if key not in self._tables:
            self._tables[key] = count(config)
        return self._tables[key]

    def _popularity(self, config: TrialConfig) -> Tensor:
        values = popularity_prior(self._items, self._times, self._size, config.popularity_window)
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def _transition(self, config: TrialConfig) -> SparseRows:
        table = transition_prior(self._items, self._offsets, self._size, config)
        return sparse_rows(*table, self._size, self.device)

    def _cooccurrence(self, config: TrialConfig) -> SparseRows:
        table = cooccurrence_prior(self._items, self._offsets, self._size, config)
        return sparse_rows(*table, self._size, self.device)


def normalise(scores: Tensor, kind: str) -> None:
    """Normalise each row in place.

    "zscore" gives mean 0 and standard deviation 1 (divisor n, not n - 1), "minmax" the range 0 … 1, "softmax"
    probabilities; "none" changes nothing.
    """
    if kind == "zscore":
        scores.sub_(scores.mean(dim=1, keepdim=True))
        deviation = torch.linalg.vector_norm(scores, dim=1, keepdim=True) / scores.shape[1] ** 0.5
        scores.div_(deviation.clamp_min(MIN_DEVIATION))
    elif kind == "minmax":
        low, high = torch.aminmax(scores, dim=1, keepdim=True)
        scores.sub_(low).div_((high - low).clamp_min(MIN_DEVIATION))
    elif kind == "softmax":
        scores.copy_(scores.softmax(dim=1))


def _outside_top(scores: Tensor, items: Tensor, offsets: Tensor, top: int) -> Tensor:
    """(users, num_items) bool: False for the `top` best items outside the history and for ties with the last."""
    owners = torch.arange(len(scores)).repeat_interleave(offsets.diff()).to(scores.device)
    candidates = scores.clone()
    candidates[owners, items.long()] = -torch.inf
    return (candidates < candidates.topk(top, dim=1).values[:, -1:]) | (candidates == -torch.inf)


def _latest(items: Tensor, offsets: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """For the last `window` events of each history: the user's row, the item (int64), the age (float32, 0 = latest)."""
    index, bounds = keep_last(offsets, window)
    owners = torch.arange(len(offsets) - 1).repeat_interleave(bounds.diff())
    ages = (bounds[1:] - 1)[owners] - torch.arange(len(owners))
    return owners.to(items.device), items[index.to(items.device)].long(), ages.to(items.device, torch.float32)


def sparse_rows(keys: Ints, values: Floats, num_items: int, device: torch.device | str = "cpu") -> SparseRows:
    """The matrix with `values` at keys i * num_items + j, ascending."""
    starts = np.searchsorted(keys, np.arange(num_items + 1) * num_items)
    return SparseRows(
        torch.tensor(starts, dtype=torch.int64, device=device),
        torch.tensor(keys % num_items, dtype=torch.int32, device=device),
        torch.tensor(values, dtype=torch.float32, device=device),
    )
