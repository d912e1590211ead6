"""Tile sizes of the long family: a small table by dtype, head dimension and bias, and what `shipped()` enumerates.

Chosen by compiling for sm_90 (few spilled registers, wgmma in 16 bits, shared memory within the device's), not by
measurement: `benchmarks/bench_hstu_attention.py` on a GPU says what they are worth.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

HEAD_DIMS = (16, 32, 64, 128, 256)  # what dqk and dv are padded to; a larger dimension is the caller's error


@dataclass(frozen=True)
class Tiles:
    """One launch configuration. The kernels also want block_keys >= block_queries where keys own the program."""

    block_queries: int
    block_keys: int
    num_warps: int
    num_stages: int
    spill: int = 0  # bytes a thread that sm_90's registers cannot hold and that we accept, with slack between compilers


def padded(dim: int) -> int:
    """The power of two that a head dimension is computed in; tensor cores want at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


def forward_tiles(dtype: torch.dtype, dqk: int, dv: int, biased: bool) -> Tiles:
    """A program owns block_queries queries and walks over keys."""
    width = max(padded(dqk), padded(dv))
    if dtype == torch.float32:
        return FORWARD_FLOAT32[width]
    return (FORWARD_BIASED if biased else FORWARD)[width]


def key_tiles(dtype: torch.dtype, dqk: int, dv: int, biased: bool) -> Tiles:
    """Backward; a program owns block_keys keys and walks over queries."""
    width = max(padded(dqk), padded(dv))
    if dtype == torch.float32:
        return KEYS_FLOAT32[width]
    return (KEYS_BIASED if biased else KEYS)[width]


def query_tiles(dtype: torch.dtype, dqk: int, dv: int, biased: bool) -> Tiles:
    """Deterministic backward, dq; a program owns block_queries queries and walks over keys."""
    width = max(padded(dqk), padded(dv))
    if dtype == torch.float32:
        return QUERIES_FLOAT32[width]
    return (QUERIES_BIASED if biased else QUERIES)[width]


FORWARD = {
    16: Tiles(128, 64, 8, 3),
    32: Tiles(128, 64, 8, 3),
    64: Tiles(128, 64, 8, 3, spill=32),
    128: Tiles(128, 64, 8, 3, spill=64),
    256: Tiles(128, 64, 8, 2, spill=256),
}
FORWARD_BIASED = FORWARD
# In float32, without tensor cores, pipelined loads cost more registers than there are.
NARROW = Tiles(32, 32, 8, 1, spill=64)
FORWARD_FLOAT32 = dict.fromkeys(HEAD_DIMS, Tiles(64, 32, 8, 1, spill=64)) | {128: NARROW, 256: NARROW}
KEYS = {
    16: Tiles(64, 64, 8, 2),
    32: Tiles(64, 64, 8, 2),
    64: Tiles(64, 128, 8, 2),
    128: Tiles(64, 128, 8, 2, spill=320),
    256: Tiles(32, 64, 8, 2, spill=640),  # with 64 queries it spills twice as much
}
KEYS_BIASED = {
    16: Tiles(64, 64, 8, 2, spill=256),
    32: Tiles(64, 64, 8, 2, spill=256),
    64: Tiles(64, 64, 8, 2, spill=256),
    128: Tiles(64, 64, 8, 2, spill=512),
    256: Tiles(32, 64, 8, 2, spill=1152),
}
KEYS_FLOAT32 = dict.fromkeys(HEAD_DIMS, Tiles(32, 32, 8, 1, spill=128)) | {256: Tiles(16, 32, 8, 1)}
QUERIES = {
    16: Tiles(128, 64, 8, 2),
    32: Tiles(128, 64, 8, 2),
    64: Tiles(128, 64, 8, 2),
    128: Tiles(128, 64, 8, 2),
    256: Tiles(64, 64, 8, 1, spill=384),
}
QUERIES_BIASED = QUERIES
QUERIES_FLOAT32 = dict.fromkeys(HEAD_DIMS, Tiles(32, 32, 8, 1)) | {128: Tiles(32, 32, 8, 1, spill=320)}


TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}  # by Triton's names


def label(shape: tuple[str, int, bool, bool]) -> str:
    """A shipped shape for people: bf16 d=64 position+time."""
    dtype, dim, position, time = shape
    bias = "+".join(name for name, present in (("position", position), ("time", time)) if present)
    return f"{dtype} d={dim} {bias}".strip()


def shipped_shapes() -> Iterator[tuple[str, int, bool, bool]]:
    """(dtype, padded head dimension, position bias, time bias) of the configurations that are compiled in tests."""
    for dim in HEAD_DIMS:
        for position, time in ((True, True), (False, False), (True, False)):
            yield "bf16", dim, position, time
    for dim in HEAD_DIMS:
        for both in (True, False):
            yield "fp32", dim, both, both
    yield "fp16", 64, True, True
    yield "fp16", 128, False, False


# What else a launch may ask for, compiled at one width: dropout and alpha, which cost most registers; no causal mask.
VARIANTS = {" dropout alpha": {"DROPOUT": True, "SCALED": True}, " full": {"CAUSAL": False}}


def variants_of(shape: tuple[str, int, bool, bool]) -> Mapping[str, Mapping[str, bool]]:
    """By what is added to a shape's name, the constexprs that are compiled beside the plain ones."""
    dtype, dim, position, time = shape
    return VARIANTS if dim == 64 and position and time and dtype != "fp16" else {}
