"""The point-wise feed-forward layer of SASRec, with the configured activation."""

import torch.nn.functional as F
from torch import Tensor, nn

from .config import TrialConfig


class FeedForward(nn.Module):
    """W2 a(W1 x + b1) + b2 with inner width ffn_multiplier * hidden_dim; the multiplier is 1 in the paper (eq. 6).

    ffn="swiglu" is W2 (silu(W1 x + b1) * (W3 x + b3)) + b2 (Shazeer 2020), which has 1.5 times as many weights.
    """

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.activation = config.ffn
        width, inner = config.hidden_dim, config.ffn_multiplier * config.hidden_dim
        self.inner = nn.Linear(width, 2 * inner if config.ffn == "swiglu" else inner)
        self.outer = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(total_tokens, hidden_dim) to the same shape."""
        inner = self.inner(x)
        if self.activation == "swiglu":
            gate, value = inner.chunk(2, dim=-1)
            inner = F.silu(gate) * value
        else:
            inner = F.relu(inner) if self.activation == "relu" else F.gelu(inner)
        out: Tensor = self.outer(inner)
        return out
