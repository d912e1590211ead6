"""Augmented copies of event sequences by cropping, masking and reordering (CL4SRec, Xie et al. 2022).

The functions compute event indices only, for a whole batch at once. With ratio r and a sequence of n events, "crop"
drops floor(r n) events at the ends, "reorder" shuffles floor(r n) consecutive events, and "mask" masks each event with
probability r; "mixed" draws one of the three for each sequence.

Tensor dimensions: L events of the batch. All tensors are on the CPU.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("crop", "mask", "reorder")


@dataclass(frozen=True, eq=False)
class Augmented:
    """Augmented sequences, as indices into the events of the original ones."""

    source: Tensor  # (new L,) int64: index of the original event whose item is used here
    times: Tensor  # (new L,) int64: index of the original event whose time is used here; "reorder" moves items only
    lengths: Tensor  # (sequences,) int64
    masked: Tensor  # (new L,) bool: the model sees no item here


def augment(
    lengths: Tensor, kind: str, ratio: float, share: float, min_length: int, generator: torch.Generator
) -> Augmented:
    """Augment each sequence with probability `share`; a crop leaves at least `min_length` events.

    `lengths` (sequences,) int64 are the lengths of the original sequences. Equal generators give equal results.
    A sequence of one event can only be masked.
    """
    num = len(lengths)
    chosen = torch.rand(num, generator=generator) < share
    kinds = torch.randint(3, (num,), generator=generator)
    if kind != "mixed":
        kinds.fill_(KINDS.index(kind))
    spans = (lengths * ratio).long()
    cropped = torch.where(chosen & (kinds == 0), torch.minimum(spans, (lengths - min_length).clamp_(min=0)), 0)
    kept = lengths - cropped
    begins = _random_below(cropped + 1, generator)  # first event that the crop keeps
    shuffled = torch.where(chosen & (kinds == 2), spans, 0)
    span_begins = _random_below(lengths - shuffled + 1, generator)

    offsets = lengths.cumsum(0) - lengths
    owners = torch.arange(num).repeat_interleave(kept)
    new_offsets = kept.cumsum(0) - kept
    steps = torch.arange(len(owners)) - new_offsets[owners]  # position in the new sequence
    times = (offsets + begins)[owners] + steps
    masked = (torch.rand(len(owners), generator=generator) < ratio) & (chosen & (kinds == 1))[owners]
    source = times[_shuffled_order(owners, steps, span_begins, shuffled, generator)]
    return Augmented(source, times, kept, masked)


def _shuffled_order(owners: Tensor, steps: Tensor, begins: Tensor, spans: Tensor, generator: torch.Generator) -> Tensor:
    """(L,) int64: a permutation that shuffles the events within each sequence's span and moves no other event."""
    first, size = begins[owners], spans[owners]
    inside = (steps >= first) & (steps < first + size)
    draws = torch.rand(len(steps), dtype=torch.float64, generator=generator)
    keys = torch.where(inside, first + draws * size, steps.double())
    by_key = torch.argsort(keys, stable=True)
    return by_key[torch.argsort(owners[by_key], stable=True)]


def _random_below(bounds: Tensor, generator: torch.Generator) -> Tensor:
    """A random integer in [0, bound) for each bound >= 1, int64 of the shape of `bounds`."""
    draws = torch.rand(len(bounds), dtype=torch.float64, generator=generator)
    return torch.minimum((draws * bounds).long(), bounds - 1)
