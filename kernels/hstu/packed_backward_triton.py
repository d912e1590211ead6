"""The gradients of HSTU attention of short sequences: one launch, then packed_forward_triton sums the tables' parts.

Programs that own queries sum dq and the gradients of the tables, programs that own keys sum dk and dv; so each weight
is computed twice, and nothing is added to across programs. With P the weights and D the dropout:

    P = D silu(S)        dP = scale D (grad V^T)        dS = dP silu'(S)
    dV = scale P^T grad  dQ = alpha dS K                dK = alpha dS^T Q        db[j - i] = sum dS, dc[bucket] = sum dS

The gradients of the tables go to a line of `partials` per program, (tiles, heads, NUM_LINES * TILE and then BUCKETS):
first by distance j - i, ascending, NUM_LINES tiles of it, then by bucket.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

from ..jagged.time_buckets import NUM_TIME_BUCKETS
from .arithmetic_triton import allowed_pairs, dot, dropout_factor, silu_and_slope
from .packed_tiles_triton import VARYING, add_biases, load_tile, sequence_bounds, store_tile, tiles_in_reach

BUCKETS = tl.constexpr(NUM_TIME_BUCKETS)


@triton.jit(do_not_specialize=VARYING)
def packed_backward_kernel(
    q, k, v, grad, dq, dk, dv, partials, offsets, position_table, time_table, query_times, key_times, last_seconds,
    seed, batch, total_tokens, q_token, q_head, k_token, k_head, v_token, v_head, grad_token, grad_head,
    position_stride, time_stride, reach, entries, scale, alpha, kept_levels,
    NUM_LINES: tl.constexpr, DQK: tl.constexpr, DV: tl.constexpr, BLOCK_QK: tl.constexpr, BLOCK_V: tl.constexpr,
    TILE: tl.constexpr, TILES: tl.constexpr, STEPS: tl.constexpr, CAUSAL: tl.constexpr, DETERMINISTIC: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FAST_MATH: tl.constexpr,
):  # fmt: skip
    """Program (tile, head, 0): dq of its tokens as queries, and `partials`; (tile, head, 1): dk, dv of them as keys."""
    head = tl.program_id(1)
    own = tl.program_id(0) * TILE + tl.arange(0, TILE)
    starts, ends = sequence_bounds(offsets, own, batch, STEPS)
    low, high = tiles_in_reach(own, starts, ends, TILE, TILES)
    filled = tl.minimum(tl.load(offsets + batch), total_tokens)  # what lies behind is not read
    if tl.program_id(2) == 0:
        _query_gradients(
            q, k, v, grad, dq, partials, position_table, time_table, query_times, key_times, last_seconds, seed,
            own, starts, ends, low, high, head, filled, total_tokens, q_token, q_head, k_token, k_head, v_token, v_head,
            grad_token, grad_head, position_stride, time_stride, reach, entries, scale, alpha, kept_levels,
            NUM_LINES, DQK, DV, BLOCK_QK, BLOCK_V, TILE, TILES, CAUSAL, DETERMINISTIC, PRECISION, UPCAST, FAST_MATH,
        )  # fmt: skip
    else:
        _key_gradients(
            q, k, v, grad, dk, dv, position_table, time_table, query_times, key_times, last_seconds, seed,
            own, starts, ends, low, high, head, filled, total_tokens, q_token, q_head, k_token, k_head, v_token, v_head,
            grad_token, grad_head, position_stride, time_stride, reach, entries, scale, alpha, kept_levels,
            DQK, DV, BLOCK_QK, BLOCK_V, TILE, CAUSAL, PRECISION, UPCAST, FAST_MATH,
        )  # fmt: skip


@triton.jit
def _query_gradients(
    q, k, v, grad, dq, partials, position_table, time_table, query_times, key_times, last_seconds, seed,
    queries, starts, ends, low, high, head, filled, total_tokens, q_token, q_head, k_token, k_head, v_token, v_head,
    grad_token, grad_head, position_stride, time_stride, reach, entries, scale, alpha, kept_levels,
    NUM_LINES: tl.constexpr, DQK: tl.constexpr, DV: tl.constexpr, BLOCK_QK: tl.constexpr, BLOCK_V: tl.constexpr,
    TILE: tl.constexpr, TILES: tl.constexpr, CAUSAL: tl.constexpr, DETERMINISTIC: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FAST_MATH: tl.constexpr,
):  # fmt: skip
    """dQ and the program's line of `partials`. Block by block, rows are queries."""
    if CAUSAL:
        high = 1
    nothing = tl.zeros((TILE, TILE), tl.float32)
    line, bucket_line, carried, bucket_sums = _open_partials(
        partials, time_table, head, low, NUM_LINES, TILE, TILES, DETERMINISTIC
    )
    q_tile = load_tile(q, queries, head, q_token, q_head, filled, DQK, BLOCK_QK)
    grad_tile = load_tile(grad, queries, head, grad_token, grad_head, filled, DV, BLOCK_V)
    total = tl.zeros((TILE, BLOCK_QK), tl.float32)
    for tile in range(low, high):
        keys = queries + tile * TILE
        k_tile = load_tile(k, keys, head, k_token, k_head, filled, DQK, BLOCK_QK)
        v_tile = load_tile(v, keys, head, v_token, v_head, filled, DV, BLOCK_V)
        scores = dot(q_tile, tl.trans(k_tile), nothing, PRECISION, UPCAST) * alpha
        allowed = allowed_pairs(queries[:, None], keys[None, :], starts[:, None], ends[:, None], CAUSAL)
        scores, buckets = add_biases(
            scores, queries[:, None], keys[None, :], allowed, head, filled, position_table, position_stride,
            reach, entries, time_table, time_stride, query_times, key_times, last_seconds, FAST_MATH,
        )  # fmt: skip
        _, slope = silu_and_slope(scores, FAST_MATH)
        d_weights = dot(grad_tile, tl.trans(v_tile), nothing, PRECISION, UPCAST) * scale
        if seed is not None:
            d_weights *= dropout_factor(tl.load(seed), queries[:, None], keys[None, :], head, kept_levels)
        d_scores = tl.where(allowed, d_weights * slope, 0.0)
        total = dot(d_scores.to(k_tile.dtype), k_tile, total, PRECISION, UPCAST)
        if NUM_LINES > 0:
            here, after = _diagonal_sums(d_scores, TILE)
            tl.store(line + (tile + TILES) * TILE, carried + here)
            carried = after
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
    """Pointers to the program's sums, by distance (TILE at a time, descending) and by bucket; zeros to begin with.

    Distances that lie before tile `low`, and buckets that atomics will add to, are set to zero in memory.
    """
    WIDTH: tl.constexpr = NUM_LINES * TILE + (0 if time_table is None else BUCKETS)
    carried = tl.zeros((TILE,), tl.float32)
    bucket_sums = tl.zeros((BUCKETS,), tl.float32)
    line = tl.arange(0, TILE)
    bucket_line = tl.arange(0, BUCKETS)
    if WIDTH > 0:
        mine = partials + (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + head) * WIDTH
        line = mine + (TILE - 1 - line)
        bucket_line = mine + NUM_LINES * TILE
        for tile in range(0, tl.minimum(low + TILES, NUM_LINES)):
            tl.store(line + tile * TILE, carried)
        if time_table is not None and not DETERMINISTIC:
            tl.store(bucket_line + tl.arange(0, BUCKETS), bucket_sums)
            tl.debug_barrier()  # before other threads of the program add to them
    return line, bucket_line, carried, bucket_sums


