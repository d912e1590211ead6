"""Training batches of fixed shape, put together on the device: what a captured step reads.

The order of an epoch is drawn on the host and sent once, with the rates of its steps. A step finds its own row of
these tables by a counter on the device, so that the same kernels with the same arguments do every step: only
the number of tokens has a few sizes, each of which is a shape of its own.

Tensor dimensions: S steps of an epoch, B sequences of a batch, C tokens with those that pad.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.jagged.fixed_shape import fixed_plan, token_places
from ..models.batch import JaggedBatch
from .batches import TrainBatch, TrainBatches

LEADING_BITS = 4  # a number of tokens is rounded up to so many significant bits: by 12 % at most, 8 shapes an octave


class StepShape(NamedTuple):
    """What the host knows of a step."""

    num_tokens: int  # C
    num_targets: int


class FixedBatches:
    """The batches of `source`, without augmentation and views, in the order that its generator draws."""

    def __init__(self, source: TrainBatches) -> None:
        self.source, device = source, source.items.device
        rows = min(source.config.batch_size, len(source.lengths))
        self.smallest = padded_size(round(rows * source.lengths.double().mean().item()))
        self.starts, self.lengths = torch.zeros(2, source.num_batches, rows, dtype=torch.int64, device=device)  # (S, B)
        self.rates = torch.zeros(2, source.num_batches, device=device)  # of learning and of averaging
        self.step = torch.zeros(1, dtype=torch.int64, device=device)

    def shuffle(self, rates: Sequence[tuple[float, float]]) -> list[StepShape]:
        """Lay a new epoch into the tables, whose addresses stay, and count from its first step.

        rates: of every step, the factor on the learning rate and the share of new weights in their average. No step
        is smaller than a usual one, so that the last batch, of fewer sequences, needs no shape of its own.
        """
        source = self.source
        order = torch.randperm(len(source.lengths), generator=source.generator)
        starts, lengths = torch.zeros(2, *self.starts.shape, dtype=torch.int64)
        starts.view(-1)[: len(order)] = source.starts[order]
        lengths.view(-1)[: len(order)] = source.lengths[order]  # what is left of the last row are empty sequences
        self.starts.copy_(starts)
        self.lengths.copy_(lengths)
        self.rates.copy_(torch.tensor(rates).T)
        self.step.zero_()
        tokens = lengths.sum(dim=1).tolist()
        targets = (lengths > 0).sum(dim=1).tolist() if source.config.supervision == "last" else tokens
        sizes = [max(self.smallest, padded_size(number)) for number in tokens]
        return [StepShape(*shape) for shape in zip(sizes, targets, strict=True)]

    def batch(self, num_tokens: int) -> TrainBatch:
        """The batch of the step that the counter points at, with `num_tokens` tokens."""
        source, max_len = self.source, self.source.config.max_len
        starts, lengths = (table.index_select(0, self.step)[0] for table in (self.starts, self.lengths))
        offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
        places = token_places(offsets, num_tokens)
        events = torch.where(places.counted, starts.index_select(0, places.sequences) + places.positions, 0)
        times = None if source.times is None else source.times.index_select(0, events)
        plan = fixed_plan(offsets, places, max_len, times)
        inputs = JaggedBatch(source.items.index_select(0, events), offsets, plan)
        targets = source.items.index_select(0, events + 1)
        if source.config.supervision == "last":
            return TrainBatch(inputs, targets.index_select(0, inputs.last_tokens()), True, counted=lengths > 0)
        return TrainBatch(inputs, targets, False, counted=places.counted)

    def step_rates(self) -> tuple[Tensor, Tensor]:
        """The factor on the learning rate and the share in the average of the step that the counter points at, ()."""
        factor, share = self.rates.index_select(1, self.step)[:, 0]
        return factor, share

    def advance(self) -> None:
        """Point at the next step."""
        self.step.add_(1)


def padded_size(num_tokens: int) -> int:
    """`num_tokens` rounded up to LEADING_BITS significant bits: few numbers, so that few shapes are captured."""
    unit = 1 << max(0, (num_tokens - 1).bit_length() - LEADING_BITS)
    return -(-num_tokens // unit) * unit
