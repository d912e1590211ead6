"""C1 and C2: HSTU attention as in the research code, written from the formula: padded, one tensor op at a time.

Every sequence is padded to N + 11, the buffer length of the published configurations. All N x N pairs are computed and
masked, and the time bucket of every pair is computed again in every layer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .implementation import Implementation, Leaves, compiles_slowly, pairs_exceed_memory
from .shapes import Problem

EXTRA = 11
LOG_STEP = 0.301
RESEARCH = "C1 research padded"


@dataclass(frozen=True, eq=False)
class Grid:
    """The positions of the tokens on the padded grid. It is built once per batch, which favours the peer."""

    batch: int
    length: int  # N + 11
    rows: Tensor  # (L,) int64: the sequence of each token
    columns: Tensor  # (L,) int64: the position of each token in its sequence
    distances: Tensor  # (N + 11, N + 11) int64: the index of each pair into the position table
    mask: Tensor  # (N + 11, N + 11), 1 for pairs j <= i

    @classmethod
    def of(cls, problem: Problem) -> "Grid":
        device, reach = problem.times.device, problem.shape.max_len - 1
        rows = torch.repeat_interleave(problem.lengths)
        columns = torch.arange(len(rows)) - problem.offsets[:-1].repeat_interleave(problem.lengths)
        length = problem.shape.max_len + EXTRA
        steps = torch.arange(length, device=device)
        distances = (steps[None, :] - steps[:, None] + reach).clamp_(0, reach)
        mask = torch.ones(length, length, device=device, dtype=problem.shape.dtype).tril_()
        return cls(problem.shape.batch, length, rows.to(device), columns.to(device), distances, mask)

    def pad(self, tokens: Tensor) -> Tensor:
        """(L, ...) to (B, N + 11, ...), padded with zeros."""
        return tokens.new_zeros(self.batch, self.length, *tokens.shape[1:]).index_put((self.rows, self.columns), tokens)


def research_attention(leaves: Leaves, grid: Grid, times: Tensor, scale: float) -> Tensor:
    """The result, (L, H, dim). leaves (L, ...) are padded in here; times (B, N + 11) int64 are padded already."""
    q, k, v = (grid.pad(part) for part in leaves[:3])
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k)
    if len(leaves) > 3:
        bias = leaves[3][0, grid.distances]  # (n, n)
        if len(leaves) > 4:
            seconds = (times[:, :, None] - times[:, None, :]).abs().clamp(min=1)
            exact = torch.float64 if q.dtype == torch.float64 else torch.float32
            buckets = (torch.log(seconds.to(exact)) / LOG_STEP).long().clamp(0, leaves[4].shape[1] - 1)
            bias = bias + leaves[4][0, buckets]  # (B, n, n)
        scores = scores + bias.view(-1, 1, grid.length, grid.length)
    weights = F.silu(scores) * scale * grid.mask
    return torch.einsum("bhnm,bmhd->bnhd", weights, v)[grid.rows, grid.columns]


def _padded(function: Callable[..., Tensor]) -> Callable[[Problem, Leaves], Tensor]:
    def attend(problem: Problem, leaves: Leaves) -> Tensor:
        if "grid" not in problem.cache:
            grid = Grid.of(problem)
            problem.cache.update(grid=grid, times=grid.pad(problem.times))
        return function(tuple(leaves), problem.cache["grid"], problem.cache["times"], problem.scale)

    return attend


def padded_implementations(compiled: bool) -> list[Implementation]:
    """C1, and with `compiled` also C2 in both modes."""
    implementations = [Implementation(RESEARCH, _padded(research_attention), refuses=pairs_exceed_memory)]
    if compiled:
        plain = torch.compile(research_attention, dynamic=False)
        graphs = torch.compile(research_attention, dynamic=False, mode="reduce-overhead")
        implementations += [
            Implementation("C2 research compiled", _padded(plain), refuses=compiles_slowly),
            Implementation("C2 reduce-overhead", _padded(graphs), refuses=compiles_slowly, captures=False),
        ]
    return implementations
