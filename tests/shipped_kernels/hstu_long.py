"""Kernels launched by the long HSTU family: every row of `long_tiles`, at a selection of shapes."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from shipped_kernels.shipped_kernel import Shipped

from virtualmle.kernels.hstu.long_backward_triton import backward_keys
from virtualmle.kernels.hstu.long_bias_triton import BLOCKS_PER_PROGRAM, TIMES_WARPS, write_block_times
from virtualmle.kernels.hstu.long_forward_triton import forward_block
from virtualmle.kernels.hstu.long_queries_triton import backward_queries
from virtualmle.kernels.hstu.long_rows_triton import ELEMENTS, PROGRAMS, write_zeros
from virtualmle.kernels.hstu.long_tiles import HEAD_DIMS, Tiles, forward_tiles, key_tiles, query_tiles

Shape = tuple[str, int, bool, bool]  # dtype, padded head dimension, position bias, time bias
TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}  # by Triton's names
# Further options of a launch, compiled at one width: dropout with alpha, which need most registers; no causal mask.
VARIANTS = {" dropout alpha": {"DROPOUT": True, "SCALED": True}, " full": {"CAUSAL": False}}

# Accepted register spills, in bytes per thread on sm_90, by padded width; with slack for other compiler versions.
FORWARD_SPILL = {64: 32, 128: 64, 256: 256}
FORWARD_FLOAT32_SPILL = dict.fromkeys(HEAD_DIMS, 64)
KEYS_SPILL = {128: 320, 256: 640}
KEYS_BIASED_SPILL = {16: 256, 32: 256, 64: 256, 128: 512, 256: 1152}
KEYS_FLOAT32_SPILL = {16: 128, 32: 128, 64: 128, 128: 128}
QUERIES_SPILL = {256: 384}
QUERIES_FLOAT32_SPILL = {128: 320}


def shipped() -> Iterator[Shipped]:
    """The kernels for out, for dq, and for dk with dv, each with its variants; those for times and for zeroing."""
    for shape in shipped_shapes():
        variants = {"": {}, **variants_of(shape)}
        for variant, constexprs in variants.items():
            yield _forward(shape, variant, constexprs)
            yield _queries(shape, variant, constexprs)
            yield _keys(shape, variant, constexprs, deterministic=False)
        yield _keys(shape, "", {}, deterministic=True)
    yield from _times()
    yield from _zeros()


def shipped_shapes() -> Iterator[Shape]:
    """Every width in bf16 and float32, with both biases and with none; in bf16 also with the position bias only."""
    for dim in HEAD_DIMS:
        for position, time in ((True, True), (False, False), (True, False)):
            yield "bf16", dim, position, time
    for dim in HEAD_DIMS:
        for both in (True, False):
            yield "fp32", dim, both, both
    yield "fp16", 64, True, True
    yield "fp16", 128, False, False


def variants_of(shape: Shape) -> Mapping[str, Mapping[str, bool]]:
    """The constexprs of further compiled variants, by the suffix of the configuration's name."""
    dtype, dim, position, time = shape
    return VARIANTS if dim == 64 and position and time and dtype != "fp16" else {}


def label(shape: Shape) -> str:
    """A readable name of a shape, such as bf16 d=64 position+time."""
    dtype, dim, position, time = shape
    bias = "+".join(name for name, present in (("position", position), ("time", time)) if present)
    return f"{dtype} d={dim} {bias}".strip()


def _forward(shape: Shape, variant: str, constexprs: Mapping[str, bool]) -> Shipped:
    dtype, dim, *_ = shape
    tensors = dict.fromkeys(("q", "k", "v", "out"), "*?") | _strides("q", "k", "v") | {"blocks_of_queries": "i32"}
    tiles = forward_tiles(TORCH_DTYPES[dtype], dim, dim)
    spill = (FORWARD_FLOAT32_SPILL if dtype == "fp32" else FORWARD_SPILL).get(dim, 0)
    return _describe(f"forward {label(shape)}{variant}", forward_block, tensors, tiles, spill, shape, **constexprs)


def _queries(shape: Shape, variant: str, constexprs: Mapping[str, bool]) -> Shipped:
    dtype, dim, *_ = shape
    rows = ("grad", "q", "k", "v")
    tensors = dict.fromkeys((*rows, "dq"), "*?") | _strides(*rows) | {"blocks_of_queries": "i32"}
    tiles = query_tiles(TORCH_DTYPES[dtype], dim, dim)
    spill = (QUERIES_FLOAT32_SPILL if dtype == "fp32" else QUERIES_SPILL).get(dim, 0)
    return _describe(f"queries {label(shape)}{variant}", backward_queries, tensors, tiles, spill, shape, **constexprs)


