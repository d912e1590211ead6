"""C1 and C2: HSTU attention as research code writes it, from the formula: everything padded, one tensor op at a time.

Every sequence is padded to N + 11, the length that the published configurations give their buffers; the square of all
pairs is computed and masked; the bucket of every pair is computed anew in every layer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .implementation import Implementation, Leaves, compiles_slowly, squares_too_large
from .shapes import Problem

EXTRA = 11
LOG_STEP = 0.301


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the tokens lie on the padded grid, and the times there. Made once per batch: that favours the peer."""

    batch: int
    length: int  # N + 11
    rows: Tensor  # (L,) int64: the sequence of each token
    columns: Tensor  # (L,) int64: its place there
    times: Tensor  # (B, N + 11) int64
    query_times: Tensor
    distances: Tensor  # (N + 11, N + 11) int64: entry of the position table of each pair
    mask: Tensor  # (N + 11, N + 11)

    @classmethod
    def of(cls, problem: Problem) -> "Grid":
        if "grid" not in problem.cache:
            problem.cache["grid"] = cls._make(problem)
        grid = problem.cache["grid"]
        assert isinstance(grid, Grid)
        return grid

    @classmethod
    def _make(cls, problem: Problem) -> "Grid":
        device, reach = problem.times.device, problem.shape.max_len - 1
        rows = torch.repeat_interleave(problem.lengths)
        columns = torch.arange(len(rows)) - problem.offsets[:-1].repeat_interleave(problem.lengths)
        rows, columns = rows.to(device), columns.to(device)
        batch, length = problem.shape.batch, problem.shape.max_len + EXTRA
        steps = torch.arange(length, device=device)
        distances = (steps[None, :] - steps[:, None] + reach).clamp_(0, reach)
        mask = torch.ones(length, length, device=device, dtype=problem.shape.dtype).tril_()
        grid = cls(batch, length, rows, columns, problem.times, problem.query_times, distances, mask)
        times, asked = (grid.pad(each) for each in (problem.times, problem.query_times))
        return cls(batch, length, rows, columns, times, asked, distances, mask)

    def pad(self, tokens: Tensor) -> Tensor:
        """(L, ...) to (B, N + 11, ...), zeros where there is no token."""
        return tokens.new_zeros(self.batch, self.length, *tokens.shape[1:]).index_put((self.rows, self.columns), tokens)


def research_attention(leaves: Leaves, grid: Grid, scale: float) -> Tensor:
    """(B, N + 11, H, dim) padded inside; result (L, H, dim)."""
    q, k, v = (grid.pad(part) for part in leaves[:3])
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k)
    if len(leaves) > 3:
        bias = leaves[3][0, grid.distances]  # (n, n)
        if len(leaves) > 4:
            seconds = (grid.query_times[:, :, None] - grid.times[:, None, :]).abs().clamp(min=1)
            exact = torch.float64 if q.dtype == torch.float64 else torch.float32
            buckets = (torch.log(seconds.to(exact)) / LOG_STEP).long().clamp(0, leaves[4].shape[1] - 1)
            bias = bias + leaves[4][0, buckets]  # (B, n, n)
        scores = scores + bias.view(-1, 1, grid.length, grid.length)
    weights = F.silu(scores) * scale * grid.mask
    return torch.einsum("bhnm,bmhd->bnhd", weights, v)[grid.rows, grid.columns]


def _attend(function: Callable[..., Tensor]) -> Callable[[Problem, Leaves], Tensor]:
    def attend(problem: Problem, leaves: Leaves) -> Tensor:
        return function(tuple(leaves), Grid.of(problem), problem.scale)

    return attend


def padded_implementations(compiled: bool) -> list[Implementation]:
    """C1, and C2 in both modes if `compiled`."""
    found = [Implementation("C1 research padded", _attend(research_attention), refuses=squares_too_large)]
    if compiled:
        plain = torch.compile(research_attention, dynamic=False)
        graphs = torch.compile(research_attention, dynamic=False, mode="reduce-overhead")
        found += [
            Implementation("C2 research compiled", _attend(plain), refuses=compiles_slowly),
            Implementation("C2 reduce-overhead", _attend(graphs), refuses=compiles_slowly, captures=False),
        ]
    return found
