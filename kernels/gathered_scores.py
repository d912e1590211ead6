"""Scores of each position against candidates of its own: s_i . w_{c_ij}, without the (n, m, d) gather in memory.

Two ways to the same numbers, by the sizes alone: where the table is small next to the candidates, one matrix product
with the whole table, of which the candidates' entries are read; else a gather, a block of positions at a time. The
backward pass goes the same way back.

Tensor dimensions: n positions, m candidates each, u rows of the table, d width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_NUMBERS = 1 << 21  # numbers held at once: eight megabytes in float32
DENSE_BELOW = 40  # table rows per candidate up to which a matrix product beats fetching single rows


def gathered_scores(states: Tensor, table: Tensor, candidates: Tensor) -> Tensor:
    """(n, m) scores; states (n, d), table (u, d), candidates (n, m) int64 in [0, u). Differentiable once."""
    scores: Tensor = _GatheredScores.apply(states, table, candidates)  # type: ignore[no-untyped-call]
    return scores


class _GatheredScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, candidates: Tensor) -> Tensor:
        ctx.save_for_backward(states, table, candidates)
        scores = states.new_empty(candidates.shape)
        for part in _parts(states, table, candidates):
            if _dense(table, candidates):
                scores[part] = (states[part] @ table.T).gather(1, candidates[part])
            else:
                scores[part] = torch.bmm(_rows(table, candidates[part]), states[part][:, :, None])[:, :, 0]
        return scores

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        states, table, candidates = ctx.saved_tensors
        grad_states, grad_table = torch.empty_like(states), torch.zeros_like(table)
        for part in _parts(states, table, candidates):
            if _dense(table, candidates):
                weights = states.new_zeros(len(grad[part]), len(table)).scatter_add_(1, candidates[part], grad[part])
                grad_states[part] = weights @ table
                grad_table.addmm_(weights.T, states[part])
            else:
                grad_states[part] = torch.bmm(grad[part][:, None], _rows(table, candidates[part]))[:, 0]
                pulls = grad[part][:, :, None] * states[part][:, None]  # (rows, m, d)
                grad_table.index_add_(0, candidates[part].flatten(), pulls.flatten(0, 1))
        return grad_states, grad_table, None


def _rows(table: Tensor, candidates: Tensor) -> Tensor:
    return table.index_select(0, candidates.flatten()).view(*candidates.shape, -1)  # (rows, m, d)


def _dense(table: Tensor, candidates: Tensor) -> bool:
    return len(table) <= DENSE_BELOW * candidates.shape[1]


def _parts(states: Tensor, table: Tensor, candidates: Tensor) -> list[slice]:
    each = len(table) if _dense(table, candidates) else candidates.shape[1] * states.shape[1]
    rows = max(1, BLOCK_NUMBERS // max(each, 1))
    return [slice(first, first + rows) for first in range(0, len(states), rows)]
