"""Scores of long sequences with position and time bias, computed inside the attention kernels, tile by tile.

A tile of queries and keys that are far apart has few distinct time buckets. `block_times` therefore writes int32 times
and the earliest and latest time of every block of tokens. From these a kernel derives the range first .. last of the
buckets in a tile. A single bucket costs one scalar load; each further bucket costs a comparison and a selection per
pair. This is exact to the second and needs neither a logarithm nor a gather.

Times are converted to int32 seconds since the earliest time of their sequence. This is exact if the sequence spans less
than 2**31 seconds (68 years), as all nonnegative 32-bit Unix times do; larger differences are clamped to 2**31 - 1.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic_triton import dot, position_column, time_bucket
from .attention_call import AttentionCall

LATEST = tl.constexpr(2**31 - 1)
FAR = tl.constexpr(2**63 - 1)
BLOCKS_PER_PROGRAM = 16
TIMES_WARPS = 4


@dataclass(frozen=True, eq=False)
class BlockTimes:
    """Times of the queries or of the keys, and their bounds in each block of the sequence."""

    seconds: Tensor  # (total_tokens,) int32, since the earliest time of the sequence
    lows: Tensor  # (batch, blocks) int32; blocks past a sequence's end are not written
    highs: Tensor


def block_times(call: AttentionCall, times: Tensor, block: int) -> BlockTimes:
    """The BlockTimes of `times`, which are call.times or call.query_times; both count from one earliest time.

    block: tokens per block, a power of two.
    """
    assert call.times is not None and call.query_times is not None
    blocks = triton.cdiv(call.max_len, block)
    seconds = torch.empty(len(times), dtype=torch.int32, device=times.device)
    bounds = torch.empty(2, call.batch, blocks, dtype=torch.int32, device=times.device)
    grid = (triton.cdiv(blocks, BLOCKS_PER_PROGRAM), call.batch)
    write_block_times[grid](
        times, call.times, call.query_times, call.offsets, call.max_len, seconds, bounds[0], bounds[1], blocks,
        TWO_SIDES=call.next_times is not None, BLOCK=block, BLOCKS=BLOCKS_PER_PROGRAM, num_warps=TIMES_WARPS,
    )  # fmt: skip
    return BlockTimes(seconds, bounds[0], bounds[1])


@triton.jit(do_not_specialize=["max_len", "blocks"])
def write_block_times(
    times, key_times, query_times, offsets, max_len, seconds, lows, highs, blocks,
    TWO_SIDES: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Each program processes BLOCKS blocks of one sequence and computes the sequence's earliest time itself."""
    sequence = tl.program_id(1).to(tl.int64)
    start = tl.load(offsets + sequence)
    length = tl.minimum(tl.load(offsets + sequence + 1) - start, max_len)
    first_block = tl.program_id(0) * BLOCKS
    if first_block * BLOCK >= length:
        return
    numbers = tl.arange(0, BLOCKS)
    steps = numbers[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]  # (BLOCKS, BLOCK)
    earliest = tl.full((BLOCKS, BLOCK), FAR, tl.int64)
    for begin in range(0, length, BLOCKS * BLOCK):
        inside = begin + steps < length
        tokens = start + begin + steps
        earliest = tl.minimum(earliest, tl.where(inside, tl.load(key_times + tokens, inside).to(tl.int64), FAR))
        if TWO_SIDES:
            earliest = tl.minimum(earliest, tl.where(inside, tl.load(query_times + tokens, inside).to(tl.int64), FAR))
    origin = tl.min(tl.min(earliest, 1), 0)
    places = first_block * BLOCK + steps
    inside = places < length
    relative = tl.load(times + start + places, inside, other=0).to(tl.int64) - origin
    relative = tl.minimum(relative, LATEST).to(tl.int32)
    tl.store(seconds + start + places, relative, inside)
    rows = sequence * blocks + first_block + numbers
    written = first_block + numbers < blocks
    tl.store(lows + rows, tl.min(tl.where(inside, relative, LATEST), 1), written)
    tl.store(highs + rows, tl.max(tl.where(inside, relative, 0), 1), written)


@triton.jit
def load_times(times, places, length):
    """Times of a block of one sequence, zero past its length, and the earliest and the latest of these times."""
    inside = places < length
    seconds = tl.load(times + places, inside, other=0)
    earliest = tl.min(tl.min(tl.where(inside, seconds, LATEST), 1), 0)
    return seconds, earliest, tl.max(tl.max(seconds, 1), 0)


@triton.jit
def bucket_range(earliest, latest, lows, highs, block, last_seconds, FAST_MATH: tl.constexpr):
    """Scalars first, last: bounds on the buckets of the pairs of a time in earliest .. latest and one in `block`.

    `block` is a block of the other side, with times lows[block] .. highs[block]. Times need not be sorted.
    """
    low = tl.load(lows + block)
    high = tl.load(highs + block)
    shortest = tl.maximum(tl.maximum(earliest - high, low - latest), 0)
    longest = tl.maximum(latest - low, high - earliest)
    first = time_bucket(shortest, last_seconds, FAST_MATH)
    return first, time_bucket(longest, last_seconds, FAST_MATH)


@triton.jit
def biased_scores(
    own, other, rows, columns, own_seconds, earliest, latest, other_times, start, length, lows, highs, block,
    position_row, reach, entries, time_row, last_seconds,
    OWN_KEYS: tl.constexpr, MASKED: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FAST_MATH: tl.constexpr,
):  # fmt: skip
    """q_i . k_j + b[j - i] + c[bucket(t_i - t_j)] for a program's own block and the other block of the current step.

    own, other: the vectors, keys and queries if OWN_KEYS, else queries and keys; rows and columns: their positions in
    the sequence; own_seconds, earliest, latest: as returned by `load_times`. other_times[start] is the sequence's
    first time; lows[block] and highs[block] bound the times of the other block. If not MASKED, the other block ends
    before `length`.

    Returns the scores, the other block's times, and the first and the last bucket that the tile can have.
    """
    scores = tl.zeros((own.shape[0], other.shape[0]), tl.float32)
    scores = dot(own, tl.trans(other), scores, PRECISION, UPCAST)
    seconds = columns
    first = block * 0
    last = first
    if HAS_TIME:
        seconds = tl.load(other_times + start + columns, (columns < length) | (not MASKED), other=0)
        first, last = bucket_range(earliest, latest, lows, highs, block, last_seconds, FAST_MATH)
    if HAS_POSITION:
        distances = rows - columns if OWN_KEYS else columns - rows  # j - i
        scores += tl.load(position_row + position_column(distances, reach, entries)).to(tl.float32)
    if HAS_TIME:
        bias = tl.load(time_row + first).to(tl.float32)
        scores += bias
        if last > first:
            between = tl.abs(own_seconds - seconds)
            for bucket in tl.range(first, last, num_stages=1):
                next_bias = tl.load(time_row + bucket + 1).to(tl.float32)
                scores += tl.where(between > tl.load(last_seconds + bucket), next_bias - bias, 0.0)
                bias = next_bias
    return scores, seconds, first, last
