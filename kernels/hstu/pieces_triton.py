"""The pieces that both families of HSTU kernels are made of: bounds, weights, biases, dropout, products.

Imported only where tensors are on CUDA, or by tests in Triton's interpreter: Triton has no wheels for some systems.
Shapes: rows (M,) and columns (N,) of a block of scores (M, N), rows being queries or keys as the caller has it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl

BUCKETS_PER_OCTAVE = tl.constexpr(0.6931471805599453 / 0.301)  # time_buckets.LOG_STEP
LEVELS = tl.constexpr(1 << 24)  # philox.LEVELS
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
def allowed_pairs(queries, keys, starts, ends, CAUSAL: tl.constexpr):
    """Whether key may be seen by query, in the same sequence: all but the bounds broadcast to the block."""
    inside = (keys >= starts) & (keys < ends)
    if CAUSAL:
        inside = inside & (keys <= queries)
    return inside


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
def dot(a, b, total, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """total + a @ b in float32. UPCAST: operands too, for the interpreter, which multiplies raw bfloat16 bits."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def sigmoid(x, FAST_MATH: tl.constexpr):
    """1 / (1 + exp(-x)). FAST_MATH: (1 + tanh(x / 2)) / 2 by one approximate instruction, error about 5e-4."""
    if FAST_MATH:
        half = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [0.5 * x], dtype=tl.float32, is_pure=True, pack=1
        )
        return 0.5 * half + 0.5
    return 1 / (1 + tl.exp(-x))


@triton.jit
def silu(x, FAST_MATH: tl.constexpr):
    """x sigmoid(x)"""
    return x * sigmoid(x, FAST_MATH)


@triton.jit
def silu_and_slope(x, FAST_MATH: tl.constexpr):
    """silu(x) and d silu(x) / dx = s + x s (1 - s), s = sigmoid(x)"""
    s = sigmoid(x, FAST_MATH)
    value = x * s
    return value, s + value * (1 - s)


@triton.jit
def log2(x, FAST_MATH: tl.constexpr):
    """Base-2 logarithm of float32; FAST_MATH: by one approximate instruction, error about 2**-22."""
    if FAST_MATH:
        return tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    return tl.log2(x)


@triton.jit
def time_bucket(seconds, last_seconds, FAST_MATH: tl.constexpr):
    """The bucket of whole seconds of either sign, exactly as time_buckets.time_buckets; int32.

    last_seconds (NUM_TIME_BUCKETS,), of the dtype of seconds: the longest time of each bucket. The logarithm, lowered
    by a thousandth, is the bucket or the one below it; one look at the table decides.
    """
    seconds = tl.abs(seconds)
    estimate = log2(tl.maximum(seconds, 1).to(tl.float32), FAST_MATH) * BUCKETS_PER_OCTAVE - 0.001
    bucket = tl.minimum(tl.maximum(estimate, 0.0).to(tl.int32), 127)
    return bucket + (seconds > tl.load(last_seconds + bucket)).to(tl.int32)


@triton.jit
def position_column(distances, reach, entries):
    """Column of distance j - i in a position table: what is further than the table reaches takes its furthest entry."""
    return tl.minimum(tl.maximum(distances + reach, 0), entries - 1)


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


@triton.jit
def dropout_factor(seed, queries, keys, head, kept_levels):
    """0 where the weight of (query, key) falls, else LEVELS / kept_levels: philox.dropout_factors. All int32."""
    counters = keys + queries * 0, queries + keys * 0
    draw, _, _, _ = tl.philox(seed, counters[0], counters[1], counters[0] * 0 + head, counters[0] * 0)
    kept = (draw >> 8).to(tl.int32) < kept_levels
    return tl.where(kept, LEVELS / kept_levels, 0.0)


INTERPRETED = not isinstance(silu, triton.JITFunction)  # TRITON_INTERPRET=1 when this module was loaded


def precision(dtype: torch.dtype) -> str:
    """tl.dot's input_precision: float32 is multiplied exactly unless torch, too, was allowed TF32 products."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"
