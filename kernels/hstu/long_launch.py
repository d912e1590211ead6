"""What every kernel of the long family is launched with, for a call and for compiling without one."""

from typing import Any

import torch
from torch import Tensor

from ..jagged.time_buckets import last_seconds
from .arithmetic_triton import INTERPRETED, precision
from .attention_call import AttentionCall, fast_math
from .long_bias_triton import BlockTimes, block_times
from .long_tiles import Tiles, padded


def terms(q: Tensor, v: Tensor, call: AttentionCall) -> dict[str, Any]:
    """The arguments that depend on the call alone, by the kernels' names for them."""
    position, time = call.position_table, call.time_table
    return {
        "offsets": call.offsets,
        "max_len": call.max_len,
        "heads": q.shape[1],
        "position_table": position,
        "position_stride": _row_stride(position),
        "reach": call.position_reach,
        "entries": 1 if position is None else position.shape[1],
        "time_table": time,
        "time_stride": _row_stride(time),
        "last_seconds": None if time is None else last_seconds(torch.int32, q.device),
        "alpha": call.alpha,
        "scale": call.scale,
        "seed": call.seed if call.dropout > 0 else None,
        "kept_levels": call.kept_levels,
        "DQK": q.shape[2],
        "DV": v.shape[2],
        "WIDTH_QK": padded(q.shape[2]),
        "WIDTH_V": padded(v.shape[2]),
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
    return {
        "BLOCK_QUERIES": tiles.block_queries,
        "BLOCK_KEYS": tiles.block_keys,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }


def times_arguments(call: AttentionCall, over: str, block: int) -> dict[str, Any]:
    """Times of both sides, and the bounds per block of the side that the kernel walks `over`: "keys" or "queries"."""
    if call.time_table is None:
        return {"query_times": None, "key_times": None, "lows": None, "highs": None, "blocks": 1}
    sides: dict[str, BlockTimes] = {}
    for side, times in (("queries", call.query_times), ("keys", call.times)):
        if call.next_times is None and sides:
            sides[side] = sides["queries"]
        else:
            assert times is not None
            sides[side] = block_times(call, times, block)
    walked = sides[over]
    return {
        "query_times": sides["queries"].seconds,
        "key_times": sides["keys"].seconds,
        "lows": walked.lows,
        "highs": walked.highs,
        "blocks": walked.lows.shape[1],
    }


def rows_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself where the elements of a head lie side by side, which the kernels expect."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _row_stride(table: Tensor | None) -> int:
    """Elements from one head's entries to the next's: none where all heads share a table."""
    return table.stride(0) if table is not None and table.shape[0] > 1 else 0
