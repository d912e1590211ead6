"""The arithmetic that both families of HSTU kernels share: masks, weights, time buckets, dropout, matrix products.

Imported only if tensors are on CUDA, or by tests in Triton's interpreter: Triton has no wheels for some systems.
Shapes: rows (M,) and columns (N,) of a block of scores (M, N); rows are queries or keys, depending on the caller.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl

BUCKETS_PER_OCTAVE = tl.constexpr(0.6931471805599453 / 0.301)  # time_buckets.LOG_STEP
LEVELS = tl.constexpr(1 << 24)  # philox.LEVELS


@triton.jit
def allowed_pairs(queries, keys, starts, ends, CAUSAL: tl.constexpr):
    """Mask of the pairs whose query may attend to the key; starts .. ends - 1 is the query's sequence."""
    inside = (keys >= starts) & (keys < ends)
    if CAUSAL:
        inside = inside & (keys <= queries)
    return inside


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """total + a @ b in float32. UPCAST converts a and b too: the interpreter would multiply raw bits of bfloat16."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def sigmoid(x, FAST_MATH: tl.constexpr):
    """1 / (1 + exp(-x)). FAST_MATH: (1 + tanh(x / 2)) / 2 with one approximate instruction, error about 5e-4."""
    if FAST_MATH:
        tanh_half = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [0.5 * x], dtype=tl.float32, is_pure=True, pack=1
        )
        return 0.5 * tanh_half + 0.5
    return 1 / (1 + tl.exp(-x))


@triton.jit
def silu(x, FAST_MATH: tl.constexpr):
    """x sigmoid(x)."""
    return x * sigmoid(x, FAST_MATH)


@triton.jit
def silu_and_slope(x, FAST_MATH: tl.constexpr):
    """silu(x) and its derivative s + x s (1 - s), where s = sigmoid(x)."""
    s = sigmoid(x, FAST_MATH)
    value = x * s
    return value, s + value * (1 - s)


@triton.jit
def log2(x, FAST_MATH: tl.constexpr):
    """Base-2 logarithm of float32; FAST_MATH: with one approximate instruction, error about 2**-22."""
    if FAST_MATH:
        return tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    return tl.log2(x)


@triton.jit
def time_bucket(seconds, last_seconds, FAST_MATH: tl.constexpr):
    """The bucket of integer seconds of either sign, exactly as in time_buckets.time_buckets; int32.

    last_seconds (NUM_TIME_BUCKETS,), of the dtype of seconds: the longest time of each bucket. The scaled logarithm
    minus 0.001 rounds down to the bucket or to the one below it; one comparison with the table decides.
    """
    seconds = tl.abs(seconds)
    estimate = log2(tl.maximum(seconds, 1).to(tl.float32), FAST_MATH) * BUCKETS_PER_OCTAVE - 0.001
    bucket = tl.minimum(tl.maximum(estimate, 0.0).to(tl.int32), 127)
    return bucket + (seconds > tl.load(last_seconds + bucket)).to(tl.int32)


@triton.jit
def position_column(distances, reach, entries):
    """Column of each distance j - i in a position table; distances outside the table take its first or last column."""
    return tl.minimum(tl.maximum(distances + reach, 0), entries - 1)


@triton.jit
def dropout_factor(seed, queries, keys, head, kept_levels):
    """0 where the weight of (query, key) is dropped, else LEVELS / kept_levels: philox.dropout_factors. All int32."""
    counters = keys + queries * 0, queries + keys * 0
    draw, _, _, _ = tl.philox(seed, counters[0], counters[1], counters[0] * 0 + head, counters[0] * 0)
    kept = (draw >> 8).to(tl.int32) < kept_levels
    return tl.where(kept, LEVELS / kept_levels, 0.0)


INTERPRETED = not isinstance(silu, triton.JITFunction)  # whether TRITON_INTERPRET=1 was set when this module was loaded


def precision(dtype: torch.dtype) -> str:
    """tl.dot's input_precision: "ieee" for float32 unless torch's own products are allowed to use TF32."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"