@triton.jit
def _diagonal_sums(block, TILE: tl.constexpr):
    """(TILE,), (TILE,): element c sums the entries [r, n] of a square block with r - n = c; with r - n = c - TILE.

    Rotating row r by r lays every diagonal in a column; of the two that share it, one has the rows r >= c.
    """
    rows = tl.arange(0, TILE)[:, None]
    columns = tl.arange(0, TILE)[None, :]
    rotated = tl.gather(block, (rows - columns + TILE) % TILE, 1)
    on_or_below = columns <= rows
    return tl.sum(tl.where(on_or_below, rotated, 0.0), 0), tl.sum(tl.where(on_or_below, 0.0, rotated), 0)


@triton.jit
def _add_bucket_sums(sums, block, buckets):
    """sums (BUCKETS,) plus the block's entries by bucket, in one order always; bucket BUCKETS is not counted."""
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
    keys, starts, ends, low, high, head, filled, total_tokens, q_token, q_head, k_token, k_head, v_token, v_head,
    grad_token, grad_head, position_stride, time_stride, reach, entries, scale, alpha, kept_levels,
    DQK: tl.constexpr, DV: tl.constexpr, BLOCK_QK: tl.constexpr, BLOCK_V: tl.constexpr, TILE: tl.constexpr,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, FAST_MATH: tl.constexpr,
):  # fmt: skip
    """dK and dV. Block by block, rows are keys: everything is transposed."""
    if CAUSAL:
        low = 0
    nothing = tl.zeros((TILE, TILE), tl.float32)
    k_tile = load_tile(k, keys, head, k_token, k_head, filled, DQK, BLOCK_QK)
    v_tile = load_tile(v, keys, head, v_token, v_head, filled, DV, BLOCK_V)
    dk_total = tl.zeros((TILE, BLOCK_QK), tl.float32)
    dv_total = tl.zeros((TILE, BLOCK_V), tl.float32)
    for tile in range(low, high):
        queries = keys + tile * TILE
        q_tile = load_tile(q, queries, head, q_token, q_head, filled, DQK, BLOCK_QK)
        grad_tile = load_tile(grad, queries, head, grad_token, grad_head, filled, DV, BLOCK_V)
        scores = dot(k_tile, tl.trans(q_tile), nothing, PRECISION, UPCAST) * alpha
        # the query lies in the key's sequence
        allowed = (queries[None, :] >= starts[:, None]) & (queries[None, :] < ends[:, None])
        if CAUSAL:
            allowed = allowed & (keys[:, None] <= queries[None, :])
        scores, _ = add_biases(
            scores, queries[None, :], keys[:, None], allowed, head, filled, position_table, position_stride,
            reach, entries, time_table, time_stride, query_times, key_times, last_seconds, FAST_MATH,
        )  # fmt: skip
        value, slope = silu_and_slope(scores, FAST_MATH)
        weights = tl.where(allowed, value, 0.0)
        d_weights = dot(v_tile, tl.trans(grad_tile), nothing, PRECISION, UPCAST) * scale
        if seed is not None:
            factor = dropout_factor(tl.load(seed), queries[None, :], keys[:, None], head, kept_levels)
            weights *= factor
            d_weights *= factor
        d_scores = tl.where(allowed, d_weights * slope, 0.0)
        dv_total = dot(weights.to(grad_tile.dtype), grad_tile, dv_total, PRECISION, UPCAST)
        dk_total = dot(d_scores.to(q_tile.dtype), q_tile, dk_total, PRECISION, UPCAST)
    store_tile(dk, dk_total * alpha, keys, head, tl.num_programs(1), total_tokens, DQK, BLOCK_QK)
    store_tile(dv, dv_total * scale, keys, head, tl.num_programs(1), total_tokens, DV, BLOCK_V)
