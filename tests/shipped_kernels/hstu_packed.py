"""Kernels launched by the packed HSTU family: its table of tiles, with both biases and with none."""

from collections.abc import Iterator
from typing import Any

import torch
import triton
from shipped_kernels.shipped_kernel import FLOAT32_SLACK, HALF_SLACK, Shipped

from virtualmle.kernels.hstu.packed_backward_triton import packed_backward_kernel
from virtualmle.kernels.hstu.packed_forward_triton import packed_forward_kernel
from virtualmle.kernels.hstu.packed_launch import packed_configuration
from virtualmle.kernels.jagged.padded_width import padded_width

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DIMS = (8, 16, 25, 32, 64, 128, 256)  # 8 and 25 are padded
MAX_LENS = (50, 200)  # one on each side of the threshold in the tile table; float32 has no threshold
SEARCH_STEPS = 8  # 128 sequences
WGMMA_TILE = 64
WIDE_BACKWARD_SPILL = 256  # at width 64 with dropout and buckets summed in order, at 128 in float32; most are below 32


def shipped() -> Iterator[Shipped]:
    """Forward and backward (with atomics and deterministic), with both biases and with none; dropout at one width."""
    for dtype in DTYPES:
        for dim in DIMS if dtype != "fp16" else (64,):
            for max_len in MAX_LENS if dtype != "fp32" else MAX_LENS[1:]:
                for bias in (True, False):
                    yield _forward(dtype, dim, max_len, bias)
                    yield _backward(dtype, dim, max_len, bias)
                if dim == 64:
                    yield _forward(dtype, dim, max_len, True, dropout=True)
                    yield _backward(dtype, dim, max_len, True, dropout=True)
                yield _backward(dtype, dim, max_len, True, deterministic=True)


def _forward(dtype: str, dim: int, max_len: int, bias: bool, dropout: bool = False) -> Shipped:
    return _describe("forward", packed_forward_kernel, {"out"}, (dtype, dim, max_len, bias, dropout), {})


def _backward(
    dtype: str, dim: int, max_len: int, bias: bool, dropout: bool = False, deterministic: bool = False
) -> Shipped:
    tile, _ = packed_configuration(padded_width(dim), max_len, DTYPES[dtype])
    constants = {
        "NUM_LINES": triton.cdiv(max_len - 1, tile) + 1 if bias else 0,
        "DETERMINISTIC": deterministic,
        **({} if bias else {"partials": None}),
    }
    name = "backward deterministic" if deterministic else "backward"
    rows = {"grad", "dq", "dk", "dv"}
    return _describe(name, packed_backward_kernel, rows, (dtype, dim, max_len, bias, dropout), constants)


def _describe(
    name: str, kernel: Any, rows: set[str], case: tuple[str, int, int, bool, bool], constants: dict[str, Any]
) -> Shipped:
    dtype, dim, max_len, bias, dropout = case
    tile, warps = packed_configuration(padded_width(dim), max_len, DTYPES[dtype])
    values = {
        "DQK": dim, "DV": dim, "BLOCK_QK": padded_width(dim), "BLOCK_V": padded_width(dim), "TILE": tile,
        "TILES": triton.cdiv(max_len - 1, tile), "STEPS": SEARCH_STEPS, "CAUSAL": True, "PRECISION": "ieee",
        "UPCAST": False, "FAST_MATH": dtype == "bf16", **constants,
    }  # fmt: skip
    if not dropout:
        values["seed"] = None
    if not bias:
        values |= dict.fromkeys(("position_table", "time_table", "query_times", "key_times", "last_seconds"))
    kinds = {
        **dict.fromkeys(rows | {"q", "k", "v", "position_table", "time_table"}, f"*{dtype}"),
        **dict.fromkeys(("offsets", "query_times", "key_times", "last_seconds"), "*i32"),
        "partials": "*fp32", "seed": "*i64", "scale": "fp32", "alpha": "fp32",
    }  # fmt: skip
    signature = {a: "constexpr" if a in values else kinds.get(a, "i32") for a in kernel.arg_names}
    label = f"{name} {dtype} d={dim} N={max_len}{' both biases' if bias else ''}{' dropout' if dropout else ''}"
    wgmma = tile >= WGMMA_TILE and dtype != "fp32"
    spill = FLOAT32_SLACK if dtype == "fp32" else HALF_SLACK
    if name.startswith("backward") and (wgmma or dim >= 128):
        spill = WIDE_BACKWARD_SPILL
    return Shipped(label, kernel, signature, values, warps, num_stages=1, expects_wgmma=wgmma, max_spill_bytes=spill)
