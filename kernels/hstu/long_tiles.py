"""Tile sizes of the long family: a small table by dtype, head dimension and bias.

Chosen by compiling for sm_90 (few spilled registers, wgmma in 16 bits, shared memory within the device's), not by
measurement: `benchmarks/bench_hstu_attention.py` on a GPU shows what they are worth.
"""

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


def padded(dim: int) -> int:
    """The power of two that a head dimension is computed in; tensor cores want at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


def forward_tiles(dtype: torch.dtype, dqk: int, dv: int) -> Tiles:
    """A program owns block_queries queries and walks over keys."""
    return (FORWARD_FLOAT32 if dtype == torch.float32 else FORWARD)[max(padded(dqk), padded(dv))]


def key_tiles(dtype: torch.dtype, dqk: int, dv: int, biased: bool) -> Tiles:
    """Backward; a program owns block_keys keys and walks over queries."""
    half = KEYS_BIASED if biased else KEYS
    return (KEYS_FLOAT32 if dtype == torch.float32 else half)[max(padded(dqk), padded(dv))]


def query_tiles(dtype: torch.dtype, dqk: int, dv: int) -> Tiles:
    """Deterministic backward, dq; a program owns block_queries queries and walks over keys."""
    return (QUERIES_FLOAT32 if dtype == torch.float32 else QUERIES)[max(padded(dqk), padded(dv))]


# By padded head dimension. In float32, without tensor cores, pipelined loads cost more registers than there are.
FORWARD = dict.fromkeys(HEAD_DIMS, Tiles(128, 64, 8, 3)) | {256: Tiles(128, 64, 8, 2)}
NARROW = Tiles(32, 32, 8, 1)
FORWARD_FLOAT32 = dict.fromkeys(HEAD_DIMS, Tiles(64, 32, 8, 1)) | {128: NARROW, 256: NARROW}
KEYS = {
    16: Tiles(64, 64, 8, 2),
    32: Tiles(64, 64, 8, 2),
    64: Tiles(64, 128, 8, 2),
    128: Tiles(64, 128, 8, 2),
    256: Tiles(32, 64, 8, 2),  # with 64 queries it spills twice as much
}
KEYS_BIASED = dict.fromkeys(HEAD_DIMS, Tiles(64, 64, 8, 2)) | {256: Tiles(32, 64, 8, 2)}
KEYS_FLOAT32 = dict.fromkeys(HEAD_DIMS, NARROW) | {256: Tiles(16, 32, 8, 1)}
QUERIES = dict.fromkeys(HEAD_DIMS, Tiles(128, 64, 8, 2)) | {256: Tiles(64, 64, 8, 1)}
QUERIES_FLOAT32 = dict.fromkeys(HEAD_DIMS, NARROW)
