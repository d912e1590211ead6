"""What ours is measured against.

C1, C2: HSTU attention as research code writes it, from the formula: every sequence padded to N + 11, the length that
    the published configurations give their buffers; the square of all pairs computed and masked; the bucket of every
    pair computed anew in every layer.
C6: softmax attention by torch's own kernels, a different function without bias: what such hardware can do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from .implementation import Implementation, Leaves, compiles_slowly, softmax_scale, squares_too_large
from .shapes import Problem, Shape

EXTRA = 11
LOG_STEP = 0.301
RESEARCH = "C1 research padded"


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the tokens lie on the padded grid, and the times there. Made once per batch: that favours the peer."""

    batch: int
    length: int  # N + 11
    rows: Tensor  # (L,) int64: the sequence of each token
    columns: Tensor  # (L,) int64: its place there
    distances: Tensor  # (N + 11, N + 11) int64: entry of the position table of each pair
    mask: Tensor  # (N + 11, N + 11)

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
        """(L, ...) to (B, N + 11, ...), zeros where there is no token."""
        return tokens.new_zeros(self.batch, self.length, *tokens.shape[1:]).index_put((self.rows, self.columns), tokens)


def research_attention(leaves: Leaves, grid: Grid, times: Tensor, scale: float) -> Tensor:
    """leaves (L, ...), padded inside; times (B, N + 11) int64; result (L, H, dim)."""
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
    """C1, and C2 in both modes if `compiled`."""
    found = [Implementation(RESEARCH, _padded(research_attention), refuses=squares_too_large)]
    if compiled:
        plain = torch.compile(research_attention, dynamic=False)
        graphs = torch.compile(research_attention, dynamic=False, mode="reduce-overhead")
        found += [
            Implementation("C2 research compiled", _padded(plain), refuses=compiles_slowly),
            Implementation("C2 reduce-overhead", _padded(graphs), refuses=compiles_slowly, captures=False),
        ]
    return found


def _sdpa(backend: SDPBackend) -> Callable[[Problem, Leaves], Tensor]:
    def attend(problem: Problem, leaves: Leaves) -> Tensor:
        shape = problem.shape
        q, k, v = (part.view(shape.batch, shape.max_len, shape.heads, shape.dim).transpose(1, 2) for part in leaves[:3])
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale(shape))
        return out.transpose(1, 2).reshape(-1, shape.heads, shape.dim)

    return attend


def _varlen(problem: Problem, leaves: Leaves) -> Tensor:
    ends, longest = problem.offsets_device, problem.shape.max_len
    out = varlen_attn(
        *leaves[:3], ends, ends, longest, longest, scale=softmax_scale(problem.shape), window_size=(-1, 0)
    )
    assert isinstance(out, Tensor)
    return out


def _plain_half(shape: Shape, device: torch.device) -> str | None:
    """What the fused softmax kernels take."""
    if device.type != "cuda" or shape.bias != "none":
        return "CUDA only" if device.type != "cuda" else "has no bias"
    half = shape.dtype in (torch.float16, torch.bfloat16) and shape.dim % 8 == 0
    return None if half else "takes 16-bit types and widths that are multiples of 8"


def _math(shape: Shape, device: torch.device) -> str | None:
    if device.type == "cuda":
        return "the CPU's stand-in for the kernels of CUDA"
    return None if shape.bias == "none" else "has no bias"


def softmax_implementations() -> list[Implementation]:
    return [
        Implementation("C6 SDPA cudnn", _sdpa(SDPBackend.CUDNN_ATTENTION), "softmax", _plain_half, needs_full=True),
        Implementation("C6 SDPA flash", _sdpa(SDPBackend.FLASH_ATTENTION), "softmax", _plain_half, needs_full=True),
        Implementation("C6 SDPA math", _sdpa(SDPBackend.MATH), "softmax", _math, needs_full=True),
        Implementation("C6 varlen", _varlen, "softmax", _plain_half),
    ]
