"""Where a token stands, and when: learned vectors added to the input (absolute), learned biases in attention (relative,
by distance or by time), or queries and keys turned by their place (rotary).
"""

import torch
from torch import Tensor, nn

from ..kernels.jagged.look_up import look_up
from ..kernels.jagged.packing import PackingPlan, num_distances
from ..kernels.jagged.time_buckets import NUM_TIME_BUCKETS
from .config import TrialConfig

ROTARY_BASE = 10_000.0


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
        return x + look_up(self.table, plan.positions)


def relative_table(config: TrialConfig, num_tables: int) -> nn.Parameter | None:
    """(num_tables, distances) biases of one layer, not yet drawn; None where the configuration has no relative part."""
    if config.position not in {"relative", "both"}:
        return None
    return nn.Parameter(torch.empty(num_tables, num_distances(config.max_len, config.causal)))


def time_table(config: TrialConfig, num_tables: int) -> nn.Parameter | None:
    """(num_tables, buckets) biases by the time between two events, not yet drawn; None without `time_bias`."""
    return nn.Parameter(torch.empty(num_tables, NUM_TIME_BUCKETS)) if config.time_bias else None


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """x (total_tokens, heads, d), d even, with pairs (i, i + d/2) turned by position * 10000 ** (-2 i / d).

    Products of rotated queries and keys depend on the distance of their places alone (Su et al. 2021, section 3.2.2).
    """
    half = x.shape[-1] // 2
    rates = ROTARY_BASE ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angles = positions[:, None, None] * rates  # (total_tokens, 1, d / 2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
