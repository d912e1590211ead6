"""Changed copies of event sequences: a piece cut out, a span shuffled, items hidden (CL4SRec, Xie et al. 2022).

Works on places only, for a whole batch at once: which event stands where in the new sequences. The ratio r is the share
of a sequence's n events that is affected: "crop" leaves out floor(r n) events at the ends, "reorder" shuffles
floor(r n) neighbouring ones, "mask" hides each with probability r; "mixed" is one of the three for each sequence.

Tensor dimensions: L events of the batch. Everything lies on the CPU.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("crop", "mask", "reorder")


@dataclass(frozen=True, eq=False)
class Augmented:
    """New sequences made of the old ones' events."""

    source: Tensor  # (new L,) int64: the old place of the item that stands here now
    times: Tensor  # (new L,) int64: the old place whose time stands here: shuffling moves items, not the clock
    lengths: Tensor  # (sequences,) int64
    hidden: Tensor  # (new L,) bool: the model is not to see this item


def augment(
    lengths: Tensor, kind: str, ratio: float, share: float, least: int, generator: torch.Generator
) -> Augmented:
    """Change a `share` of sequences of `lengths` (sequences,) int64, none of which gets shorter than `least`.

    Equal generators give equal results. A sequence of one event stays as it is, but for a mask.
    """
    num = len(lengths)
    chosen = torch.rand(num, generator=generator) < share
    kinds = torch.randint(3, (num,), generator=generator)
    if kind != "mixed":
        kinds.fill_(KINDS.index(kind))
    spans = (lengths * ratio).long()
    cropped = torch.where(chosen & (kinds == 0), torch.minimum(spans, (lengths - least).clamp_(min=0)), 0)
    kept = lengths - cropped
    begins = _below(cropped + 1, generator)  # first event that a crop keeps
    shuffled = torch.where(chosen & (kinds == 2), spans, 0)
    span_begins = _below(lengths - shuffled + 1, generator)

    offsets = lengths.cumsum(0) - lengths
    owners = torch.arange(num).repeat_interleave(kept)
    new_offsets = kept.cumsum(0) - kept
    steps = torch.arange(len(owners)) - new_offsets[owners]  # place in the new sequence
    times = (offsets + begins)[owners] + steps
    hidden = (torch.rand(len(owners), generator=generator) < ratio) & (chosen & (kinds == 1))[owners]
    source = times[_shuffled_order(owners, steps, span_begins, shuffled, generator)]
    return Augmented(source, times, kept, hidden)


def _shuffled_order(owners: Tensor, steps: Tensor, begins: Tensor, spans: Tensor, generator: torch.Generator) -> Tensor:
    """(L,) int64: an order in which only the events of each sequence's span have changed places."""
    first, size = begins[owners], spans[owners]
    inside = (steps >= first) & (steps < first + size)
    draws = torch.rand(len(steps), dtype=torch.float64, generator=generator)
    keys = torch.where(inside, first + draws * size, steps.double())
    by_key = torch.argsort(keys, stable=True)
    return by_key[torch.argsort(owners[by_key], stable=True)]


def _below(bounds: Tensor, generator: torch.Generator) -> Tensor:
    """A whole number in [0, bound) for each bound >= 1."""
    draws = torch.rand(len(bounds), dtype=torch.float64, generator=generator)
    return torch.minimum((draws * bounds).long(), bounds - 1)
