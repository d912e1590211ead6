"""HSTU attention of short sequences (max_len <= 256) in Triton: one program serves a tile of consecutive tokens.

A tile holds many short sequences; the keys that its queries see are the tile itself and what reaches into it from
before (after, too, if not causal). No two programs write to one place, the grid follows from sizes that the host knows,
and nothing waits for the device. The backward kernel is in packed_backward_triton.

packed_forward(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor
    q, k (total_tokens, heads, dqk), v (total_tokens, heads, dv), of one dtype (float32, float16, bfloat16), any
    strides; total_tokens > 0. Returns out like v, contiguous.
packed_backward(grad: Tensor, q, k, v, call) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
    grad like out. dq, dk, dv contiguous, and the gradients of the two tables in the tables' shapes and dtypes, None
    where there is no table.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..jagged.time_buckets import NUM_TIME_BUCKETS
from .arithmetic_triton import INTERPRETED, allowed_pairs, dot, dropout_factor, precision, silu
from .attention_call import AttentionCall, fast_math
from .packed_backward_triton import packed_backward_kernel
from .packed_tiles_triton import VARYING, add_biases, load_tile, sequence_bounds, store_tile, tiles_in_reach


@triton.jit(do_not_specialize=VARYING)
def packed_forward_kernel(
    q, k, v, out, offsets, position_table, time_table, query_times, key_times, last_seconds, seed,
    batch, total_tokens, q_token, q_head, k_token, k_head, v_token, v_head, position_stride, time_stride,
    reach, entries, scale, alpha, kept_levels,
    DQK: tl.constexpr, DV: tl.constexpr, BLOCK_QK: tl.constexpr, BLOCK_V: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr, STEPS: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    FAST_MATH: tl.constexpr,
):  # fmt: skip
    """Program (tile, head): out of its tokens. TILES: how many tiles away a sequence may begin or end."""
    head = tl.program_id(1)
    first_token = tl.program_id(0) * TILE
    queries = first_token + tl.arange(0, TILE)
    starts, ends = sequence_bounds(offsets, queries, batch, STEPS)
    low, high = tiles_in_reach(queries, starts, ends, TILE, TILES)
    filled = tl.minimum(tl.load(offsets + batch), total_tokens)  # what lies behind is not read
    if CAUSAL:
        high = 1
    q_tile = load_tile(q, queries, head, q_token, q_head, filled, DQK, BLOCK_QK)
    total = tl.zeros((TILE, BLOCK_V), tl.float32)
    for tile in range(low, high):
        keys = queries + tile * TILE
        k_tile = load_tile(k, keys, head, k_token, k_head, filled, DQK, BLOCK_QK)
        v_tile = load_tile(v, keys, head, v_token, v_head, filled, DV, BLOCK_V)
        scores = dot(q_tile, tl.trans(k_tile), tl.zeros((TILE, TILE), tl.float32), PRECISION, UPCAST) * alpha
        allowed = allowed_pairs(queries[:, None], keys[None, :], starts[:, None], ends[:, None], CAUSAL)
        scores, _ = add_biases(
            scores, queries[:, None], keys[None, :], allowed, head, filled, position_table, position_stride,
            reach, entries, time_table, time_stride, query_times, key_times, last_seconds, FAST_MATH,
        )  # fmt: skip
        weights = tl.where(allowed, silu(scores, FAST_MATH), 0.0)
        if seed is not None:
            weights *= dropout_factor(tl.load(seed), queries[:, None], keys[None, :], head, kept_levels)
        total = dot(weights.to(v_tile.dtype), v_tile, total, PRECISION, UPCAST)
    store_tile(out, total * scale, queries, head, tl.num_programs(1), total_tokens, DV, BLOCK_V)


def packed_configuration(width: int, max_len: int, dtype: torch.dtype) -> tuple[int, int]:
    """(TILE, num_warps) for heads padded to `width`: what sm_90 holds in registers; not yet timed on a device.

    Tiles of 32 waste less on short sequences. float32 products go past the tensor cores and need registers for it.
    """
    if dtype == torch.float32:
        return (32, 4) if width <= 32 else (32, 8) if width <= 128 else (16, 8)
    if width <= 64 and max_len > 64:
        return 64, 8
    return (32, 4) if width <= 64 else (32, 8)


def packed_forward(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """See the top of the file."""
    q, k, v = (_last_contiguous(x) for x in (q, k, v))
    out = v.new_empty(v.shape)
    arguments, constants, warps = _arguments(q, k, v, call)
    grid = (triton.cdiv(len(q), constants["TILE"]), q.shape[1])
    packed_forward_kernel[grid](q=q, k=k, v=v, out=out, **arguments, **constants, num_warps=warps, num_stages=1)
    return out


def packed_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """See the top of the file."""
    grad, q, k, v = (_last_contiguous(x) for x in (grad, q, k, v))
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    arguments, constants, warps = _arguments(q, k, v, call)
    tile, tiles = constants["TILE"], constants["TILES"]
    lines = 0 if call.position_table is None else tiles + 1 if call.causal else 2 * tiles + 2
    width = lines * tile + (0 if call.time_table is None else NUM_TIME_BUCKETS)
    grid = (triton.cdiv(len(q), tile), q.shape[1], 2)
    partials = q.new_empty((*grid[:2], width), dtype=torch.float32) if width else None
    packed_backward_kernel[grid](
        q=q, k=k, v=v, grad=grad, dq=dq, dk=dk, dv=dv, partials=partials, **arguments,
        grad_token=grad.stride(0), grad_head=grad.stride(1), NUM_LINES=lines, DETERMINISTIC=call.deterministic,
        **constants, num_warps=warps, num_stages=1,
    )  # fmt: skip
    return dq, dk, dv, *_table_gradients(partials, lines * tile, tile * (tiles + 1) - 1, call)


def _last_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _arguments(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The arguments and constexprs that both kernels take, and num_warps."""
    block_qk, block_v = (max(16, triton.next_power_of_2(x.shape[2])) for x in (q, v))
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
        "position_stride": _head_stride(position), "time_stride": _head_stride(time),
        "reach": call.position_reach, "entries": 0 if position is None else position.shape[1],
        "scale": call.scale, "alpha": call.alpha, "kept_levels": call.kept_levels,
    }  # fmt: skip
    constants = {
        "DQK": q.shape[2], "DV": v.shape[2], "BLOCK_QK": block_qk, "BLOCK_V": block_v,
        "TILE": tile, "TILES": triton.cdiv(call.max_len - 1, tile), "STEPS": call.search_steps, "CAUSAL": call.causal,
        "PRECISION": precision(q.dtype), "UPCAST": INTERPRETED, "FAST_MATH": fast_math(q.dtype) and not INTERPRETED,
    }  # fmt: skip
    return arguments, constants, warps


