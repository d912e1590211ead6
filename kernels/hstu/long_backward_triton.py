"""HSTU attention of long sequences in Triton: the backward pass. With s = alpha q_i . k_j + bias, g = d loss / d out,

    dv_j = scale sum_i silu(s) g_i          ds = scale (g_i . v_j) silu'(s)
    dk_j = alpha sum_i ds q_i               dq_i = alpha sum_j ds k_j          db, dc: sums of ds by entry

`backward_keys`: a program owns blocks of keys and loops over queries; it computes dk, dv and both tables' gradients. By
default it also adds each tile's contribution to dq to a float32 buffer with atomics: five matrix products per tile. In
deterministic mode `backward_queries` computes dq in a second pass (seven products in all), and every sum has a fixed
order.

Atomics are per tile, not per pair. A tile of ds is rotated so that each diagonal, one distance j - i, becomes a row.
One vector of atomics adds its row sums to a copy of the position table. The sums by time bucket, of which a tile has
few, are added to a copy of the time table one by one. The copies are summed at the end.

Tensor dimensions of a tile: M queries, N keys; D = dqk and V = dv padded to powers of two of at least 16.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic_triton import allowed_pairs, dot, dropout_factor, silu_and_slope
from .attention_call import AttentionCall, rows_contiguous
from .long_bias_triton import biased_scores, load_times
from .long_launch import launch_options, terms, times_arguments
from .long_queries_triton import query_gradient
from .long_rows_triton import VARYING, clear_tail, load_rows, place_of, store_rows
from .long_tables import copies_of
from .long_tiles import Tiles, key_tiles

Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def long_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall,
    tiles: Tiles | None = None, tiles_of_queries: Tiles | None = None,
) -> Gradients:  # fmt: skip
    """Like `packed_backward`, for sequences of any length. `tiles` overrides the tile table, for tests and tuning."""
    grad, q, k, v = (rows_contiguous(tensor) for tensor in (grad, q, k, v))
    biased = call.position_table is not None or call.time_table is not None
    tiles = tiles or key_tiles(q.dtype, q.shape[2], v.shape[2], biased)
    dk = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    dv = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    dq = None if call.deterministic else torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    blocks = triton.cdiv(call.max_len, tiles.block_keys)
    copies = copies_of(call, q.shape[1], blocks)
    backward_keys[(copies.groups * q.shape[1] * call.batch,)](
        grad, q, k, v, dq, dk, dv, copies.position, copies.time,
        *grad.stride()[:2], *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        groups=copies.groups, slots=copies.slots, span=call.num_distances(),
        **terms(q, v, call), **times_arguments(call, "queries", tiles.block_queries), **launch_options(tiles),
        DETERMINISTIC=call.deterministic,
    )  # fmt: skip
    clear_tail(call, dk, dv)
    dq = query_gradient(grad, q, k, v, call, tiles_of_queries) if dq is None else dq.to(q.dtype)
    return dq, dk, dv, copies.position_gradient(call), copies.time_gradient(call)


@triton.jit(do_not_specialize=["groups", "slots", "span", *VARYING])
def backward_keys(  # noqa: PLR0912, PLR0915 (one loop, in the order of the formulas)
    grad, q, k, v, dq, dk, dv, position_copies, time_copies,
    grad_token, grad_head, q_token, q_head, k_token, k_head, v_token, v_head, groups, slots, span,
    offsets, max_len, heads, position_table, position_stride, reach, entries, time_table, time_stride, last_seconds,
    alpha, scale, seed, kept_levels, query_times, key_times, lows, highs, blocks,
    DQK: tl.constexpr, DV: tl.constexpr, WIDTH_QK: tl.constexpr, WIDTH_V: tl.constexpr, SCALED: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FAST_MATH: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, DETERMINISTIC: tl.constexpr,
):  # fmt: skip
    """A program processes the blocks group, group + groups, … of keys, in tiles (N, M).

    Rows past the end of the sequence are zero, and so is their ds.
    """
    group, head, sequence = place_of(tl.program_id(0), groups, heads)
    start = tl.load(offsets + sequence)
    length = tl.minimum(tl.load(offsets + sequence + 1) - start, max_len)
    if group * BLOCK_KEYS >= length:
        return
    token = start.to(tl.int64)
    grad += token * grad_token + head * grad_head
    q += token * q_token + head * q_head
    k += token * k_token + head * k_head
    v += token * v_token + head * v_head
    dk += (token * heads + head) * DQK
    dv += (token * heads + head) * DV
    if not DETERMINISTIC:
        dq += (token * heads + head) * DQK
    slot = ((sequence * groups + group) % slots).to(tl.int64) * heads + head
    position_row = position_table
    time_row = time_table
    if HAS_POSITION:
        position_row += head * position_stride
        position_copies += slot * span
    if HAS_TIME:
        time_row += head * time_stride
        time_copies += slot * 128
        lows += sequence * blocks
        highs += sequence * blocks
    for first_key in range(group * BLOCK_KEYS, length, groups * BLOCK_KEYS):
        rows = first_key + tl.arange(0, BLOCK_KEYS)[:, None]  # positions in the sequence
        keys = load_rows(k, k_token, first_key, length, BLOCK_KEYS, DQK, WIDTH_QK, True)
        values = load_rows(v, v_token, first_key, length, BLOCK_KEYS, DV, WIDTH_V, True)
        if SCALED:
            keys = (keys * alpha).to(k.dtype.element_ty)
        key_seconds = rows
        earliest = 0
        latest = 0
        if HAS_TIME:
            key_seconds, earliest, latest = load_times(key_times + start, rows, length)
        dkeys = tl.zeros((BLOCK_KEYS, WIDTH_QK), tl.float32)
        dvalues = tl.zeros((BLOCK_KEYS, WIDTH_V), tl.float32)
        diagonal_start = first_key // BLOCK_QUERIES * BLOCK_QUERIES if CAUSAL else 0
        diagonal_end = tl.cdiv(first_key + BLOCK_KEYS, BLOCK_QUERIES) * BLOCK_QUERIES if CAUSAL else 0
        for BELOW in tl.static_range(0 if CAUSAL else 1, 2):
            first_row = diagonal_end if BELOW else diagonal_start
            end = length if BELOW else tl.minimum(diagonal_end, length)
            for first_query in range(first_row, end, BLOCK_QUERIES):
                columns = first_query + tl.arange(0, BLOCK_QUERIES)[None, :]
                queries = load_rows(q, q_token, first_query, length, BLOCK_QUERIES, DQK, WIDTH_QK, True)
                grads = load_rows(grad, grad_token, first_query, length, BLOCK_QUERIES, DV, WIDTH_V, True)
                scores, query_seconds, first, last = biased_scores(
                    keys, queries, rows, columns, key_seconds, earliest, latest, query_times, start, length, lows,
                    highs, first_query // BLOCK_QUERIES, position_row, reach, entries, time_row, last_seconds,
                    True, True, HAS_POSITION, HAS_TIME, PRECISION, UPCAST, FAST_MATH,
                )  # fmt: skip
                weights, slopes = silu_and_slope(scores, FAST_MATH)
                if not BELOW:
                    allowed = allowed_pairs(columns, rows, 0, length, CAUSAL)
                    weights = tl.where(allowed, weights, 0.0)
                    slopes = tl.where(allowed, slopes, 0.0)
                if DROPOUT:
                    factor = dropout_factor(tl.load(seed), start + columns, start + rows, head, kept_levels)
                    weights *= factor
                    slopes *= factor
                dvalues = dot(weights.to(grad.dtype.element_ty), grads, dvalues, PRECISION, UPCAST)
                dweights = tl.zeros((BLOCK_KEYS, BLOCK_QUERIES), tl.float32)
                dscores = dot(values, tl.trans(grads), dweights, PRECISION, UPCAST) * slopes
                if HAS_POSITION:
                    add_diagonals(
                        position_copies, dscores, first_key - first_query + max_len - 1, span,
                        BLOCK_KEYS, BLOCK_QUERIES, DETERMINISTIC,
                    )  # fmt: skip
                if HAS_TIME:
                    add_buckets(time_copies, dscores, query_seconds, key_seconds, first, last, last_seconds)
                dscores = dscores.to(q.dtype.element_ty)
                dkeys = dot(dscores, queries, dkeys, PRECISION, UPCAST)
                if not DETERMINISTIC:
                    dqueries = tl.zeros((BLOCK_QUERIES, WIDTH_QK), tl.float32)
                    dqueries = dot(tl.trans(dscores), keys, dqueries, PRECISION, UPCAST) * scale
                    add_rows(dq, heads * DQK, first_query, length, dqueries, BLOCK_QUERIES, DQK, WIDTH_QK)
        store_rows(dk, heads * DQK, first_key, length, dkeys * (scale * alpha), BLOCK_KEYS, DQK, WIDTH_QK)
        store_rows(dv, heads * DV, first_key, length, dvalues * scale, BLOCK_KEYS, DV, WIDTH_V)


@triton.jit
def add_diagonals(
    copy, tile, first, span, BLOCK_KEYS: tl.constexpr, BLOCK_QUERIES: tl.constexpr, ORDERED: tl.constexpr
):
    """Add the sum of each diagonal of tile (N, M) to copy[first + n - m]; M <= N.

    Row n of column m is rotated to row (n - m) mod N, so that each diagonal lies in a row.
    ORDERED: add the sums of different tiles in program order instead of an arbitrary order of the threads.
    """
    rows, columns = tl.arange(0, BLOCK_KEYS)[:, None], tl.arange(0, BLOCK_QUERIES)[None, :]
    rotated = tl.gather(tile, (rows + columns) % BLOCK_KEYS, 0)
    unwrapped = rows + columns < BLOCK_KEYS  # the other elements wrapped around: their places are N lower
    places = first + tl.arange(0, BLOCK_KEYS)
    sums = tl.sum(tl.where(unwrapped, rotated, 0.0), 1)
    tl.atomic_add(copy + places, sums, (places >= 0) & (places < span), sem="relaxed")
    places -= BLOCK_KEYS
    sums = tl.sum(tl.where(unwrapped, 0.0, rotated), 1)
    tl.atomic_add(copy + places, sums, (places >= 0) & (places < span), sem="relaxed")
    if ORDERED:
        tl.debug_barrier()


@triton.jit
def add_buckets(copy, tile, query_seconds, key_seconds, first, last, last_seconds):
    """Add the tile's sum of each bucket to copy[first .. last]; one thread adds, so that program order applies."""
    if first == last:
        tl.atomic_add(copy + first, tl.sum(tl.sum(tile, 1), 0), sem="relaxed")
    else:
        seconds = tl.abs(query_seconds - key_seconds)
        previous = -1
        for bucket in tl.range(first, last + 1, num_stages=1):
            longest = tl.load(last_seconds + bucket)
            inside = tl.where((seconds > previous) & (seconds <= longest), tile, 0.0)
            tl.atomic_add(copy + bucket, tl.sum(tl.sum(inside, 1), 0), sem="relaxed")
            previous = longest


@triton.jit
def add_rows(head, stride, first, length, tile, ROWS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """head[first + row] += tile[row] with atomics, inside length and DIM; the order of addition is arbitrary."""
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    places = head + (first + rows).to(tl.int64) * stride + columns
    tl.atomic_add(places, tile, (first + rows < length) & (columns < DIM), sem="relaxed")
