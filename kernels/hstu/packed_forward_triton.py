"""HSTU attention of short sequences (max_len <= 256) in Triton: the forward pass.

Each program handles a tile of consecutive tokens, which holds many short sequences. The keys that its queries attend to
are in the tile itself and in the preceding tiles that its sequences reach into (the following ones too, if not causal).
Every element of a result is written by one program, the grid follows from sizes that the host knows, and nothing waits
for the device. packed_backward_triton has the backward pass.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic_triton import allowed_pairs, dot, dropout_factor, silu
from .attention_call import AttentionCall, rows_contiguous
from .packed_launch import launch_arguments
from .packed_tiles_triton import VARYING, add_biases, load_tile, sequence_bounds, store_tile, tiles_in_reach


def packed_forward(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """out, like v and contiguous.

    q, k (total_tokens, heads, dqk) and v (total_tokens, heads, dv) share one dtype (float32, float16 or bfloat16) and
    may have any strides; total_tokens > 0.
    """
    q, k, v = (rows_contiguous(x) for x in (q, k, v))
    out = v.new_empty(v.shape)
    arguments, constants, warps = launch_arguments(q, k, v, call)
    grid = (triton.cdiv(len(q), constants["TILE"]), q.shape[1])
    packed_forward_kernel[grid](q=q, k=k, v=v, out=out, **arguments, **constants, num_warps=warps, num_stages=1)
    return out


@triton.jit(do_not_specialize=VARYING)
def packed_forward_kernel(
    q, k, v, out, offsets, position_table, time_table, query_times, key_times, last_seconds, seed,
    batch, total_tokens, q_token, q_head, k_token, k_head, v_token, v_head, position_stride, time_stride,
    reach, entries, scale, alpha, kept_levels,
    DQK: tl.constexpr, DV: tl.constexpr, BLOCK_QK: tl.constexpr, BLOCK_V: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr, STEPS: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    FAST_MATH: tl.constexpr,
):  # fmt: skip
    """Program (tile, head) writes `out` for its tokens. TILES: most tiles that a sequence reaches to either side."""
    head = tl.program_id(1)
    first_token = tl.program_id(0) * TILE
    queries = first_token + tl.arange(0, TILE)
    starts, ends = sequence_bounds(offsets, queries, batch, STEPS)
    low, high = tiles_in_reach(queries, starts, ends, TILE, TILES)
    num_valid = tl.minimum(tl.load(offsets + batch), total_tokens)  # later tokens are not read
    if CAUSAL:
        high = 1
    q_tile = load_tile(q, queries, head, q_token, q_head, num_valid, DQK, BLOCK_QK)
    total = tl.zeros((TILE, BLOCK_V), tl.float32)
    for tile in range(low, high):
        keys = queries + tile * TILE
        k_tile = load_tile(k, keys, head, k_token, k_head, num_valid, DQK, BLOCK_QK)
        v_tile = load_tile(v, keys, head, v_token, v_head, num_valid, DV, BLOCK_V)
        scores = dot(q_tile, tl.trans(k_tile), tl.zeros((TILE, TILE), tl.float32), PRECISION, UPCAST) * alpha
        allowed = allowed_pairs(queries[:, None], keys[None, :], starts[:, None], ends[:, None], CAUSAL)
        scores, _ = add_biases(
            scores, queries[:, None], keys[None, :], allowed, head, num_valid, position_table, position_stride,
            reach, entries, time_table, time_stride, query_times, key_times, last_seconds, FAST_MATH,
        )  # fmt: skip
        weights = tl.where(allowed, silu(scores, FAST_MATH), 0.0)
        if seed is not None:
            weights *= dropout_factor(tl.load(seed), queries[:, None], keys[None, :], head, kept_levels)
        total = dot(weights.to(v_tile.dtype), v_tile, total, PRECISION, UPCAST)
    store_tile(out, total * scale, queries, head, tl.num_programs(1), total_tokens, DV, BLOCK_V)
