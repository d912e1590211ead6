"""A learned gate on a residual branch."""

import torch
from torch import Tensor, nn

from .config import TrialConfig


class ResidualGate(nn.Module):
    """branch * sigmoid(W x + b), where x is what the branch is added to (LiGR, Borisyuk et al. 2025, "From Features to
    Transformers: Redefining Ranking for Scalable Impact")."""

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_dim, config.hidden_dim)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """x and branch (total_tokens, hidden_dim) to the same shape."""
        return branch * torch.sigmoid(self.gate(x))


def build_residual_gate(config: TrialConfig) -> ResidualGate | None:
    """The gate of one branch; None by default."""
    return ResidualGate(config) if config.residual_gating else None
