"""Tile sizes of the long family: a small table by dtype, head dimension and bias.

Chosen by compiling for sm_90 (few spilled registers, wgmma for 16-bit types, shared memory within the device's limit),
not by timing; `benchmarks/bench_hstu_attention.py` times them on a GPU.
"""

from dataclasses import dataclass

import torch

from ..jagged.padded_width import padded_width

HEAD_DIMS = (16, 32, 64, 128, 256)  # widths that dqk and dv are padded to; callers have rejected larger dimensions


@dataclass(frozen=True)
class Tiles:
    """One launch configuration. `backward_keys` requires block_keys >= block_queries."""

    block_queries: int
    block_keys: int
    num_warps: int
    num_stages: int


def forward_tiles(dtype: torch.dtype, dqk: int, dv: int) -> Tiles:
    """Forward: a program owns block_queries queries and loops over keys."""
    return (FORWARD_FLOAT32 if dtype == torch.float32 else FORWARD)[max(padded_width(dqk), padded_width(dv))]


def key_tiles(dtype: torch.dtype, dqk: int, dv: int, biased: bool) -> Tiles:
    """Backward: a program owns block_keys keys and loops over queries."""
    half_precision = KEYS_BIASED if biased else KEYS
    return (KEYS_FLOAT32 if dtype == torch.float32 else half_precision)[max(padded_width(dqk), padded_width(dv))]


def query_tiles(dtype: torch.dtype, dqk: int, dv: int) -> Tiles:
    """Deterministic backward, dq: a program owns block_queries queries and loops over keys."""
    return (QUERIES_FLOAT32 if dtype == torch.float32 else QUERIES)[max(padded_width(dqk), padded_width(dv))]


# By padded head dimension. In float32, which does not use tensor cores, pipelined loads would spill registers.
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
