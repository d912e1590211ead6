"""Dropout on a CPU at a quarter of the cost of torch's, which draws one Bernoulli number per element."""

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 1 << 16


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Zero each element of x with `probability` and scale the rest to keep the mean; the identity unless `training`.

    On the CPU one 64-bit draw from torch's default generator decides four elements. The probability is therefore
    rounded to a multiple of 2**-16, and the scale uses the rounded value.
    """
    if not training or probability == 0.0:
        return x
    if x.is_cuda:
        return F.dropout(x, probability)
    kept = min(round((1 - probability) * LEVELS), LEVELS - 1)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    levels = draws.view(torch.int16)[: x.numel()].view(x.shape)  # uniform over the 2**16 values of int16
    mask = torch.lt(levels, kept - LEVELS // 2, out=x.new_empty(x.shape))
    return x * mask.mul_(LEVELS / kept)
