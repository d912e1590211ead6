"""Dropout that costs a quarter of torch's on a CPU, where drawing one Bernoulli number at a time is most of it."""

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 1 << 16


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Zero elements of x, each with `probability`, and scale the rest to keep the mean. The identity unless training.

    On the CPU one 64-bit draw decides four elements, so that the probability is rounded to a multiple of 2**-16; the
    scale uses the rounded one. Draws come from torch's default generator.
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
