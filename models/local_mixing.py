"""Optional layers before the attention of a block or beside it: convolutions and filters over the history.

All are causal, so that no state depends on later items, and none crosses the boundary between two sequences.
"""

import math

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


class FrequencyRescaling(nn.Module):
    """low(x) + (1 + g)² (x - low(x)), with a learned g per channel (BSARec, Shin et al. 2024, equations 4 and 5).

    low keeps the `frequency_cutoff` lowest frequencies of a history that is padded in front to max_len steps. BSARec
    takes the Fourier transform of every padded prefix. At its last position, that is a sum over the past with fixed
    weights, the Dirichlet kernel of the frequencies that are kept; here this sum is taken at every position, so that
    every position can be a training target. It starts as the identity (g = 0), where BSARec draws its gain at random.
    """

    low_pass: Tensor

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(config.hidden_dim))
        self.register_buffer("low_pass", _low_pass(config.max_len, config.frequency_cutoff), persistent=False)

    def forward(self, x: Tensor, plan: PackingPlan) -> Tensor:
        """(total_tokens, hidden_dim) to the same shape."""
        low = causal_convolution(x, self.low_pass[:, None].expand(-1, x.shape[1]).to(x.dtype), plan)
        return low + (1 + self.gain) ** 2 * (x - low)


def _low_pass(steps: int, cutoff: int) -> Tensor:
    """(steps,): the weight of the value s steps ago in the low-pass of the last of `steps` values.

    The inverse transform of the `cutoff` lowest frequencies of a real sequence: 1/N (1 + 2 sum_k cos(2 pi k s / N)),
    where the highest frequency of an even N counts once.
    """
    lag = torch.arange(steps, dtype=torch.float64)
    weights = torch.zeros(steps, dtype=torch.float64)
    for frequency in range(min(cutoff, steps // 2 + 1)):
        once = frequency == 0 or 2 * frequency == steps
        weights += (1 if once else 2) * torch.cos(2 * math.pi * frequency * lag / steps)
    return (weights / steps).float()


def build_local_mixing(config: TrialConfig) -> nn.ModuleList:
    """The configured layers, each called as layer(x, plan); none by default."""
    layers: list[nn.Module] = []
    if config.conv_kernel:
        layers.append(ShortConvolution(config))
    if config.frequency_filter:
        layers.append(FrequencyFilter(config))
    return nn.ModuleList(layers)
