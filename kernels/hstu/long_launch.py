"""Launch arguments shared by the kernels of the long family."""

from typing import Any

import torch
from torch import Tensor

from ..jagged.padded_width import padded_width
from ..jagged.time_buckets import last_seconds
from .arithmetic_triton import INTERPRETED, precision
from .attention_call import AttentionCall, fast_math, head_stride
from .long_bias_triton import BlockTimes, block_times
from .long_tiles import Tiles


def terms(q: Tensor, v: Tensor, call: AttentionCall) -> dict[str, Any]:
    """The arguments that follow from the call alone, by the names of the kernels' parameters."""
    position, time = call.position_table, call.time_table
    return {
        "offsets": call.offsets,
        "max_len": call.max_len,
        "heads": q.shape[1],
        "position_table": position,
        "position_stride": head_stride(position),
        "reach": call.position_reach,
        "entries": 1 if position is None else position.shape[1],
        "time_table": time,
        "time_stride": head_stride(time),
        "last_seconds": None if time is None else last_seconds(torch.int32, q.device),
        "alpha": call.alpha,
        "scale": call.scale,
        "seed": call.seed if call.dropout > 0 else None,
        "kept_levels": call.kept_levels,
        "DQK": q.shape[2],
        "DV": v.shape[2],
        "WIDTH_QK": padded_width(q.shape[2]),
        "WIDTH_V": padded_width(v.shape[2]),
        "SCALED": call.alpha != 1.0,
        "CAUSAL": call.causal,
        "HAS_POSITION": position is not None,
        "HAS_TIME": time is not None,
        "DROPOUT": call.dropout > 0,
        "PRECISION": precision(q.dtype),
        "UPCAST": INTERPRETED,
        "FAST_MATH": fast_math(q.dtype) and not INTERPRETED,
    }


def launch_options(tiles: Tiles) -> dict[str, int]:
    """Block sizes, warps and pipeline stages of a launch."""
    return {
        "BLOCK_QUERIES": tiles.block_queries,
        "BLOCK_KEYS": tiles.block_keys,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }


def times_arguments(call: AttentionCall, over: str, block: int) -> dict[str, Any]:
    """Times of queries and keys, and per-block bounds of the side that the kernel loops `over`, "keys" or "queries"."""
    if call.time_table is None:
        return {"query_times": None, "key_times": None, "lows": None, "highs": None, "blocks": 1}
    sides: dict[str, BlockTimes] = {}
    for side, times in (("queries", call.query_times), ("keys", call.times)):
        if call.next_times is None and sides:
            sides[side] = sides["queries"]
        else:
            assert times is not None
            sides[side] = block_times(call, times, block)
    looped = sides[over]
    return {
        "query_times": sides["queries"].seconds,
        "key_times": sides["keys"].seconds,
        "lows": looped.lows,
        "highs": looped.highs,
        "blocks": looped.lows.shape[1],
    }
