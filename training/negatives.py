"""Where negatives come from: items drawn with replacement, by popularity to a power, and how likely each was."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.prepared import PreparedDataset
from ..models.config import TrialConfig

Floats = NDArray[np.float64]


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
        self.uniform = config.negative_power == 0
        shares = torch.tensor(weights / weights.sum(), dtype=torch.float64)
        self.log_q = shares.log().to(device, torch.float32)  # (num_items,), -inf where an item is never drawn
        keep, alias = alias_table(weights)
        self.keep, self.alias = torch.tensor(keep, device=device), torch.tensor(alias, device=device)

    def draw(self, *shape: int) -> Tensor:
        """int64 items of `shape` on the sampler's device."""
        drawn = torch.randint(self.num_items, shape, generator=self.generator, device=self.device)
        if self.uniform:
            return drawn
        levels = torch.rand(shape, dtype=torch.float64, generator=self.generator, device=self.device)
        return torch.where(levels < self.keep[drawn], drawn, self.alias[drawn])


def alias_table(weights: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Walker's alias method (1977): keep (V,) in [0, 1] and alias (V,), both by item.

    A uniform item j that is kept with probability keep_j and else replaced by alias_j comes in proportion to the
    weights; an item of weight 0 never does. Two look-ups a draw, where a binary search takes log2 V.

    With p = V weights / sum, an item below 1 has a deficit, the others a surplus. Deficits and surpluses, each laid
    end to end, pair up: a deficit is met by the item whose surplus begins before it, and where it is longer than what
    is left there, that item's own new deficit is met by the next (Huebschle-Schneider & Sanders 2022, section 4.2).
    """
    p = weights * (len(weights) / weights.sum())
    below = p < 1
    below[p.argmax()] = False  # rounding may leave all of them below 1
    poor, rich = np.flatnonzero(below), np.flatnonzero(~below)
    deficits, surpluses = np.cumsum(1 - p[poor]), np.cumsum(p[rich] - 1)
    keep, alias = np.minimum(p, 1), np.arange(len(p))
    if len(poor):
        begins = deficits - (1 - p[poor])
        alias[poor] = rich[np.searchsorted(surpluses, begins, side="right").clip(max=len(rich) - 1)]
        met = deficits[np.searchsorted(deficits, surpluses).clip(max=len(poor) - 1)]
        keep[rich[:-1]] = (1 + surpluses - met)[:-1].clip(0, 1)
        alias[rich[:-1]] = rich[1:]
    return keep, alias
