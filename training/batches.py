"""Training batches: a random permutation of users each epoch, gathered by index arithmetic, no Python per user.

A user with train events e_1 … e_n gives one example: inputs e_1 … e_{n-1} and targets e_2 … e_n, both cut to the last
`max_len`. A user with a single train event gives none.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.prepared import PreparedDataset
from ..models.batch import JaggedBatch, make_batch
from ..models.config import TrialConfig
from .errors import TrainingError


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """Inputs, and what some of their tokens are to predict."""

    inputs: JaggedBatch
    targets: Tensor  # (num_supervised,) int64, on the model's device
    last_only: bool  # supervised are the last tokens of the sequences, else all tokens

    def supervised(self, states: Tensor) -> Tensor:
        """(total_tokens, hidden_dim) to (num_supervised, hidden_dim)."""
        return states[self.inputs.last_tokens()] if self.last_only else states


class TrainBatches:
    """All examples of a dataset; each call of `epoch` shuffles them anew, reproducibly from the seed."""

    def __init__(self, dataset: PreparedDataset, config: TrialConfig, device: torch.device, seed: int) -> None:
        self.config = config
        self.items = torch.tensor(np.asarray(dataset.items), dtype=torch.int64, device=device)
        ends = torch.tensor(np.asarray(dataset.offsets[1:]))
        lengths = (ends - torch.tensor(np.asarray(dataset.offsets[:-1])) - 1).clamp(max=config.max_len)
        has_example = lengths > 0
        self.lengths = lengths[has_example]  # (num_examples,) int64, on the CPU, and so are the starts
        self.starts = (ends - 1)[has_example] - self.lengths  # first input event
        self.generator = torch.Generator().manual_seed(seed)
        if not len(self.lengths):
            raise TrainingError("a training example needs two train events; no user of this dataset has so many")

    def epoch(self) -> Iterator[TrainBatch]:
        """Every example once, in a new order."""
        order = torch.randperm(len(self.lengths), generator=self.generator)
        for users in torch.split(order, self.config.batch_size):
            yield self._gather(users)

    def _gather(self, users: Tensor) -> TrainBatch:
        lengths = self.lengths[users]
        offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
        shift = (self.starts[users] - offsets[:-1]).repeat_interleave(lengths)
        events = (torch.arange(int(offsets[-1])) + shift).to(self.items.device, non_blocking=True)
        inputs = make_batch(self.items[events], offsets, self.config)
        last_only = self.config.supervision == "last"
        targets = self.items[(events[inputs.last_tokens()] if last_only else events) + 1]
        return TrainBatch(inputs, targets, last_only)
