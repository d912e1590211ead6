"""Launch arguments shared by the kernels of the packed family, and their table of tile sizes."""

from typing import Any

import torch
import triton
from torch import Tensor

from ..jagged.padded_width import padded_width
from .arithmetic_triton import INTERPRETED, precision
from .attention_call import AttentionCall, fast_math, head_stride


def launch_arguments(
    q: Tensor, k: Tensor, v: Tensor, call: AttentionCall
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The arguments and the constexprs that both kernels take, by name, and num_warps."""
    block_qk, block_v = (padded_width(x.shape[2]) for x in (q, v))
    tile, warps = packed_configuration(max(block_qk, block_v), call.max_len, q.dtype)
    position, time = call.position_table, call.time_table
    arguments = {
        "offsets": call.offsets, "position_table": position, "time_table": time,
        "query_times": None if time is None else call.query_times,
        "key_times": None if time is None else call.times,
        "last_seconds": None if time is None else call.last_seconds,
        "seed": call.seed if call.dropout else None,
        "batch": call.batch, "total_tokens": len(q),
        "q_token": q.stride(0), "q_head": q.stride(1), "k_token": k.stride(0), "k_head": k.stride(1),
        "v_token": v.stride(0), "v_head": v.stride(1),
        "position_stride": head_stride(position), "time_stride": head_stride(time),
        "reach": call.position_reach, "entries": 0 if position is None else position.shape[1],
        "scale": call.scale, "alpha": call.alpha, "kept_levels": call.kept_levels,
    }  # fmt: skip
    constants = {
        "DQK": q.shape[2], "DV": v.shape[2], "BLOCK_QK": block_qk, "BLOCK_V": block_v,
        "TILE": tile, "TILES": triton.cdiv(call.max_len - 1, tile), "STEPS": call.search_steps, "CAUSAL": call.causal,
        "PRECISION": precision(q.dtype), "UPCAST": INTERPRETED, "FAST_MATH": fast_math(q.dtype) and not INTERPRETED,
    }  # fmt: skip
    return arguments, constants, warps


def packed_configuration(width: int, max_len: int, dtype: torch.dtype) -> tuple[int, int]:
    """(TILE, num_warps) for heads padded to `width`: what fits into sm_90's registers; not yet timed on a device.

    Tiles of 32 waste less on short sequences. float32 products do not use the tensor cores and need more registers.
    """
    if dtype == torch.float32:
        return (32, 4) if width <= 32 else (32, 8) if width <= 128 else (16, 8)
    if width <= 64 and max_len > 64:
        return 64, 8
    return (32, 4) if width <= 64 else (32, 8)
