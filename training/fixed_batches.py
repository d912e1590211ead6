"""Training batches of fixed shape, assembled on the device, as a captured step needs them.

The host draws the order of an epoch and copies it to the device once, together with the rates of the steps. A step
finds its row of these tables through a counter on the device, so that every step runs the same kernels with the same
arguments. Only the number of tokens varies, between a few sizes, and each size is captured as a shape of its own.

Tensor dimensions: S steps of an epoch, B sequences of a batch, C tokens including padding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.jagged.fixed_shape import fixed_plan, token_places
from ..models.batch import JaggedBatch
from .batches import TrainBatch, TrainBatches

LEADING_BITS = 4  # token counts are rounded up to this many significant bits: by 12 % at most, 8 shapes per doubling


class StepShape(NamedTuple):
    """The sizes of a step, known on the host."""

    num_tokens: int  # C
    num_targets: int


class FixedBatches:
    """The batches of `source` in fixed shape, in the order that its generator draws; no augmentation, no views."""

    def __init__(self, source: TrainBatches) -> None:
        self.source, device = source, source.items.device
        rows = min(source.config.batch_size, len(source.lengths))
        self.smallest = padded_size(round(rows * source.lengths.double().mean().item()))
        self.starts, self.lengths = torch.zeros(2, source.num_batches, rows, dtype=torch.int64, device=device)  # (S, B)
        self.rates = torch.zeros(2, source.num_batches, device=device)  # learning-rate factors, averaging shares
        self.step = torch.zeros(1, dtype=torch.int64, device=device)

    def shuffle(self, rates: Sequence[tuple[float, float]]) -> list[StepShape]:
        """Fill the tables in place for a new epoch and reset the counter to its first step.

        rates: for every step, the learning-rate factor and the share of the new weights in the weight average.
        Every step is at least as large as an average step, so that the smaller last batch needs no separate shape.
        """
        source = self.source
        order = torch.randperm(len(source.lengths), generator=source.generator)
        starts, lengths = torch.zeros(2, *self.starts.shape, dtype=torch.int64)
        starts.view(-1)[: len(order)] = source.starts[order]
        lengths.view(-1)[: len(order)] = source.lengths[order]  # the rest of the last row stays empty sequences
        self.starts.copy_(starts)
        self.lengths.copy_(lengths)
        self.rates.copy_(torch.tensor(rates).T)
        self.step.zero_()
        tokens = lengths.sum(dim=1).tolist()
        targets = (lengths > 0).sum(dim=1).tolist() if source.config.supervision == "last" else tokens
        sizes = [max(self.smallest, padded_size(number)) for number in tokens]
        return [StepShape(*shape) for shape in zip(sizes, targets, strict=True)]

    def batch(self, num_tokens: int) -> TrainBatch:
        """The batch of the current step, padded to `num_tokens` tokens."""
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
        """The learning-rate factor and the share in the weight average of the current step, () each."""
        factor, share = self.rates.index_select(1, self.step)[:, 0]
        return factor, share

    def advance(self) -> None:
        """Advance the counter to the next step."""
        self.step.add_(1)


def padded_size(num_tokens: int) -> int:
    """`num_tokens` rounded up to LEADING_BITS significant bits, so that only few shapes are captured."""
    unit = 1 << max(0, (num_tokens - 1).bit_length() - LEADING_BITS)
    return -(-num_tokens // unit) * unit
