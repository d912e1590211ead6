"""Sampled softmax in Triton: the kernels load the rows of the table themselves, in one pass over the candidates.

    forward(inputs, terms) -> losses (n,), grad_states (n, d), statistics (3, n), scores
    backward(grad_scale, inputs, terms, statistics, scores) -> gradient of the table, like table

All tensors but the last are float32. grad_states holds the gradient of each position's loss in its state. The rows of
statistics are log2 of the sum of exponentials (lse), the smoothing mass of each candidate (smoothing_shares), and the
factor of each position's dot products (score_scales). scores holds the score of the target (n, 1) or, if negatives are
(n, m), the scores of all candidates (n, 1 + m). grad_scale (0-dim) multiplies the gradient of the summed losses.

This file has the kernels for negatives that all positions share; these are scored in tiles of positions by negatives.
`own_negatives_triton.py` has the kernel for negatives (n, m); `item_gradients_triton.py` sums the gradient of the
table. There are no float atomics: equal inputs give equal bits.

Scores are in units of log 2. Tensor dimensions: n positions, m negatives, V items, d width; B_ are tile sizes.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (a kernel's arguments have no Python type: pointers, and sizes on the device)

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..jagged.padded_width import padded_width
from .arguments import SampledInputs, SampledTerms
from .item_gradients_triton import table_gradient
from .norms_triton import inverse_norms, through_norm
from .own_negatives_triton import own_forward
from .score_units_triton import LN2, LOG2E, LOWEST
from .tiles import Tiles, kind_of_product, split_evenly, wanted_programs

SIZES = ["num_rows", "num_negatives", "per_split"]  # they differ between steps; one binary serves all values


@triton.jit(do_not_specialize=SIZES)
def _prepare(
    table, negatives, log_q, weights, shifts, vector_sums, num_negatives, log_count,
    WIDTH: tl.constexpr, B_ITEMS: tl.constexpr, B_WIDTH: tl.constexpr, COSINE: tl.constexpr, LOGQ: tl.constexpr,
):  # fmt: skip
    """Factor (weights) and offset (shifts) of the dot products of each negative, and the sum of a tile of vectors b."""
    draws = tl.program_id(0) * B_ITEMS + tl.arange(0, B_ITEMS)
    columns = tl.arange(0, B_WIDTH)
    drawn = draws < num_negatives
    items = tl.load(negatives + draws, mask=drawn, other=0)
    tile_mask = drawn[:, None] & (columns < WIDTH)[None, :]
    w = tl.load(table + items[:, None] * WIDTH + columns[None, :], mask=tile_mask, other=0.0).to(tl.float32)
    weight = tl.full([B_ITEMS], 1.0, tl.float32)
    if COSINE:
        weight = inverse_norms(w)
    shift = tl.zeros([B_ITEMS], tl.float32)
    if LOGQ:
        shift = (tl.load(log_q + items, mask=drawn, other=0.0) + log_count) * LOG2E
    tl.store(weights + draws, weight, mask=drawn)
    tl.store(shifts + draws, shift, mask=drawn)
    vector_sum = tl.sum(w * weight[:, None], 0)
    tl.store(vector_sums + tl.program_id(0) * WIDTH + columns, vector_sum, mask=columns < WIDTH)


@triton.jit(do_not_specialize=SIZES)
def _forward(
    states, table, targets, negatives, weights, shifts, max_scores, exp_sums, candidate_counts, score_sums,
    weighted_sums, num_rows, num_negatives, inverse_temperature,
    WIDTH: tl.constexpr, B_ROWS: tl.constexpr, B_ITEMS: tl.constexpr, B_WIDTH: tl.constexpr,
    COSINE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """For a tile of positions, over the negatives that are not the target: the maximum score m, sum 2^(z - m), their
    number, sum z, sum 2^(z - m) b. `_finish` adds the target; this saves registers in the loop.
    """
    rows = tl.program_id(0) * B_ROWS + tl.arange(0, B_ROWS)
    columns = tl.arange(0, B_WIDTH)
    valid = rows < num_rows
    inside = valid[:, None] & (columns < WIDTH)[None, :]
    places = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    s = tl.load(states + places, mask=inside, other=0.0)  # (B_ROWS, B_WIDTH)
    y = tl.load(targets + rows, mask=valid, other=0).to(tl.int32)
    scale = tl.full([B_ROWS], LOG2E, tl.float32) * inverse_temperature
    if COSINE:
        scale *= inverse_norms(s)
    largest = tl.full([B_ROWS], LOWEST, tl.float32)
    total = tl.zeros([B_ROWS], tl.float32)
    count = tl.zeros([B_ROWS], tl.float32)
    sum_scores = tl.zeros([B_ROWS], tl.float32)
    weighted_sum = tl.zeros([B_ROWS, B_WIDTH], tl.float32)
    for start in range(0, num_negatives, B_ITEMS):
        draws = start + tl.arange(0, B_ITEMS)
        drawn = draws < num_negatives
        items = tl.load(negatives + draws, mask=drawn, other=-1)
        tile_mask = drawn[:, None] & (columns < WIDTH)[None, :]
        w = tl.load(table + items[:, None] * WIDTH + columns[None, :], mask=tile_mask, other=0.0)
        weight = tl.load(weights + draws, mask=drawn, other=0.0)
        shift = tl.load(shifts + draws, mask=drawn, other=0.0)
        scores = tl.dot(s, tl.trans(w), input_precision=PRECISION)
        scores = scores * scale[:, None] * weight[None, :] - shift[None, :]
        competes = drawn[None, :] & (items.to(tl.int32)[None, :] != y[:, None])
        count += tl.sum(competes.to(tl.float32), 1)
        sum_scores += tl.sum(tl.where(competes, scores, 0.0), 1)
        scores = tl.where(competes, scores, float("-inf"))
        new_max = tl.maximum(largest, tl.max(scores, 1))
        p = tl.exp2(scores - new_max[:, None])
        rescale = tl.exp2(largest - new_max)
        total = total * rescale + tl.sum(p, 1)
        weighted_sum = tl.dot(
            (p * weight[None, :]).to(w.dtype), w, weighted_sum * rescale[:, None], input_precision=PRECISION
        )
        largest = new_max
    tl.store(max_scores + rows, largest, mask=valid)
    tl.store(exp_sums + rows, total, mask=valid)
    tl.store(candidate_counts + rows, count, mask=valid)
    tl.store(score_sums + rows, sum_scores, mask=valid)
    tl.store(weighted_sums + places, weighted_sum, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _finish(
    states, table, targets, vector_sums, max_scores, exp_sums, candidate_counts, score_sums,
    losses, lse, smoothing_shares, score_scales, target_scores, grad_states,
    num_rows, num_negatives, inverse_temperature, smoothing,
    WIDTH: tl.constexpr, B_ROWS: tl.constexpr, B_WIDTH: tl.constexpr, COSINE: tl.constexpr,
):  # fmt: skip
    """Add the target, and replace sum 2^(z - m) b in `grad_states` by the gradient of the loss in the state."""
    rows = tl.program_id(0) * B_ROWS + tl.arange(0, B_ROWS)
    columns = tl.arange(0, B_WIDTH)
    valid = rows < num_rows
    inside = valid[:, None] & (columns < WIDTH)[None, :]
    places = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    s = tl.load(states + places, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(targets + rows, mask=valid, other=0)
    target = tl.load(table + y[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    scale = tl.full([B_ROWS], 1.0, tl.float32) * inverse_temperature
    if COSINE:
        target *= inverse_norms(target)[:, None]
        scale *= inverse_norms(s)
    target_score = tl.sum(s * target, 1) * scale * LOG2E
    negatives_max = tl.load(max_scores + rows, mask=valid, other=0.0)
    largest = tl.maximum(target_score, negatives_max)
    rescale, target_weight = tl.exp2(negatives_max - largest), tl.exp2(target_score - largest)
    total = target_weight + rescale * tl.load(exp_sums + rows, mask=valid, other=0.0)
    count = 1 + tl.load(candidate_counts + rows, mask=valid, other=0.0)
    sum_scores = target_score + tl.load(score_sums + rows, mask=valid, other=0.0)
    smoothing_share = smoothing / count
    log_total = largest + tl.log2(total)
    vector_sum = tl.load(vector_sums + columns, mask=columns < WIDTH, other=0.0)[None, :]
    vector_sum += (count - num_negatives)[:, None] * target  # collisions are equal to the target's vector
    weighted_sum = (
        rescale[:, None] * tl.load(grad_states + places, mask=inside, other=0.0) + target_weight[:, None] * target
    )
    gradient = weighted_sum / total[:, None] - (1 - smoothing) * target - smoothing_share[:, None] * vector_sum
    gradient *= inverse_temperature
    if COSINE:
        gradient = through_norm(gradient, s, inverse_norms(s))
    tl.store(
        losses + rows, (log_total - (1 - smoothing) * target_score - smoothing_share * sum_scores) * LN2, mask=valid
    )
    tl.store(lse + rows, log_total, mask=valid)
    tl.store(smoothing_shares + rows, smoothing_share, mask=valid)
    tl.store(score_scales + rows, scale, mask=valid)
    tl.store(target_scores + rows, target_score, mask=valid)
    tl.store(grad_states + places, gradient, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _negative_gradients(
    states, table, targets, negatives, weights, shifts, lse, smoothing_shares, score_scales, out,
    num_rows, num_negatives, per_split,
    WIDTH: tl.constexpr, B_ROWS: tl.constexpr, B_ITEMS: tl.constexpr, B_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of each negative's vector over one part of the positions: sum_i (softmax_ij - e / |C_i|) a_i / T."""
    draws = tl.program_id(0) * B_ITEMS + tl.arange(0, B_ITEMS)
    split = tl.program_id(1)
    columns = tl.arange(0, B_WIDTH)
    drawn = draws < num_negatives
    items = tl.load(negatives + draws, mask=drawn, other=0)
    tile_mask = drawn[:, None] & (columns < WIDTH)[None, :]
    w = tl.load(table + items[:, None] * WIDTH + columns[None, :], mask=tile_mask, other=0.0)  # (B_ITEMS, B_WIDTH)
    weight = tl.load(weights + draws, mask=drawn, other=0.0) * LOG2E
    shift = tl.load(shifts + draws, mask=drawn, other=0.0)
    gradient = tl.zeros([B_ITEMS, B_WIDTH], tl.float32)
    first = split * per_split
    last = tl.minimum(first + per_split, num_rows)
    for start in range(first, last, B_ROWS):
        rows = start + tl.arange(0, B_ROWS)
        valid = rows < last
        inside = valid[:, None] & (columns < WIDTH)[None, :]
        s = tl.load(states + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)
        y = tl.load(targets + rows, mask=valid, other=-1)
        scale = tl.load(score_scales + rows, mask=valid, other=0.0)
        log_total = tl.load(lse + rows, mask=valid, other=float("inf"))
        smoothing_share = tl.load(smoothing_shares + rows, mask=valid, other=0.0)
        scores = tl.dot(w, tl.trans(s), input_precision=PRECISION) * weight[:, None] * scale[None, :] - shift[:, None]
        p = tl.exp2(scores - log_total[None, :]) - smoothing_share[None, :]
        p = tl.where(items.to(tl.int32)[:, None] != y.to(tl.int32)[None, :], p * scale[None, :], 0.0)
        gradient = tl.dot(p.to(s.dtype), s, gradient, input_precision=PRECISION)
    places = draws.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    tl.store(out + split.to(tl.int64) * num_negatives * WIDTH + places, gradient, mask=tile_mask)


