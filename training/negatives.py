"""Where negatives come from: items drawn with replacement, by popularity to a power, and how likely each was."""

import numpy as np
import torch
from torch import Tensor

from ..data.prepared import PreparedDataset
from ..models.config import TrialConfig


class NegativeSampler:
    """Draws item j with probability q_j = count_j ** power / sum, counts of the train part; power 0 is uniform.

    With power > 0 an item that the train part never shows is never drawn.
    """

    def __init__(
        self, config: TrialConfig, dataset: PreparedDataset, device: torch.device, generator: torch.Generator
    ) -> None:
        self.num_items, self.device, self.generator = dataset.num_items, device, generator
        weights = np.ones(dataset.num_items)
        if config.negative_power > 0:
            counts = np.bincount(np.asarray(dataset.items), minlength=dataset.num_items)
            weights = counts.astype(np.float64) ** config.negative_power * (counts > 0)
        shares = torch.tensor(weights / weights.sum(), dtype=torch.float64)
        self.uniform = config.negative_power == 0
        self.log_q = shares.log().to(device, torch.float32)  # (num_items,), -inf where an item is never drawn
        self.cumulative = shares.cumsum(0).to(device)  # float64: a million small shares add up

    def draw(self, *shape: int) -> Tensor:
        """int64 items of `shape` on the sampler's device."""
        if self.uniform:
            return torch.randint(self.num_items, shape, generator=self.generator, device=self.device)
        levels = torch.rand(shape, dtype=torch.float64, generator=self.generator, device=self.device)
        drawn = torch.searchsorted(self.cumulative, levels * self.cumulative[-1], right=True)
        return drawn.clamp_(max=self.num_items - 1)
