"""Two small kernels in five configurations, with what `sm90.py` has to notice. No test collects this file."""

from collections.abc import Iterator

import triton
import triton.language as tl
from shipped_kernels.shipped_kernel import Shipped


@triton.jit
def product(a, b, out, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """out (BLOCK, BLOCK) = a (BLOCK, WIDTH) @ b (BLOCK, WIDTH)^T."""
    rows, columns = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    left = tl.load(a + rows[:, None] * WIDTH + columns[None, :])
    right = tl.load(b + rows[:, None] * WIDTH + columns[None, :])
    tl.store(out + rows[:, None] * BLOCK + rows[None, :], tl.dot(left, tl.trans(right)))


@triton.jit
def nonsense(out, BLOCK: tl.constexpr):
    """Adds a tile to one of another shape, which no version accepts."""
    tl.store(out + tl.arange(0, BLOCK), tl.arange(0, BLOCK) + tl.arange(0, 2 * BLOCK))


def sample(name: str, block: int, width: int, num_warps: int) -> Shipped:
    signature = {"a": "*bf16", "b": "*bf16", "out": "*fp32", "BLOCK": "constexpr", "WIDTH": "constexpr"}
    values = {"BLOCK": block, "WIDTH": width}
    return Shipped(name, product, signature, values, num_warps, expects_wgmma=True)


def shipped() -> Iterator[Shipped]:
    yield sample("sound", 64, 64, 4)
    yield sample("spills", 256, 16, 4)
    yield sample("too much shared memory", 128, 512, 8)
    yield sample("too small for wgmma", 16, 64, 1)
    yield Shipped("nonsense", nonsense, {"out": "*i32", "BLOCK": "constexpr"}, {"BLOCK": 16})
