"""A causal depthwise convolution over each sequence of a jagged batch.

    y_t = sum over s < K with s <= position(t) of taps_s * x_{t-s}        (elementwise over the width)

The sum is computed lag by lag. Lag s processes only the tokens with at least s predecessors, so that the cost follows
the number of pairs that exist, even if K is as large as the longest sequence. A plan of fixed shape has no lengths on
the host; over its rows, torch's own convolution runs.

Tensor dimensions: L total tokens, K taps, d width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .packing import PackingPlan


def causal_convolution(x: Tensor, taps: Tensor, plan: PackingPlan) -> Tensor:
    """(L, d); x (L, d), taps (K, d); tap 0 weights the token itself. Differentiable once, in x and taps."""
    if plan.groups[0].single:
        return _along_rows(x, taps, plan)
    y: Tensor = _CausalConvolution.apply(x, taps, plan)  # type: ignore[no-untyped-call]
    return y


def _along_rows(x: Tensor, taps: Tensor, plan: PackingPlan) -> Tensor:
    (rows,) = plan.gather(x)  # (R, T, d)
    padded = F.pad(rows.transpose(1, 2), (len(taps) - 1, 0))
    mixed = F.conv1d(padded, taps.flip(0).T[:, None], groups=x.shape[1])  # (R, d, T)
    return plan.scatter([mixed.transpose(1, 2)])


class _CausalConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, plan: PackingPlan) -> Tensor:
        ctx.save_for_backward(x, taps)
        ctx.plan = plan
        lengths = plan.offsets.diff()
        predecessors, successors = plan.positions, _num_successors(plan)
        ctx.counts = _counts(lengths, len(taps))
        ctx.by_predecessors = torch.argsort(predecessors, descending=True, stable=True)
        ctx.by_successors = torch.argsort(successors, descending=True, stable=True)
        return _shifted_sums(x, taps, ctx.by_predecessors, ctx.counts, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        x, taps = ctx.saved_tensors
        grad_taps = _grad_of_taps(ctx, grad, x, taps) if ctx.needs_input_grad[1] else None
        return _shifted_sums(grad, taps, ctx.by_successors, ctx.counts, 1), grad_taps, None


def _grad_of_taps(ctx: Any, grad: Tensor, x: Tensor, taps: Tensor) -> Tensor:
    order, grad_taps = ctx.by_predecessors, torch.zeros_like(taps)
    ordered = grad.index_select(0, order)
    for lag, count in enumerate(ctx.counts):
        grad_taps[lag] = (ordered[:count] * x.index_select(0, order[:count] - lag)).sum(0)
    return grad_taps


def _shifted_sums(x: Tensor, taps: Tensor, order: Tensor, counts: list[int], direction: int) -> Tensor:
    """sum_s taps_s * x_{t + direction s}. Exactly the first counts[s] tokens of `order` have a neighbour at lag s."""
    sums = x.new_zeros(x.shape)
    for lag, count in enumerate(counts):
        sums[:count].addcmul_(x.index_select(0, order[:count] + direction * lag), taps[lag])
    return torch.empty_like(sums).index_copy_(0, order, sums)


def _num_successors(plan: PackingPlan) -> Tensor:
    """(L,): how many tokens of its sequence follow each token."""
    lengths = plan.offsets.diff()
    return lengths.repeat_interleave(lengths).to(plan.positions.device) - 1 - plan.positions


def _counts(lengths: Tensor, num_taps: int) -> list[int]:
    """Number of tokens with at least 0, 1, …, num_taps - 1 predecessors, up to the last count that is not zero."""
    counts = [int((lengths - lag).clamp_(min=0).sum()) for lag in range(num_taps)]
    return [count for count in counts if count]
