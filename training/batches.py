"""Training batches: a random permutation of examples each epoch, gathered by index arithmetic, no Python per user.

An example is a window of a user's train events: inputs e_1 … e_{n-1} and targets e_2 … e_n, at most `max_len` of each.
Every user with two events has the window that ends with his last event; `window_stride` adds windows that end that many
events earlier, twice as many, …: every prefix where supervision is "last"; where it is "all", no further than
until a window reaches the first event, since its positions cover everything before.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.prepared import PreparedDataset
from ..models.batch import JaggedBatch, make_batch
from ..models.config import TrialConfig
from .augmentation import augment
from .errors import TrainingError


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """Inputs, and what some of their tokens are to predict."""

    inputs: JaggedBatch
    targets: Tensor  # (num_supervised,) int64, on the model's device
    last_only: bool  # supervised are the last tokens of the sequences, else all tokens
    views: tuple[JaggedBatch, JaggedBatch] | None = None  # of the same sequences, for the contrastive loss
    counted: Tensor | None = None  # (num_supervised,) bool: without those that pad a batch of fixed shape; None = all

    @property
    def num_targets(self) -> int | Tensor:
        """How many of them count; of a batch of fixed shape only the device knows, () int64."""
        return len(self.targets) if self.counted is None else self.counted.sum()

    def supervised(self, states: Tensor) -> Tensor:
        """(total_tokens, hidden_dim) to (num_supervised, hidden_dim)."""
        return states.index_select(0, self.inputs.last_tokens()) if self.last_only else states


class TrainBatches:
    """All examples of a dataset; each call of `epoch` shuffles them anew, reproducibly from the two seeds."""

    def __init__(
        self, dataset: PreparedDataset, config: TrialConfig, device: torch.device, seed: int, augmentation_seed: int = 0
    ) -> None:
        self.config = config
        self.items = torch.tensor(np.asarray(dataset.items), dtype=torch.int64, device=device)
        self.times = torch.tensor(np.asarray(dataset.timestamps), device=device) if config.time_bias else None
        begins, ends = (torch.tensor(np.asarray(bounds)) for bounds in (dataset.offsets[:-1], dataset.offsets[1:]))
        self.starts, self.lengths = _windows(begins, ends, config)  # (num_examples,) int64, on the CPU
        self.generator = torch.Generator().manual_seed(seed)
        self.augmentation = torch.Generator().manual_seed(augmentation_seed)
        if not len(self.lengths):
            raise TrainingError("a training example needs two train events; no user of this dataset has so many")

    @property
    def num_batches(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.lengths) // self.config.batch_size)

    def epoch(self) -> Iterator[TrainBatch]:
        """Every example once, in a new order."""
        order = torch.randperm(len(self.lengths), generator=self.generator)
        for examples in torch.split(order, self.config.batch_size):
            yield self._gather(examples)

    def _gather(self, examples: Tensor) -> TrainBatch:
        lengths, starts = self.lengths[examples], self.starts[examples]
        inputs, targets = self._inputs_and_targets(starts, lengths)
        last_only = self.config.supervision == "last"
        if last_only:
            targets = targets[inputs.last_tokens()]
        views = None
        if self.config.contrastive_weight:
            views = self._view(starts, lengths, inputs), self._view(starts, lengths, inputs)
        return TrainBatch(inputs, targets, last_only, views)

    def _inputs_and_targets(self, starts: Tensor, lengths: Tensor) -> tuple[JaggedBatch, Tensor]:
        config = self.config
        if config.augmentation == "none" or not config.augmentation_share:
            events = _ranges(starts, lengths)
            on_device = self._moved(events)
            return self._batch(on_device, on_device, lengths), self.items[on_device + 1]
        events = _ranges(starts, lengths + 1)
        new = augment(
            lengths + 1, config.augmentation, config.augmentation_ratio, config.augmentation_share, 2, self.augmentation
        )
        ends = new.lengths.cumsum(0)
        last, first = torch.zeros(len(new.source), dtype=torch.bool), torch.zeros(len(new.source), dtype=torch.bool)
        last[ends - 1] = True
        first[ends - new.lengths] = True
        items, times = events[new.source], events[new.times]
        inputs = self._batch(
            self._moved(items[~last]), self._moved(times[~last]), new.lengths - 1, self._moved(new.hidden[~last])
        )
        return inputs, self.items[self._moved(items[~first])]

    def _view(self, starts: Tensor, lengths: Tensor, plain: JaggedBatch) -> JaggedBatch:
        """The sequences changed once more; unchanged where there is no augmentation: then dropout makes the views."""
        if self.config.augmentation == "none":
            return plain
        events = _ranges(starts, lengths)
        new = augment(lengths, self.config.augmentation, self.config.augmentation_ratio, 1.0, 1, self.augmentation)
        return self._batch(
            self._moved(events[new.source]), self._moved(events[new.times]), new.lengths, self._moved(new.hidden)
        )

    def _batch(self, events: Tensor, clock: Tensor, lengths: Tensor, hidden: Tensor | None = None) -> JaggedBatch:
        offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
        times = None if self.times is None else self.times[clock]
        return make_batch(self.items[events], offsets, self.config, times=times, hidden=hidden)

    def _moved(self, index: Tensor) -> Tensor:
        return index.to(self.items.device, non_blocking=True)


def _windows(begins: Tensor, ends: Tensor, config: TrialConfig) -> tuple[Tensor, Tensor]:
    """First input event and number of inputs of every example; users' events are begins[u]:ends[u]."""
    events, stride = ends - begins, config.window_stride
    numbers = (events >= 2).long()
    if stride:
        further = events - 2 if config.supervision == "last" else events - 1 - config.max_len + stride - 1
        numbers = numbers * (1 + further.clamp(min=0) // stride)
    owners = torch.arange(len(events)).repeat_interleave(numbers)
    which = torch.arange(len(owners)) - (numbers.cumsum(0) - numbers)[owners]
    last = (ends[owners] - which * stride).clamp(min=begins[owners] + 2)
    lengths = (last - begins[owners] - 1).clamp(max=config.max_len)
    return last - 1 - lengths, lengths


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """starts[0], starts[0] + 1, … (lengths[0] of them), starts[1], …"""
    shift = (starts - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths)
    return torch.arange(len(shift)) + shift