def _keys(shape: Shape, variant: str, constexprs: Mapping[str, bool], *, deterministic: bool) -> Shipped:
    dtype, dim, position, time = shape
    rows = ("grad", "q", "k", "v")
    tensors = dict.fromkeys((*rows, "dk", "dv"), "*?") | _strides(*rows)
    tensors |= dict.fromkeys(("dq", "position_copies", "time_copies"), "*fp32")
    tensors |= dict.fromkeys(("groups", "slots", "span"), "i32")
    present = {"dq": not deterministic, "position_copies": position, "time_copies": time}
    absent = [name for name, there in present.items() if not there]
    tiles = key_tiles(TORCH_DTYPES[dtype], dim, dim, position)
    spills = KEYS_FLOAT32_SPILL if dtype == "fp32" else KEYS_BIASED_SPILL if position else KEYS_SPILL
    return _describe(
        f"keys {label(shape)}{variant}{' deterministic' if deterministic else ''}", backward_keys,
        {name: kind for name, kind in tensors.items() if name not in absent}, tiles, spills.get(dim, 0), shape,
        DETERMINISTIC=deterministic, **constexprs, **dict.fromkeys(absent),
    )  # fmt: skip


def _strides(*rows: str) -> dict[str, str]:
    return {f"{row}_{stride}": "i32" for row in rows for stride in ("token", "head")}


def _describe(
    name: str, kernel: Any, tensors: Mapping[str, str], tiles: Tiles, spill: int, shape: Shape, **constexprs: Any
) -> Shipped:
    """`kernel` at one shape. tensors: types of the arguments that only this kernel has, "?" for the dtype."""
    dtype, dim, position, time = shape
    values = {
        "DQK": dim, "DV": dim, "WIDTH_QK": dim, "WIDTH_V": dim, "SCALED": False, "CAUSAL": True,
        "HAS_POSITION": position, "HAS_TIME": time, "DROPOUT": False, "PRECISION": "ieee", "UPCAST": False,
        "FAST_MATH": dtype == "bf16", "BLOCK_QUERIES": tiles.block_queries, "BLOCK_KEYS": tiles.block_keys,
        **constexprs,
    }  # fmt: skip
    kinds = {
        **{argument: kind.replace("?", dtype) for argument, kind in tensors.items()},
        "offsets": "*i32", "max_len": "i32", "heads": "i32", "position_table": "*fp32", "position_stride": "i32",
        "reach": "i32", "entries": "i32", "time_table": "*fp32", "time_stride": "i32", "last_seconds": "*i32",
        "alpha": "fp32", "scale": "fp32", "seed": "*i64", "kept_levels": "i32", "query_times": "*i32",
        "key_times": "*i32", "lows": "*i32", "highs": "*i32", "blocks": "i32",
    }  # fmt: skip
    absent = set() if values["DROPOUT"] else {"seed"}
    if not position:
        absent |= {"position_table"}
    if not time:
        absent |= {"time_table", "last_seconds", "query_times", "key_times", "lows", "highs"}
    kinds |= dict.fromkeys([*absent, *values], "constexpr")
    signature = {argument: kinds[argument] for argument in kernel.arg_names}
    strides = [argument for argument in signature if argument.endswith("_token") or argument.endswith("_head")]
    return Shipped(
        name, kernel, signature, {**values, **dict.fromkeys(absent)}, tiles.num_warps, tiles.num_stages,
        aligned=(*(argument for argument, kind in signature.items() if kind.startswith("*")), *strides),
        expects_wgmma=dtype != "fp32" and dim >= 64, max_spill_bytes=spill,
    )  # fmt: skip


def _times() -> Iterator[Shipped]:
    """The kernel of block times, for each block size of the attention kernels."""
    signature = {
        "times": "*i64", "key_times": "*i64", "query_times": "*i64", "offsets": "*i32", "max_len": "i32",
        "seconds": "*i32", "lows": "*i32", "highs": "*i32", "blocks": "i32",
        "TWO_SIDES": "constexpr", "BLOCK": "constexpr", "BLOCKS": "constexpr",
    }  # fmt: skip
    for block in (16, 32, 64, 128):
        for two_sides in (False, True):
            name = f"times block={block}{' next times' if two_sides else ''}"
            constexprs = {"TWO_SIDES": two_sides, "BLOCK": block, "BLOCKS": BLOCKS_PER_PROGRAM}
            yield Shipped(name, write_block_times, signature, constexprs, num_warps=TIMES_WARPS)


def _zeros() -> Iterator[Shipped]:
    """The zeroing kernel, for each dtype of a result."""
    for dtype in ("bf16", "fp16", "fp32"):
        signature = {
            "rows": f"*{dtype}", "offsets": "*i32", "batch": "i32", "end": "i64", "elements": "i32",
            "PROGRAMS": "constexpr", "ELEMENTS": "constexpr",
        }  # fmt: skip
        constexprs = {"PROGRAMS": PROGRAMS, "ELEMENTS": ELEMENTS}
        yield Shipped(f"zeros {dtype}", write_zeros, signature, constexprs, num_warps=4)
