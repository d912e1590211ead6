"""Readouts pool the outputs of the last block into the states that are scored; state t pools tokens <= t only.

This also holds with causal=False: training and scoring then use only the last token's state, which pools all tokens.
"""

from torch import Tensor, nn

from ..kernels.jagged.packing import PackingPlan
from ..kernels.jagged.softmax_attention import softmax_attention
from .config import TrialConfig


class LastReadout(nn.Module):
    """State t is token t itself."""

    def forward(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """(total_tokens, hidden_dim) to the same shape."""
        return x


class MeanReadout(nn.Module):
    """The mean of the last `k` tokens up to t, or of all tokens up to t if k is None."""

    def __init__(self, k: int | None = None) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """(total_tokens, hidden_dim) to the same shape."""
        sums = plan.scatter([
            self._window(group.mask(causal=True, dtype=x.dtype)) @ rows
            for group, rows in zip(plan.groups, plan.gather(x), strict=True)
        ])
        counts = plan.positions + 1 if self.k is None else (plan.positions + 1).clamp(max=self.k)
        return sums / counts[:, None]

    def _window(self, mask: Tensor) -> Tensor:
        return mask if self.k is None else mask.triu(1 - self.k)  # a sequence is contiguous in its row: keep j > t - k


class AttentionReadout(nn.Module):
    """Single-head softmax attention of token t over the tokens up to t; the values are the tokens themselves."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.query_key = nn.Linear(hidden_dim, 2 * hidden_dim, bias=False)

    def forward(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """(total_tokens, hidden_dim) to the same shape."""
        q, k = self.query_key(x)[:, None].chunk(2, dim=-1)  # (total_tokens, 1, hidden_dim) each
        return softmax_attention(q, k, x[:, None], plan=plan, causal=True).squeeze(1)


def build_readout(config: TrialConfig) -> nn.Module:
    """The configured readout."""
    if config.readout == "attention":
        return AttentionReadout(config.hidden_dim)
    if config.readout == "last":
        return LastReadout()
    return MeanReadout(config.readout_k if config.readout == "last_k" else None)