# By kernel, kind of product and padded width. Chosen so that hardly any register spills on sm_90; not yet tuned by
# measurement.
TILES = {
    ("forward", "half"): {16: Tiles(64, 64, 4, 2), 32: Tiles(64, 64, 4, 2), 64: Tiles(64, 64, 8, 2),
                          128: Tiles(64, 32, 8, 2), 256: Tiles(64, 32, 8, 2)},
    ("forward", "tf32"): {16: Tiles(64, 64, 4, 2), 32: Tiles(64, 64, 4, 2), 64: Tiles(64, 32, 4, 2),
                          128: Tiles(64, 32, 8, 2), 256: Tiles(64, 16, 8, 1)},
    ("forward", "ieee"): {16: Tiles(32, 64, 4, 2), 32: Tiles(32, 64, 4, 2), 64: Tiles(32, 32, 4, 2),
                          128: Tiles(32, 64, 8, 2), 256: Tiles(16, 32, 8, 2)},
    ("negatives", "half"): {16: Tiles(64, 64, 4, 2), 32: Tiles(64, 64, 4, 2), 64: Tiles(64, 64, 4, 2),
                        128: Tiles(64, 64, 8, 2), 256: Tiles(32, 64, 8, 2)},
    ("negatives", "tf32"): {16: Tiles(64, 64, 4, 2), 32: Tiles(64, 64, 4, 2), 64: Tiles(32, 64, 4, 2),
                        128: Tiles(32, 64, 8, 2), 256: Tiles(16, 64, 8, 1)},
    ("negatives", "ieee"): {16: Tiles(64, 32, 4, 2), 32: Tiles(64, 32, 4, 2), 64: Tiles(32, 32, 4, 2),
                        128: Tiles(32, 32, 8, 2), 256: Tiles(32, 16, 8, 1)},
}  # fmt: skip
PREPARE_ITEMS, FINISH_ROWS = 32, 16  # negatives per program of _prepare, positions per program of _finish


