"""Optional layers before the attention of a block: a short depthwise convolution, and a filter over the whole history.

Both are causal, so that no state depends on later items, and neither crosses the boundary between two sequences.
"""

import torch
from torch import Tensor, nn

from ..kernels.jagged.causal_convolution import causal_convolution
from ..kernels.jagged.dropout import dropout
from ..kernels.jagged.packing import PackingPlan
from .config import TrialConfig
from .norms import build_norm


class ShortConvolution(nn.Module):
    """x + dropout(conv(norm(x))): conv gives, for each channel, a weighted sum of its last `conv_kernel` values."""

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = build_norm(config)
        self.taps = nn.Parameter(torch.empty(config.conv_kernel, config.hidden_dim))

    def forward(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """(total_tokens, hidden_dim) to the same shape."""
        mixed = causal_convolution(self.norm(x), self.taps, plan)
        return x + dropout(mixed, self.config.dropout, self.training)


class FrequencyFilter(nn.Module):
    """x + dropout(filter(norm(x))): a learned complex weight per frequency and channel (FMLP-Rec, Zhou et al. 2022).

    FMLP-Rec multiplies the spectrum of the whole sequence, which mixes later items into earlier states. Here the
    inverse Fourier transform turns these weights into an impulse response of max_len steps, which is applied causally.
    """

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = build_norm(config)
        self.spectrum = nn.Parameter(torch.empty(config.max_len // 2 + 1, config.hidden_dim, 2))  # real, imaginary

    def forward(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """(total_tokens, hidden_dim) to the same shape."""
        response = torch.fft.irfft(torch.view_as_complex(self.spectrum), n=self.config.max_len, dim=0, norm="ortho")
        mixed = causal_convolution(self.norm(x), response, plan)
        return x + dropout(mixed, self.config.dropout, self.training)


def build_local_mixing(config: TrialConfig) -> nn.ModuleList:
    """The configured layers, each called as layer(x, plan); none by default."""
    layers: list[nn.Module] = []
    if config.conv_kernel:
        layers.append(ShortConvolution(config))
    if config.frequency_filter:
        layers.append(FrequencyFilter(config))
    return nn.ModuleList(layers)
