"""HSTU attention of long sequences in Triton: the forward pass. long_backward_triton has the backward pass.

Each program processes one block of queries of one sequence and head. It loops over the blocks of keys: first those that
lie entirely before its queries, without a mask, then those on the diagonal, with a mask (Dao 2023, FlashAttention-2,
section 3.2; without softmax nothing has to be rescaled). docs/kernels.md has the formula and the numerics.

Tensor dimensions of a tile: M queries, N keys; D = dqk and V = dv padded to powers of two of at least 16.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic_triton import allowed_pairs, dot, dropout_factor, silu
from .attention_call import AttentionCall, rows_contiguous
from .long_bias_triton import biased_scores, load_times
from .long_launch import launch_options, terms, times_arguments
from .long_rows_triton import VARYING, clear_tail, load_rows, place_of, store_rows
from .long_tiles import Tiles, forward_tiles


def long_forward(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, tiles: Tiles | None = None) -> Tensor:
    """Like `packed_forward`, for sequences of any length. `tiles` overrides the tile table, for tests and tuning."""
    tiles = tiles or forward_tiles(q.dtype, q.shape[2], v.shape[2])
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    blocks = triton.cdiv(call.max_len, tiles.block_queries)
    forward_block[(blocks * q.shape[1] * call.batch,)](
        q, k, v, out, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], blocks_of_queries=blocks,
        **terms(q, v, call), **times_arguments(call, "keys", tiles.block_keys), **launch_options(tiles),
    )  # fmt: skip
    clear_tail(call, out)
    return out


@triton.jit(do_not_specialize=["blocks_of_queries", *VARYING])
def forward_block(
    q, k, v, out, q_token, q_head, k_token, k_head, v_token, v_head, blocks_of_queries,
    offsets, max_len, heads, position_table, position_stride, reach, entries, time_table, time_stride, last_seconds,
    alpha, scale, seed, kept_levels, query_times, key_times, lows, highs, blocks,
    DQK: tl.constexpr, DV: tl.constexpr, WIDTH_QK: tl.constexpr, WIDTH_V: tl.constexpr, SCALED: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FAST_MATH: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """out[i] = scale * sum_j silu(alpha q_i . k_j + bias) v_j for a block of i; blocks with most keys first."""
    block, head, sequence = place_of(tl.program_id(0), blocks_of_queries, heads)
    block = blocks_of_queries - 1 - block
    start = tl.load(offsets + sequence)
    length = tl.minimum(tl.load(offsets + sequence + 1) - start, max_len)
    first_query = block * BLOCK_QUERIES
    if first_query >= length:
        return
    q += start.to(tl.int64) * q_token + head * q_head
    k += start.to(tl.int64) * k_token + head * k_head
    v += start.to(tl.int64) * v_token + head * v_head
    rows = first_query + tl.arange(0, BLOCK_QUERIES)[:, None]  # positions in the sequence
    queries = load_rows(q, q_token, first_query, length, BLOCK_QUERIES, DQK, WIDTH_QK, True)
    if SCALED:
        queries = (queries * alpha).to(q.dtype.element_ty)
    position_row = position_table
    time_row = time_table
    if HAS_POSITION:
        position_row += head * position_stride
    query_seconds = rows
    earliest = 0
    latest = 0
    if HAS_TIME:
        time_row += head * time_stride
        lows += sequence * blocks
        highs += sequence * blocks
        query_seconds, earliest, latest = load_times(query_times + start, rows, length)
    total = tl.zeros((BLOCK_QUERIES, WIDTH_V), tl.float32)
    unmasked_end = (first_query if CAUSAL else length) // BLOCK_KEYS * BLOCK_KEYS
    end = tl.minimum(first_query + BLOCK_QUERIES, length) if CAUSAL else length
    for MASKED in tl.static_range(2):
        for first_key in range(unmasked_end if MASKED else 0, end if MASKED else unmasked_end, BLOCK_KEYS):
            columns = first_key + tl.arange(0, BLOCK_KEYS)[None, :]
            keys = load_rows(k, k_token, first_key, length, BLOCK_KEYS, DQK, WIDTH_QK, MASKED)
            values = load_rows(v, v_token, first_key, length, BLOCK_KEYS, DV, WIDTH_V, MASKED)
            scores, _, _, _ = biased_scores(
                queries, keys, rows, columns, query_seconds, earliest, latest, key_times, start, length, lows, highs,
                first_key // BLOCK_KEYS, position_row, reach, entries, time_row, last_seconds,
                False, MASKED, HAS_POSITION, HAS_TIME, PRECISION, UPCAST, FAST_MATH,
            )  # fmt: skip
            weights = silu(scores, FAST_MATH)
            if MASKED:
                weights = tl.where(allowed_pairs(rows, columns, 0, length, CAUSAL), weights, 0.0)
            if DROPOUT:
                weights *= dropout_factor(tl.load(seed), start + rows, start + columns, head, kept_levels)
            total = dot(weights.to(v.dtype.element_ty), values, total, PRECISION, UPCAST)
    out += start.to(tl.int64) * heads * DV + head * DV
    store_rows(out, heads * DV, first_query, length, total * scale, BLOCK_QUERIES, DV, WIDTH_V)
