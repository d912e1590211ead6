"""The sums over events that score priors are made of, as an export keeps them, so that later events can be added.

An export has them for the default counting knobs, which the baselines of an evaluation use, and for those of its own
scoring knobs. Sums of two logs add exactly if no user's history is divided between the logs: pairs of an older and a
newer event of one user are in neither. With `popularity_window` < 1, the counts of both windows are added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .config import TrialConfig
from .prior_tables import (
    Floats,
    Ints,
    cooccurrence_sums,
    cooccurrences_of,
    latest_counts,
    popularity_of,
    transition_sums,
    transitions_of,
)
from .priors import ScorePriors, sparse_rows


class Events(NamedTuple):
    """A jagged batch of histories, oldest event first: user u has items[offsets[u]:offsets[u + 1]]."""

    items: NDArray[np.int32]  # (num_events,)
    offsets: Ints  # (num_users + 1,)
    timestamps: Ints  # (num_events,) seconds


class Pairs(NamedTuple):
    """Sums per pair of items (i, j): keys i * num_items + j, ascending and distinct, and their values."""

    keys: Ints
    values: Floats

    def plus(self, other: "Pairs") -> "Pairs":
        """The sums of both."""
        keys, inverse = np.unique(np.concatenate((self.keys, other.keys)), return_inverse=True)
        values = np.concatenate((self.values, other.values))
        return Pairs(keys, np.bincount(inverse, values, len(keys)).astype(np.float64))

    def grown(self, old_size: int, new_size: int) -> "Pairs":
        """The same sums with the keys of a larger catalogue."""
        return Pairs(self.keys // old_size * new_size + self.keys % old_size, self.values)


@dataclass(frozen=True)
class PriorSums:
    """The sums of one log under the counting knobs of one configuration."""

    num_items: int
    counts: Ints  # (num_items,) events in the popularity window
    histories: Ints  # (num_items,) histories with the item
    transitions: Pairs
    cooccurrences: Pairs

    @classmethod
    def of_events(cls, events: Events, num_items: int, config: TrialConfig) -> "PriorSums":
        """Count events with the counting knobs of `config`."""
        items, offsets = np.asarray(events.items, np.int64), np.asarray(events.offsets)
        keys, values, histories = cooccurrence_sums(items, offsets, num_items, config)
        return cls(
            num_items,
            latest_counts(items, np.asarray(events.timestamps), num_items, config.popularity_window),
            histories,
            Pairs(*transition_sums(items, offsets, num_items, config)),
            Pairs(keys, values),
        )

    def grown(self, num_items: int) -> "PriorSums":
        """The same sums for a catalogue with more items, whose first items are these."""
        more = num_items - self.num_items
        counts, histories = (np.pad(each, (0, more)) for each in (self.counts, self.histories))
        transitions, cooccurrences = (
            each.grown(self.num_items, num_items) for each in (self.transitions, self.cooccurrences)
        )
        return PriorSums(num_items, counts, histories, transitions, cooccurrences)

    def plus(self, other: "PriorSums") -> "PriorSums":
        """The sums of both logs; their catalogues must be equal."""
        return PriorSums(
            self.num_items,
            self.counts + other.counts,
            self.histories + other.histories,
            self.transitions.plus(other.transitions),
            self.cooccurrences.plus(other.cooccurrences),
        )

    def priors(self, config: TrialConfig) -> ScorePriors | None:
        """The priors with a non-zero weight in `config`, equal to `ScorePriors.from_dataset` of the log; None for none.

        The counting knobs of `config` must be those that were counted with.
        """
        if not (config.popularity_weight or config.transition_weight or config.cooccurrence_weight):
            return None
        size = self.num_items
        popularity = torch.tensor(popularity_of(self.counts), dtype=torch.float32)
        return ScorePriors(
            config,
            popularity if config.popularity_weight else None,
            sparse_rows(*transitions_of(*self.transitions, size, config), size) if config.transition_weight else None,
            sparse_rows(*cooccurrences_of(*self.cooccurrences, self.histories, size, config), size)
            if config.cooccurrence_weight
            else None,
        )


COUNTED_WITH: dict[str, Sequence[str]] = {
    "popularity": ("popularity_window",),
    "transition": ("transition_window", "transition_decay", "transition_direction"),
    "cooccurrence": ("cooccurrence_span",),
}
"""The knobs on which the sums of each prior depend; the others act on the finished sums."""


def counting_knobs(config: TrialConfig) -> dict[str, object]:
    """The knobs that the sums of `config` depend on: those of the priors that it uses."""
    used = [prior for prior in COUNTED_WITH if getattr(config, f"{prior}_weight")]
    return {knob: getattr(config, knob) for prior in used for knob in COUNTED_WITH[prior]}
