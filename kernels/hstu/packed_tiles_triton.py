"""Tiles of consecutive tokens that may span several sequences: their sequence bounds, loads and stores, and biases.

Shapes: tokens (TILE,); a block of scores (M, N), whose rows are queries or keys, depending on the caller.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

from .arithmetic_triton import position_column, time_bucket

VARYING = ["batch", "total_tokens", "kept_levels"]  # arguments that cause no recompilation


@triton.jit
def sequence_bounds(offsets, tokens, batch, STEPS: tl.constexpr):
    """First token and end of the sequence of each of `tokens`; an empty range for a token of no sequence.

    The sequence is the last s with offsets[s] <= token, found by bisection; STEPS = batch.bit_length(). If empty
    sequences share its start, the last s is the sequence that contains the token.
    """
    low = tokens * 0
    high = low + batch  # low <= s <= high
    for _ in tl.static_range(STEPS):
        middle = (low + high + 1) // 2
        after = tl.load(offsets + middle) <= tokens
        low = tl.where(after, middle, low)
        high = tl.where(after, high, middle - 1)
    start = tl.load(offsets + low)
    end = tl.load(offsets + tl.minimum(low + 1, batch))  # past the last offset: end = start
    return start, end


@triton.jit
def tiles_in_reach(tokens, starts, ends, TILE: tl.constexpr, TILES: tl.constexpr):
    """low, high: tiles low .. high - 1, relative to the tile of `tokens`, contain all sequences of these tokens.

    TILES bounds both, so that a sequence longer than max_len is truncated and no write is out of bounds.
    """
    first_token = tl.min(tokens, 0)
    owned = starts < ends
    before = first_token - tl.min(tl.where(owned, starts, tokens), 0)
    after = tl.max(tl.where(owned, ends, tokens), 0) - first_token
    low = tl.maximum(-((before + TILE - 1) // TILE), -TILES)
    high = tl.maximum((after + TILE - 1) // TILE, 1)
    return low, tl.minimum(high, TILES + 1)


@triton.jit
def load_tile(pointer, tokens, head, token_stride, head_stride, num_valid, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """(tokens, BLOCK) of one head, zero from token `num_valid` on and past WIDTH."""
    columns = tl.arange(0, BLOCK)
    places = tokens.to(tl.int64)[:, None] * token_stride + head.to(tl.int64) * head_stride + columns[None, :]
    return tl.load(pointer + places, mask=(tokens < num_valid)[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def store_tile(pointer, values, tokens, head, heads, total_tokens, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Store values (tokens, BLOCK) in one head of a contiguous (total_tokens, heads, WIDTH)."""
    columns = tl.arange(0, BLOCK)
    places = (tokens.to(tl.int64) * heads + head)[:, None] * WIDTH + columns[None, :]
    mask = (tokens < total_tokens)[:, None] & (columns < WIDTH)[None, :]
    tl.store(pointer + places, values.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def add_biases(
    scores, queries, keys, allowed, head, num_valid, position_table, position_stride, reach, entries,
    time_table, time_stride, query_times, key_times, last_seconds, FAST_MATH: tl.constexpr,
):  # fmt: skip
    """scores + b[j - i] + c[bucket], and the buckets (0 without a time table). queries and keys broadcast to scores.

    A missing table is None; the stride of a table that the heads share is 0. Times are read up to token `num_valid`.
    """
    buckets = queries * 0 + keys * 0
    if position_table is not None:
        columns = position_column(keys - queries, reach, entries)
        bias = tl.load(position_table + head * position_stride + columns, mask=allowed, other=0.0)
        scores += bias.to(tl.float32)
    if time_table is not None:
        query_seconds = tl.load(query_times + queries, mask=queries < num_valid, other=0)
        key_seconds = tl.load(key_times + keys, mask=keys < num_valid, other=0)
        buckets = time_bucket(query_seconds - key_seconds, last_seconds, FAST_MATH)
        bias = tl.load(time_table + head * time_stride + buckets, mask=allowed, other=0.0)
        scores += bias.to(tl.float32)
    return scores, buckets
