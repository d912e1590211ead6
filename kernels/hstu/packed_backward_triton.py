"""HSTU attention of short sequences in Triton: the backward pass, one launch and a sum of partial gradients.

Programs that own queries compute dq and the gradients of the tables; programs that own keys compute dk and dv. Each
weight is thus computed twice, and no sum spans programs. With P the weights and D the dropout factors:

    P = D silu(S)        dP = scale D (grad V^T)        dS = dP silu'(S)
    dV = scale P^T grad  dQ = alpha dS K                dK = alpha dS^T Q        db[j - i] = sum dS, dc[bucket] = sum dS

Each program writes its contribution to the tables' gradients to its row of `partials` (tiles, heads, NUM_LINES * TILE +
BUCKETS): first the sums by distance j - i, ascending, in NUM_LINES lines of TILE distances, then the sums by bucket.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..jagged.time_buckets import NUM_TIME_BUCKETS
from .arithmetic_triton import allowed_pairs, dot, dropout_factor, silu_and_slope
from .attention_call import AttentionCall, rows_contiguous
from .packed_launch import launch_arguments
from .packed_tiles_triton import VARYING, add_biases, load_tile, sequence_bounds, store_tile, tiles_in_reach

BUCKETS = tl.constexpr(NUM_TIME_BUCKETS)
Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def packed_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Gradients:
    """dq, dk, dv, contiguous, and the gradients of the two tables, in the tables' shapes and dtypes; None for no table.

    grad is like the output of `packed_forward`; q, k, v are as for that function.
    """
    grad, q, k, v = (rows_contiguous(x) for x in (grad, q, k, v))
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    arguments, constants, warps = launch_arguments(q, k, v, call)
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


def _table_gradients(
    partials: Tensor | None, num_distances: int, zero: int, call: AttentionCall
) -> tuple[Tensor | None, Tensor | None]:
    """The tables' gradients from partials (tiles, heads, distances + buckets); `zero` is the column of distance 0."""
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
    following = num_distances - zero  # number of distances >= 0
    distances = _last_columns(distances, call.position_reach + following, call.max_len - 1 + following)
    if not call.causal:
        distances = _last_columns(distances.flip(1), position.shape[1], call.position_reach + call.max_len).flip(1)
    return distances.to(position.dtype), dtime


def _last_columns(sums: Tensor, num: int, num_filled: int) -> Tensor:
    """The last `num` columns; the sum of all earlier columns is added to the first of these.

    Only the last num_filled columns of `sums` may be nonzero.
    """
    surplus = sums.shape[1] - num
    if surplus <= 0:
        return F.pad(sums, (-surplus, 0))
    if num >= num_filled:
        return sums[:, surplus:]
    return torch.cat((sums[:, : surplus + 1].sum(1, keepdim=True), sums[:, surplus + 1 :]), 1)


@triton.jit(do_not_specialize=VARYING)
def packed_backward_kernel(
    q, k, v, grad, dq, dk, dv, partials, offsets, position_table, time_table, query_times, key_times, last_seconds,
    seed, batch, total_tokens, q_token, q_head, k_token, k_head, v_token, v_head, grad_token, grad_head,
    position_stride, time_stride, reach, entries, scale, alpha, kept_levels,
    NUM_LINES: tl.constexpr, DQK: tl.constexpr, DV: tl.constexpr, BLOCK_QK: tl.constexpr, BLOCK_V: tl.constexpr,
    TILE: tl.constexpr, TILES: tl.constexpr, STEPS: tl.constexpr, CAUSAL: tl.constexpr, DETERMINISTIC: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FAST_MATH: tl.constexpr,
):  # fmt: skip
    """Program (tile, head, 0) writes dq and `partials` for its tokens as queries, (tile, head, 1) dk and dv as keys."""
    head = tl.program_id(1)
    tokens = tl.program_id(0) * TILE + tl.arange(0, TILE)
    starts, ends = sequence_bounds(offsets, tokens, batch, STEPS)
    low, high = tiles_in_reach(tokens, starts, ends, TILE, TILES)
    num_valid = tl.minimum(tl.load(offsets + batch), total_tokens)  # later tokens are not read
    if tl.program_id(2) == 0:
        _query_gradients(
            q, k, v, grad, dq, partials, position_table, time_table, query_times, key_times, last_seconds, seed, tokens,
            starts, ends, low, high, head, num_valid, total_tokens, q_token, q_head, k_token, k_head, v_token, v_head,
            grad_token, grad_head, position_stride, time_stride, reach, entries, scale, alpha, kept_levels, NUM_LINES,
            DQK, DV, BLOCK_QK, BLOCK_V, TILE, TILES, CAUSAL, DETERMINISTIC, PRECISION, UPCAST, FAST_MATH,
        )  # fmt: skip
    else:
        _key_gradients(
            q, k, v, grad, dk, dv, position_table, time_table, query_times, key_times, last_seconds, seed, tokens,
            starts, ends, low, high, head, num_valid, total_tokens, q_token, q_head, k_token, k_head, v_token, v_head,
            grad_token, grad_head, position_stride, time_stride, reach, entries, scale, alpha, kept_levels, DQK, DV,
            BLOCK_QK, BLOCK_V, TILE, CAUSAL, PRECISION, UPCAST, FAST_MATH,
        )  # fmt: skip


