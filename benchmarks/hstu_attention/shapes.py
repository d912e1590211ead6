"""The shapes that are measured, and random problems of each shape.

Regime a (A1 to A5) has short histories, where kernel launches are the limit; regime b has long histories, where tensor
cores are.

Dimensions: B batch, N max_len, L total tokens, H heads, n one sequence's length.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from virtualmle.kernels.jagged.packing import num_distances
from virtualmle.kernels.jagged.time_buckets import NUM_TIME_BUCKETS

TOKENS = 131_072  # in every shape of regime b
MIN_LENGTH = 3  # shortest history of regime a: a 5-core with leave-one-out leaves three events for training
BIASES = ("none", "position", "position+time")


@dataclass(frozen=True)
class Shape:
    """One case. `mean` is the mean length of a sequence; `lengths` is the distribution of the lengths."""

    name: str
    batch: int
    max_len: int
    mean: float
    heads: int
    dim: int  # of q, k and v
    bias: str = "position+time"
    dtype: torch.dtype = torch.float32
    lengths: str = "skewed"  # or full, uniform, zipf, edges

    @property
    def title(self) -> str:
        return f"{self.name} {str(self.dtype).removeprefix('torch.')} bias={self.bias}"

    @property
    def regime(self) -> str:
        """a: short, b: long."""
        return "a" if self.max_len <= 256 else "b"


@dataclass(frozen=True, eq=False)
class Problem:
    """One random batch. Gradients are taken for the `leaves`, in the order q, k, v, position table, time table."""

    shape: Shape
    offsets: Tensor  # (B + 1,) int64 on the CPU
    offsets_device: Tensor  # (B + 1,) int32 on the device
    times: Tensor  # (L,) int64, in seconds
    leaves: tuple[Tensor, ...]  # q, k, v (L, H, dim), then the tables of the shape's bias
    grad: Tensor  # (L, H, dim), the gradient of the output
    scale: float
    cache: dict[str, Any] = field(default_factory=dict, repr=False)  # values that implementations compute per batch

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the leaves."""
        tables = {"none": (), "position": ("position_table",), "position+time": ("position_table", "time_table")}
        return ("q", "k", "v", *tables[self.shape.bias])

    @property
    def lengths(self) -> Tensor:
        return self.offsets.diff()


def shapes_a() -> list[Shape]:
    """Histories as in Amazon (mean length 9 of 50), as in MovieLens-1M (165 of 200), and in between."""
    base = [
        Shape("A1", 128, 50, 9, 4, 16),
        Shape("A2", 128, 50, 9, 8, 8),
        Shape("A3", 1024, 50, 9, 2, 32),
        Shape("A4", 128, 200, 165, 2, 25),
        Shape("A5", 1024, 200, 60, 8, 64),
    ]
    return [replace(shape, dtype=dtype) for shape in base for dtype in (torch.float32, torch.bfloat16)]


def shapes_b() -> list[Shape]:
    """The grid of regime b, the most important shapes first, because the script may run out of time."""
    grid = []
    for lengths in ("full", "uniform", "zipf"):
        for max_len in (4096, 1024, 16384, 2048, 8192):
            for dim in (128, 64, 256) if max_len in (1024, 4096, 16384) else (128,):
                mean = max_len if lengths == "full" else max_len / 2
                batch = round(TOKENS / mean)
                name = f"B d={dim} N={max_len} {lengths}"
                grid += [Shape(name, batch, max_len, mean, 4, dim, b, torch.bfloat16, lengths) for b in BIASES]
    return sorted(grid, key=lambda shape: (shape.lengths != "full", shape.max_len != 4096, shape.dim != 128))


def shapes_cpu() -> list[Shape]:
    return [Shape("short", 256, 50, 9, 2, 32), Shape("long", 64, 200, 73, 2, 32)]


def gate_shape(shape: Shape) -> Shape:
    """A small shape with the same width, bias and dtype, lengths around tile boundaries, and empty sequences."""
    max_len = min(shape.max_len, 260)
    return replace(shape, name=f"{shape.name} gate", batch=14, max_len=max_len, lengths="edges")


def draw_lengths(shape: Shape, seed: int) -> np.ndarray:
    """(B,) int64 within 0 .. max_len, with the mean of the shape except for rounding (not for `edges`)."""
    random, longest = np.random.default_rng(seed), shape.max_len
    if shape.lengths == "full":
        return np.full(shape.batch, longest, dtype=np.int64)
    if shape.lengths == "edges":
        edges = np.array([0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, longest, 0])
        return np.minimum(edges, longest)[: shape.batch].astype(np.int64)
    if shape.lengths == "uniform":
        return _scaled(random.random(shape.batch) * 2, shape, minimum=0)
    if shape.lengths == "zipf":
        return _scaled(1 / (1 + random.permutation(shape.batch)), shape, minimum=1)
    return _scaled(random.exponential(size=shape.batch), shape, minimum=MIN_LENGTH)


def _scaled(spread: np.ndarray, shape: Shape, minimum: int) -> np.ndarray:
    """Lengths minimum + factor * spread, clipped at max_len, with the factor that gives the shape's mean."""
    low, high = 0.0, 1e9
    for _ in range(100):
        factor = (low + high) / 2
        lengths = np.minimum(minimum + factor * spread, shape.max_len).round().astype(np.int64)
        low, high = (factor, high) if lengths.mean() < shape.mean else (low, factor)
    return lengths


def draw(shape: Shape, device: torch.device, seed: int) -> Problem:
    """A random problem with N(0, 1) values; with small inputs, wrong kernels could pass an absolute tolerance."""
    lengths = draw_lengths(shape, seed)
    offsets = torch.from_numpy(np.concatenate(([0], lengths.cumsum())))
    total = int(offsets[-1])
    random = torch.Generator(device).manual_seed(seed)
    drawn = torch.float64 if shape.dtype == torch.float64 else torch.float32

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random, dtype=drawn, device=device).to(shape.dtype)

    leaves = [normal(total, shape.heads, shape.dim) for _ in range(3)]
    if shape.bias != "none":
        leaves.append(normal(1, num_distances(shape.max_len, causal=True)))
    if shape.bias == "position+time":
        leaves.append(normal(1, NUM_TIME_BUCKETS))
    return Problem(
        shape,
        offsets,
        offsets.to(device, torch.int32),
        _times(total, seed).to(device),
        tuple(leaf.requires_grad_() for leaf in leaves),
        normal(total, shape.heads, shape.dim),
        1 / shape.max_len,
    )


def _times(total: int, seed: int) -> Tensor:
    """(L,) int64 on the CPU, ascending, with gaps from seconds to weeks."""
    random = torch.Generator().manual_seed(seed)
    gaps = torch.exp(torch.rand(total, generator=random, dtype=torch.float64) * 14).long()
    return gaps.cumsum(0)


def valid_pairs(offsets: Tensor) -> int:
    """The number of pairs (i, j <= i) within sequences, which causal attention has to compute."""
    lengths = offsets.diff()
    return int((lengths * (lengths + 1) // 2).sum())


def forward_flops(shape: Shape, offsets: Tensor) -> int:
    """Two products of 2 * dim operations per valid pair and head; a backward pass has five products (2.5 times)."""
    return 4 * shape.heads * shape.dim * valid_pairs(offsets)


def step_bytes(shape: Shape, offsets: Tensor) -> int:
    """Minimal traffic: forward reads q, k, v, writes out; backward reads q, k, v, d_out, writes three gradients."""
    return 11 * int(offsets[-1]) * shape.heads * shape.dim * shape.dtype.itemsize
