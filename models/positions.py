"""Where a token stands: learned vectors added to the input (absolute), or learned biases in attention (relative)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.packing import PackingPlan, num_distances
from .config import TrialConfig


class AbsolutePositions(nn.Module):
    """A learned vector per place in the sequence.

    Places count from the start of the sequence as it reaches the model, that is after truncation to the last max_len
    events, as in the research code of HSTU: the oldest event kept is place 0.
    """

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(config.max_len, config.hidden_dim))

    def forward(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """x (total_tokens, hidden_dim) with each token's place added."""
        return x + F.embedding(plan.positions, self.table)


def relative_table(config: TrialConfig, num_tables: int) -> nn.Parameter | None:
    """(num_tables, distances) biases of one layer, not yet drawn; None where the configuration has no relative part."""
    if config.position not in {"relative", "both"}:
        return None
    return nn.Parameter(torch.empty(num_tables, num_distances(config.max_len, config.causal)))
