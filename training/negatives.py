"""Negative sampling: items drawn with replacement, by popularity to a power, and the log-probability of each item."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.prepared import PreparedDataset
from ..models.config import TrialConfig

Floats = NDArray[np.float64]


class NegativeSampler:
    """Draws item j with probability q_j = count_j ** power / sum over the catalogue; power 0 is uniform.

    count_j is the number of train events of item j. With power > 0 an item without train events is never drawn.
    """

    def __init__(
        self, config: TrialConfig, dataset: PreparedDataset, device: torch.device, generator: torch.Generator
    ) -> None:
        self.num_items, self.device, self.generator = dataset.num_items, device, generator
        weights = np.ones(dataset.num_items)
        if config.negative_power > 0:
            counts = np.bincount(np.asarray(dataset.items), minlength=dataset.num_items)
            weights = counts.astype(np.float64) ** config.negative_power * (counts > 0)
        self.uniform = config.negative_power == 0
        shares = torch.tensor(weights / weights.sum(), dtype=torch.float64)
        self.log_q = shares.log().to(device, torch.float32)  # (num_items,), -inf for an item that is never drawn
        keep, alias = alias_table(weights)
        self.keep, self.alias = torch.tensor(keep, device=device), torch.tensor(alias, device=device)

    def draw(self, *shape: int) -> Tensor:
        """Draw items, int64 of `shape`, on the sampler's device."""
        drawn = torch.randint(self.num_items, shape, generator=self.generator, device=self.device)
        if self.uniform:
            return drawn
        levels = torch.rand(shape, dtype=torch.float64, generator=self.generator, device=self.device)
        return torch.where(levels < self.keep[drawn], drawn, self.alias[drawn])


def alias_table(weights: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Walker's alias method (1977): keep (V,) in [0, 1] and alias (V,), both indexed by item.

    Draw an item j uniformly, keep it with probability keep_j, else replace it by alias_j: the result follows the
    weights, and an item of weight 0 never occurs. A draw takes two look-ups instead of the log2 V of a binary search.

    With p = V weights / sum, light items (p < 1) have a deficit 1 - p and heavy items a surplus p - 1. Lay the deficits
    end to end, and the surpluses likewise. The alias of a light item is the heavy item whose surplus contains the start
    of the deficit. If the deficit extends beyond that surplus, the heavy item itself gets a deficit, and its alias is
    the next heavy item (Huebschle-Schneider & Sanders 2022, section 4.2).
    """
    p = weights * (len(weights) / weights.sum())
    is_light = p < 1
    is_light[p.argmax()] = False  # rounding may leave all items below 1
    light, heavy = np.flatnonzero(is_light), np.flatnonzero(~is_light)
    deficits, surpluses = np.cumsum(1 - p[light]), np.cumsum(p[heavy] - 1)
    keep, alias = np.minimum(p, 1), np.arange(len(p))
    if len(light):
        begins = np.append(0.0, deficits[:-1])  # a difference could round to the other side of a surplus
        alias[light] = heavy[np.searchsorted(surpluses, begins, side="right").clip(max=len(heavy) - 1)]
        covered = deficits[np.searchsorted(deficits, surpluses).clip(max=len(light) - 1)]
        covered = np.where(surpluses > 0, covered, surpluses)  # no deficit begins before the first surplus
        keep[heavy[:-1]] = (1 + surpluses - covered)[:-1].clip(0, 1)
        alias[heavy[:-1]] = heavy[1:]
    return keep, alias
