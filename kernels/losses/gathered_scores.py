"""Scores of each position for its own candidates, s_i . w_{c_ij}, without an (n, m, d) gather in memory.

The forward pass and both gradients are sums of `embedding_bag`, which reads rows in place and keeps no copies:

    d s_i = sum_j g_ij w_{c_ij}         one bag of table rows per position, weighted by the gradient
    d w_r = sum_{ij: c_ij = r} g_ij s_i     one bag of states per table row, with candidates sorted by row
    s_i . w_{c_ij}                      the gradient in the first bag's weights if the gradient of its sum is s_i

Tensor dimensions: n positions, m candidates each, u rows of the table, d width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SUM_MODE = 0  # aten's code for mode="sum" of embedding bags


def gathered_scores(states: Tensor, table: Tensor, candidates: Tensor) -> Tensor:
    """(n, m) scores; states (n, d), table (u, d), candidates (n, m) int64 in [0, u). Differentiable once."""
    scores: Tensor = _GatheredScores.apply(states, table, candidates)  # type: ignore[no-untyped-call]
    return scores


class _GatheredScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, candidates: Tensor) -> Tensor:
        ctx.save_for_backward(states, table, candidates)
        owners = torch.arange(len(candidates), device=candidates.device).repeat_interleave(candidates.shape[1])
        scores: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            states, table, candidates.flatten(), _bag_starts(candidates), owners, SUM_MODE
        )
        return scores.view(candidates.shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        states, table, candidates = ctx.saved_tensors
        weights = grad.flatten()
        grad_states = _bags(candidates.flatten(), table, _bag_starts(candidates), weights)
        rows, order = candidates.flatten().to(torch.int32).sort(stable=True)
        first = torch.searchsorted(rows, torch.arange(len(table), dtype=torch.int32, device=rows.device))
        grad_table = _bags(order // candidates.shape[1], states, first, weights[order])
        return grad_states, grad_table, None


def _bag_starts(candidates: Tensor) -> Tensor:
    return torch.arange(len(candidates), device=candidates.device) * candidates.shape[1]


def _bags(index: Tensor, vectors: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """(bags, d): each bag's weighted sum of rows of `vectors`; bag b begins at `starts[b]` in index and weights."""
    return F.embedding_bag(index, vectors, starts, mode="sum", per_sample_weights=weights)