@triton.jit
def _query_gradients(
    q, k, v, grad, dq, partials, position_table, time_table, query_times, key_times, last_seconds, seed,
    queries, starts, ends, low, high, head, num_valid, total_tokens, q_token, q_head, k_token, k_head, v_token, v_head,
    grad_token, grad_head, position_stride, time_stride, reach, entries, scale, alpha, kept_levels,
    NUM_LINES: tl.constexpr, DQK: tl.constexpr, DV: tl.constexpr, BLOCK_QK: tl.constexpr, BLOCK_V: tl.constexpr,
    TILE: tl.constexpr, TILES: tl.constexpr, CAUSAL: tl.constexpr, DETERMINISTIC: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FAST_MATH: tl.constexpr,
):  # fmt: skip
    """dQ and the program's row of `partials`. Rows of a block are queries."""
    if CAUSAL:
        high = 1
    zeros = tl.zeros((TILE, TILE), tl.float32)
    line, bucket_line, carried, bucket_sums = _open_partials(
        partials, time_table, head, low, NUM_LINES, TILE, TILES, DETERMINISTIC
    )
    q_tile = load_tile(q, queries, head, q_token, q_head, num_valid, DQK, BLOCK_QK)
    grad_tile = load_tile(grad, queries, head, grad_token, grad_head, num_valid, DV, BLOCK_V)
    total = tl.zeros((TILE, BLOCK_QK), tl.float32)
    for tile in range(low, high):
        keys = queries + tile * TILE
        k_tile = load_tile(k, keys, head, k_token, k_head, num_valid, DQK, BLOCK_QK)
        v_tile = load_tile(v, keys, head, v_token, v_head, num_valid, DV, BLOCK_V)
        scores = dot(q_tile, tl.trans(k_tile), zeros, PRECISION, UPCAST) * alpha
        allowed = allowed_pairs(queries[:, None], keys[None, :], starts[:, None], ends[:, None], CAUSAL)
        scores, buckets = add_biases(
            scores, queries[:, None], keys[None, :], allowed, head, num_valid, position_table, position_stride,
            reach, entries, time_table, time_stride, query_times, key_times, last_seconds, FAST_MATH,
        )  # fmt: skip
        _, slope = silu_and_slope(scores, FAST_MATH)
        d_weights = dot(grad_tile, tl.trans(v_tile), zeros, PRECISION, UPCAST) * scale
        if seed is not None:
            d_weights *= dropout_factor(tl.load(seed), queries[:, None], keys[None, :], head, kept_levels)
        d_scores = tl.where(allowed, d_weights * slope, 0.0)
        total = dot(d_scores.to(k_tile.dtype), k_tile, total, PRECISION, UPCAST)
        if NUM_LINES > 0:
            completed, carry = _diagonal_sums(d_scores, TILE)
            tl.store(line + (tile + TILES) * TILE, carried + completed)
            carried = carry
        if time_table is not None:
            if DETERMINISTIC:
                bucket_sums = _add_bucket_sums(bucket_sums, d_scores, tl.where(allowed, buckets, BUCKETS))
            else:
                tl.atomic_add(bucket_line + buckets, d_scores, mask=allowed, sem="relaxed")
    store_tile(dq, total * alpha, queries, head, tl.num_programs(1), total_tokens, DQK, BLOCK_QK)
    if NUM_LINES > 0:
        for tile in range(high, NUM_LINES - TILES):
            tl.store(line + (tile + TILES) * TILE, carried)
            carried = tl.zeros((TILE,), tl.float32)
    if time_table is not None and DETERMINISTIC:
        tl.store(bucket_line + tl.arange(0, BUCKETS), bucket_sums)


@triton.jit
def _open_partials(
    partials, time_table, head, low, NUM_LINES: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
):  # fmt: skip
    """Pointers to the program's sums by distance (TILE at a time, descending) and by bucket, and zeroed accumulators.

    Zeros are written for the distances before tile `low` and, if atomics will add to them, for the buckets.
    """
    WIDTH: tl.constexpr = NUM_LINES * TILE + (0 if time_table is None else BUCKETS)
    carried = tl.zeros((TILE,), tl.float32)
    bucket_sums = tl.zeros((BUCKETS,), tl.float32)
    line = tl.arange(0, TILE)
    bucket_line = tl.arange(0, BUCKETS)
    if WIDTH > 0:
        row = partials + (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + head) * WIDTH
        line = row + (TILE - 1 - line)
        bucket_line = row + NUM_LINES * TILE
        for tile in range(0, tl.minimum(low + TILES, NUM_LINES)):
            tl.store(line + tile * TILE, carried)
        if time_table is not None and not DETERMINISTIC:
            tl.store(bucket_line + tl.arange(0, BUCKETS), bucket_sums)
            tl.debug_barrier()  # before other threads of the program add to them
    return line, bucket_line, carried, bucket_sums