def forward(inputs: SampledInputs, terms: SampledTerms) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See the module docstring."""
    count, drawn = len(inputs.states), inputs.negatives.shape[-1]
    shared = inputs.negatives.dim() == 1
    losses = inputs.states.new_empty(count, dtype=torch.float32)
    statistics, grad_states = losses.new_empty(3, count), losses.new_empty(inputs.states.shape)
    scores = losses.new_empty(count, 1 if shared else 1 + drawn)
    if count:
        write = _shared_forward if shared else own_forward
        write(inputs.contiguous(), terms, losses, statistics, scores, grad_states)
    return losses, grad_states, statistics, scores


def backward(
    grad_scale: Tensor, inputs: SampledInputs, terms: SampledTerms, statistics: Tensor, scores: Tensor
) -> Tensor:
    """See the module docstring."""
    if not len(inputs.states):
        return torch.zeros_like(inputs.table)
    inputs = inputs.contiguous()
    negative_gradients = _shared_negative_gradients(inputs, terms, statistics) if inputs.negatives.dim() == 1 else None
    return table_gradient(grad_scale, inputs, terms, statistics, scores, negative_gradients)


def _shared_forward(
    inputs: SampledInputs, terms: SampledTerms, losses: Tensor, statistics: Tensor, scores: Tensor, grad_states: Tensor
) -> None:
    """Write losses (n,), statistics (3, n), the targets' scores (n, 1) and grad_states (n, d); negatives are (m,)."""
    count, width, drawn = *inputs.states.shape, len(inputs.negatives)
    tiles = TILES["forward", kind_of_product(inputs.states, terms.precision)][padded_width(width)]
    weights, shifts, vector_sums = _prepare_negatives(inputs, terms)
    partials = statistics.new_empty(4, count)
    _forward[(triton.cdiv(count, tiles.rows),)](
        *inputs[:4], weights, shifts, *partials, grad_states, count, drawn, 1 / terms.temperature,
        WIDTH=width, B_ROWS=tiles.rows, B_ITEMS=tiles.items, B_WIDTH=padded_width(width), COSINE=terms.cosine,
        PRECISION=terms.precision, num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    _finish[(triton.cdiv(count, FINISH_ROWS),)](
        *inputs[:3], vector_sums.sum(0), *partials, losses, *statistics, scores, grad_states,
        count, drawn, 1 / terms.temperature, terms.label_smoothing,
        WIDTH=width, B_ROWS=FINISH_ROWS, B_WIDTH=padded_width(width), COSINE=terms.cosine, num_warps=4,
    )  # fmt: skip


def _shared_negative_gradients(inputs: SampledInputs, terms: SampledTerms, statistics: Tensor) -> Tensor:
    """(m, d) float32, not yet propagated through the vectors' norms; statistics as written by `_shared_forward`."""
    count, width, drawn = *inputs.states.shape, len(inputs.negatives)
    tiles = TILES["negatives", kind_of_product(inputs.states, terms.precision)][padded_width(width)]
    blocks = triton.cdiv(drawn, tiles.items)
    splits, per_split = split_evenly(count, tiles.rows, blocks, terms.programs or wanted_programs(inputs.states))
    partials = statistics.new_empty(splits, drawn, width)
    weights, shifts, _ = _prepare_negatives(inputs, terms)
    _negative_gradients[blocks, splits](
        *inputs[:4], weights, shifts, *statistics, partials, count, drawn, per_split, WIDTH=width, B_ROWS=tiles.rows,
        B_ITEMS=tiles.items, B_WIDTH=padded_width(width), PRECISION=terms.precision,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return partials[0] if splits == 1 else partials.sum(0)


def _prepare_negatives(inputs: SampledInputs, terms: SampledTerms) -> tuple[Tensor, Tensor, Tensor]:
    """Factors (m,) and shifts (m,) of the negatives, and sums (blocks, d) of tiles of their vectors; float32."""
    width, drawn = inputs.states.shape[1], len(inputs.negatives)
    blocks = triton.cdiv(drawn, PREPARE_ITEMS)
    factors, shifts = inputs.states.new_empty(2, drawn, dtype=torch.float32)
    vector_sums = factors.new_empty(blocks, width)
    _prepare[(blocks,)](
        inputs.table, inputs.negatives, factors if inputs.log_q is None else inputs.log_q, factors, shifts, vector_sums,
        drawn, math.log(drawn), WIDTH=width, B_ITEMS=PREPARE_ITEMS, B_WIDTH=padded_width(width), COSINE=terms.cosine,
        LOGQ=inputs.log_q is not None, num_warps=4,
    )  # fmt: skip
    return factors, shifts, vector_sums
