"""Training batches: each epoch permutes the examples and gathers them by index arithmetic, without a loop over users.

An example is a window of a user's train events: inputs e_1 … e_{n-1} and targets e_2 … e_n, at most `max_len` of each.
Every user with at least two events has the window that ends with the last event. `window_stride` adds windows that end
`window_stride`, 2 `window_stride`, … events earlier. With supervision "last", these windows go down to the shortest
prefix. With "all", none is added after a window with the user's first event, which covers all earlier targets.
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
    """A batch of input sequences and the targets of their supervised tokens."""

    inputs: JaggedBatch
    targets: Tensor  # (num_supervised,) int64, on the model's device
    last_only: bool  # True: the last token of each sequence is supervised; False: every token
    views: tuple[JaggedBatch, JaggedBatch] | None = None  # two views of the sequences, for the contrastive loss
    counted: Tensor | None = None  # (num_supervised,) bool: False for padding; None = no padding
    target_events: Tensor | None = None  # (num_supervised,) int64: the train events of the targets; None = not known

    @property
    def num_targets(self) -> int | Tensor:
        """The number of targets without padding; a () int64 tensor on the device if the batch has a fixed shape."""
        return len(self.targets) if self.counted is None else self.counted.sum()

    def supervised(self, states: Tensor) -> Tensor:
        """Select the supervised rows: (total_tokens, hidden_dim) to (num_supervised, hidden_dim)."""
        return states.index_select(0, self.inputs.last_tokens()) if self.last_only else states


class TrainBatches:
    """All examples of a dataset; each call of `epoch` shuffles them again, reproducibly from the two seeds."""

    def __init__(
        self, dataset: PreparedDataset, config: TrialConfig, device: torch.device, seed: int, augmentation_seed: int = 0
    ) -> None:
        self.config = config
        self.items = torch.tensor(np.asarray(dataset.items), dtype=torch.int64, device=device)
        self.times = torch.tensor(np.asarray(dataset.timestamps), device=device) if config.time_bias else None
        begins, ends = (torch.tensor(np.asarray(bounds)) for bounds in (dataset.offsets[:-1], dataset.offsets[1:]))
        self.starts, self.lengths = windows_of(begins, ends, config)  # (num_examples,) int64, on the CPU
        self.generator = torch.Generator().manual_seed(seed)
        self.augmentation = torch.Generator().manual_seed(augmentation_seed)
        if not len(self.lengths):
            raise TrainingError("a training example needs two train events; no user of this dataset has two")

    @property
    def num_batches(self) -> int:
        """The number of batches, and so of steps, in an epoch."""
        return -(-len(self.lengths) // self.config.batch_size)

    def epoch(self) -> Iterator[TrainBatch]:
        """Yield every example once, in a new random order."""
        order = torch.randperm(len(self.lengths), generator=self.generator)
        for examples in torch.split(order, self.config.batch_size):
            yield self._gather(examples)

    def _gather(self, examples: Tensor) -> TrainBatch:
        lengths, starts = self.lengths[examples], self.starts[examples]
        inputs, target_events = self._inputs_and_target_events(starts, lengths)
        last_only = self.config.supervision == "last"
        if last_only:
            target_events = target_events[inputs.last_tokens()]
        views = None
        if self.config.contrastive_weight:
            views = self._view(starts, lengths, inputs), self._view(starts, lengths, inputs)
        targets = self.items[target_events]
        return TrainBatch(inputs, targets, last_only, views, target_events=target_events)

    def _inputs_and_target_events(self, starts: Tensor, lengths: Tensor) -> tuple[JaggedBatch, Tensor]:
        """The sequences of a batch, and the event that each of its tokens is to predict, (total_tokens,) int64."""
        config = self.config
        if config.augmentation == "none" or not config.augmentation_share:
            events = self._to_device(ranges(starts, lengths))
            return self._batch(events, events, lengths), events + 1
        events = ranges(starts, lengths + 1)
        ratio, share = config.augmentation_ratio, config.augmentation_share
        augmented = augment(lengths + 1, config.augmentation, ratio, share, 2, self.augmentation)
        ends = augmented.lengths.cumsum(0)
        is_last, is_first = torch.zeros(2, len(augmented.source), dtype=torch.bool)
        is_last[ends - 1] = True
        is_first[ends - augmented.lengths] = True
        items, times = events[augmented.source], events[augmented.times]
        inputs = self._batch(
            self._to_device(items[~is_last]),
            self._to_device(times[~is_last]),
            augmented.lengths - 1,
            self._to_device(augmented.masked[~is_last]),
        )
        return inputs, self._to_device(items[~is_first])

    def _view(self, starts: Tensor, lengths: Tensor, plain: JaggedBatch) -> JaggedBatch:
        """An augmented copy of the sequences, or `plain` without augmentation: views then differ by dropout only."""
        if self.config.augmentation == "none":
            return plain
        events = ranges(starts, lengths)
        kind, ratio = self.config.augmentation, self.config.augmentation_ratio
        augmented = augment(lengths, kind, ratio, 1.0, 1, self.augmentation)
        return self._batch(
            self._to_device(events[augmented.source]),
            self._to_device(events[augmented.times]),
            augmented.lengths,
            self._to_device(augmented.masked),
        )

    def _batch(self, events: Tensor, time_events: Tensor, lengths: Tensor, masked: Tensor | None = None) -> JaggedBatch:
        """A jagged batch of the items of `events` and the times of `time_events`, both (total_tokens,) int64."""
        offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
        times = None if self.times is None else self.times[time_events]
        return make_batch(self.items[events], offsets, self.config, times=times, masked=masked)

    def _to_device(self, index: Tensor) -> Tensor:
        return index.to(self.items.device, non_blocking=True)


def windows_of(begins: Tensor, ends: Tensor, config: TrialConfig) -> tuple[Tensor, Tensor]:
    """First input event and number of inputs of every example; user u has the events begins[u]:ends[u]."""
    events, stride = ends - begins, config.window_stride
    num_windows = (events >= 2).long()
    if stride:
        remaining = events - 2 if config.supervision == "last" else events - 1 - config.max_len + stride - 1
        num_windows = num_windows * (1 + remaining.clamp(min=0) // stride)
    users = torch.arange(len(events)).repeat_interleave(num_windows)
    windows = torch.arange(len(users)) - (num_windows.cumsum(0) - num_windows)[users]  # 0 = the user's latest
    window_ends = (ends[users] - windows * stride).clamp(min=begins[users] + 2)
    lengths = (window_ends - begins[users] - 1).clamp(max=config.max_len)
    return window_ends - 1 - lengths, lengths


def ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """The concatenated ranges starts[i], starts[i] + 1, …, starts[i] + lengths[i] - 1."""
    shift = (starts - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths)
    return torch.arange(len(shift)) + shift
