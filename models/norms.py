"""Layer norm (Ba et al. 2016) or RMS norm (Zhang & Sennrich 2019) of states, with or without learned weights."""

import torch.nn.functional as F
from torch import Tensor, nn

from .config import TrialConfig

EPSILON = 1e-5
PLAIN_EPSILON = 1e-6  # for norms without learned weights, as in the research code of HSTU


def build_norm(config: TrialConfig, epsilon: float = EPSILON) -> nn.Module:
    """A norm over hidden_dim with learned weights, which start at 1 (biases at 0)."""
    if config.norm == "rms":
        return nn.RMSNorm(config.hidden_dim, eps=epsilon)
    return nn.LayerNorm(config.hidden_dim, eps=epsilon)


def plain_norm(x: Tensor, config: TrialConfig) -> Tensor:
    """x (..., width) normalised over its last dimension, without learned weights."""
    normalise = F.rms_norm if config.norm == "rms" else F.layer_norm
    return normalise(x, x.shape[-1:], eps=PLAIN_EPSILON)