def _head_stride(table: Tensor | None) -> int:
    return 0 if table is None or table.shape[0] == 1 else table.stride(0)


def _table_gradients(
    partials: Tensor | None, num_distances: int, zero: int, call: AttentionCall
) -> tuple[Tensor | None, Tensor | None]:
    """Sums of partials (tiles, heads, distances and then buckets) as gradients; `zero`: the column of distance 0."""
    if partials is None:
        return None, None
    position, time = call.position_table, call.time_table
    sums = partials.sum(0)
    shared = sums.sum(0, keepdim=True) if sums.shape[0] > 1 else sums
    dtime = None
    if time is not None:
        dtime = (shared if len(time) == 1 else sums)[:, num_distances:].to(time.dtype)
    if position is None:
        return None, dtime
    distances = (shared if len(position) == 1 else sums)[:, :num_distances]
    following = num_distances - zero  # distance 0 and those after it
    distances = _ending(distances, call.position_reach + following, call.max_len - 1 + following)
    if not call.causal:
        distances = _ending(distances.flip(1), position.shape[1], call.position_reach + call.max_len).flip(1)
    return distances.to(position.dtype), dtime


def _ending(sums: Tensor, num: int, num_filled: int) -> Tensor:
    """The last `num` columns, what lies before added to the first; only the last num_filled are not zero already."""
    surplus = sums.shape[1] - num
    if surplus <= 0:
        return F.pad(sums, (-surplus, 0))
    if num >= num_filled:
        return sums[:, surplus:]
    return torch.cat((sums[:, : surplus + 1].sum(1, keepdim=True), sums[:, surplus + 1 :]), 1)
