"""Encoding of positions and times: learned vectors added to the input (absolute), learned attention biases by distance
or by time (relative), or queries and keys rotated by their position (rotary).
"""

import torch
from torch import Tensor, nn

from ..kernels.jagged.look_up import look_up
from ..kernels.jagged.packing import PackingPlan, num_distances
from ..kernels.jagged.time_buckets import NUM_TIME_BUCKETS
from .config import TrialConfig

ROTARY_BASE = 10_000.0


class AbsolutePositions(nn.Module):
    """One learned vector per position in the sequence.

    Position 0 is the oldest event that remains after truncation to the last max_len events, as in the research code of
    HSTU.
    """

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(config.max_len, config.hidden_dim))

    def forward(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """x (total_tokens, hidden_dim) plus the vector of each token's position."""
        return x + look_up(self.table, plan.positions)


def relative_table(config: TrialConfig, num_tables: int) -> nn.Parameter | None:
    """(num_tables, distances) biases of one layer, uninitialised; None if no relative positions are configured."""
    if config.position not in {"relative", "both"}:
        return None
    return nn.Parameter(torch.empty(num_tables, num_distances(config.max_len, config.causal)))


def time_table(config: TrialConfig, num_tables: int) -> nn.Parameter | None:
    """(num_tables, buckets) biases by the time between two events, uninitialised; None without `time_bias`."""
    return nn.Parameter(torch.empty(num_tables, NUM_TIME_BUCKETS)) if config.time_bias else None


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """x (total_tokens, heads, d), d even, with each pair (i, i + d/2) rotated by position * 10000 ** (-2 i / d).

    Dot products of rotated queries and keys depend only on the distance between their positions (Su et al. 2021,
    section 3.2.2).
    """
    half = x.shape[-1] // 2
    rates = ROTARY_BASE ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angles = positions[:, None, None] * rates  # (total_tokens, 1, d / 2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
