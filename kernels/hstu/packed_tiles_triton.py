"""Tiles of consecutive tokens, whatever sequences they are of: their bounds, their rows in memory, and their biases.

Shapes: tokens (TILE,); a block of scores (M, N), rows being queries or keys as the caller has it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

from .arithmetic_triton import position_column, time_bucket

VARYING = ["batch", "total_tokens", "kept_levels"]  # arguments that no kernel is compiled anew for


@triton.jit
def sequence_bounds(offsets, tokens, batch, STEPS: tl.constexpr):
    """First token and end of the sequence of each of `tokens`; an empty range where a token belongs to none.

    The last s with offsets[s] <= token, found by halving; STEPS = batch.bit_length(). Where empty sequences share
    their start, it is the last of them, the one that holds the token.
    """
    low = tokens * 0
    high = low + batch  # the answer is in low .. high
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
    """low, high: the tiles low .. high - 1, counted from that of `tokens`, hold all of their sequences.

    TILES bounds both, so that a sequence longer than max_len is cut short and nothing is written out of place.
    """
    first_token = tl.min(tokens, 0)
    owned = starts < ends
    before = first_token - tl.min(tl.where(owned, starts, tokens), 0)
    after = tl.max(tl.where(owned, ends, tokens), 0) - first_token
    low = tl.maximum(-((before + TILE - 1) // TILE), -TILES)
    high = tl.maximum((after + TILE - 1) // TILE, 1)
    return low, tl.minimum(high, TILES + 1)


@triton.jit
def load_tile(pointer, tokens, head, token_stride, head_stride, filled, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """(tokens, BLOCK) of one head: zero from token `filled` on, and past WIDTH."""
    columns = tl.arange(0, BLOCK)
    places = tokens.to(tl.int64)[:, None] * token_stride + head.to(tl.int64) * head_stride + columns[None, :]
    return tl.load(pointer + places, mask=(tokens < filled)[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def store_tile(pointer, values, tokens, head, heads, total_tokens, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """values (tokens, BLOCK) into one head of a contiguous (total_tokens, heads, WIDTH)."""
    columns = tl.arange(0, BLOCK)
    places = (tokens.to(tl.int64) * heads + head)[:, None] * WIDTH + columns[None, :]
    mask = (tokens < total_tokens)[:, None] & (columns < WIDTH)[None, :]
    tl.store(pointer + places, values.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def add_biases(
    scores, queries, keys, allowed, head, filled, position_table, position_stride, reach, entries,
    time_table, time_stride, query_times, key_times, last_seconds, FAST_MATH: tl.constexpr,
):  # fmt: skip
    """scores + b[j - i] + c[bucket], and the buckets (0 without a time table). queries and keys broadcast to scores.

    A table is None where there is none; its stride is 0 where the heads share it. Times are read before `filled` only.
    """
    buckets = queries * 0 + keys * 0
    if position_table is not None:
        columns = position_column(keys - queries, reach, entries)
        bias = tl.load(position_table + head * position_stride + columns, mask=allowed, other=0.0)
        scores += bias.to(tl.float32)
    if time_table is not None:
        asked = tl.load(query_times + queries, mask=queries < filled, other=0)
        happened = tl.load(key_times + keys, mask=keys < filled, other=0)
        buckets = time_bucket(asked - happened, last_seconds, FAST_MATH)
        bias = tl.load(time_table + head * time_stride + buckets, mask=allowed, other=0.0)
        scores += bias.to(tl.float32)
    return scores, buckets