@triton.jit
def _diagonal_sums(block, TILE: tl.constexpr):
    """Two (TILE,): element c sums the entries [r, n] of a square block with r - n = c (first) or c - TILE (second).

    Rotating row r by r moves every diagonal into a column; of the two diagonals that share column c, the first has the
    rows r >= c.
    """
    rows = tl.arange(0, TILE)[:, None]
    columns = tl.arange(0, TILE)[None, :]
    rotated = tl.gather(block, (rows - columns + TILE) % TILE, 1)
    on_or_below = columns <= rows
    return tl.sum(tl.where(on_or_below, rotated, 0.0), 0), tl.sum(tl.where(on_or_below, 0.0, rotated), 0)


@triton.jit
def _add_bucket_sums(sums, block, buckets):
    """sums (BUCKETS,) plus the block's entries by bucket, in a fixed order; entries with bucket BUCKETS are ignored."""
    line = tl.arange(0, BUCKETS)
    current = tl.min(tl.min(buckets, 1), 0)
    while current < BUCKETS:
        total = tl.sum(tl.sum(tl.where(buckets == current, block, 0.0), 1), 0)
        sums += tl.where(line == current, total, 0.0)
        current = tl.min(tl.min(tl.where(buckets > current, buckets, BUCKETS), 1), 0)
    return sums


@triton.jit
def _key_gradients(
    q, k, v, grad, dk, dv, position_table, time_table, query_times, key_times, last_seconds, seed,
    keys, starts, ends, low, high, head, num_valid, total_tokens, q_token, q_head, k_token, k_head, v_token, v_head,
    grad_token, grad_head, position_stride, time_stride, reach, entries, scale, alpha, kept_levels,
    DQK: tl.constexpr, DV: tl.constexpr, BLOCK_QK: tl.constexpr, BLOCK_V: tl.constexpr, TILE: tl.constexpr,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, FAST_MATH: tl.constexpr,
):  # fmt: skip
    """dK and dV. Rows of a block are keys, so that all products are transposed."""
    if CAUSAL:
        low = 0
    zeros = tl.zeros((TILE, TILE), tl.float32)
    k_tile = load_tile(k, keys, head, k_token, k_head, num_valid, DQK, BLOCK_QK)
    v_tile = load_tile(v, keys, head, v_token, v_head, num_valid, DV, BLOCK_V)
    dk_total = tl.zeros((TILE, BLOCK_QK), tl.float32)
    dv_total = tl.zeros((TILE, BLOCK_V), tl.float32)
    for tile in range(low, high):
        queries = keys + tile * TILE
        q_tile = load_tile(q, queries, head, q_token, q_head, num_valid, DQK, BLOCK_QK)
        grad_tile = load_tile(grad, queries, head, grad_token, grad_head, num_valid, DV, BLOCK_V)
        scores = dot(k_tile, tl.trans(q_tile), zeros, PRECISION, UPCAST) * alpha
        # the query is in the key's sequence
        allowed = (queries[None, :] >= starts[:, None]) & (queries[None, :] < ends[:, None])
        if CAUSAL:
            allowed = allowed & (keys[:, None] <= queries[None, :])
        scores, _ = add_biases(
            scores, queries[None, :], keys[:, None], allowed, head, num_valid, position_table, position_stride,
            reach, entries, time_table, time_stride, query_times, key_times, last_seconds, FAST_MATH,
        )  # fmt: skip
        value, slope = silu_and_slope(scores, FAST_MATH)
        weights = tl.where(allowed, value, 0.0)
        d_weights = dot(v_tile, tl.trans(grad_tile), zeros, PRECISION, UPCAST) * scale
        if seed is not None:
            factor = dropout_factor(tl.load(seed), queries[None, :], keys[:, None], head, kept_levels)
            weights *= factor
            d_weights *= factor
        d_scores = tl.where(allowed, d_weights * slope, 0.0)
        dv_total = dot(weights.to(grad_tile.dtype), grad_tile, dv_total, PRECISION, UPCAST)
        dk_total = dot(d_scores.to(q_tile.dtype), q_tile, dk_total, PRECISION, UPCAST)
    store_tile(dk, dk_total * alpha, keys, head, tl.num_programs(1), total_tokens, DQK, BLOCK_QK)
    store_tile(dv, dv_total * scale, keys, head, tl.num_programs(1), total_tokens, DV, BLOCK_V)
