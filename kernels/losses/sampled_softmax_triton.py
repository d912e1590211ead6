"""Sampled softmax in Triton: the rows of the table are fetched inside the kernels, one pass over the candidates.

    forward(inputs, terms) -> losses (n,), pull (n, d), rows (3, n), scores
    backward(share, inputs, terms, rows, scores) -> gradient of the table, like table

All but the last in float32. `pull` is the gradient of a position's loss in its state; `rows` are log2 of the sum, what
smoothing takes from each candidate, and what a dot product is multiplied by; `scores` those of the target (n, 1), or of
all candidates (n, 1 + m) where negatives are (n, m). `share` (0-dim) multiplies the gradient of the sum of the losses.

Here are the kernels for negatives that all positions share, which are scored tile against tile. Those of single
positions are in `own_negatives_triton.py`, the table's gradient is collected in `item_gradients_triton.py`. No float
atomics: equal inputs give equal bits.

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
from .item_gradients_triton import collect
from .norms_triton import inverse_norms, through_norm
from .own_negatives_triton import own_forward
from .score_units_triton import LN2, LOG2E, LOWEST
from .tiles import Tiles, kind_of_product, split_evenly, wanted_programs

SIZES = ["num_rows", "num_negatives", "per_split"]  # they differ from step to step: one binary for all


@triton.jit(do_not_specialize=SIZES)
def _prepare(
    table, negatives, log_q, weights, shifts, pools, num_negatives, log_count,
    WIDTH: tl.constexpr, B_ITEMS: tl.constexpr, B_WIDTH: tl.constexpr, COSINE: tl.constexpr, LOGQ: tl.constexpr,
):  # fmt: skip
    """What each drawn vector's dot products are multiplied by and lowered by; and the sum of a tile of vectors b."""
    draws = tl.program_id(0) * B_ITEMS + tl.arange(0, B_ITEMS)
    columns = tl.arange(0, B_WIDTH)
    drawn = draws < num_negatives
    items = tl.load(negatives + draws, mask=drawn, other=0)
    there = drawn[:, None] & (columns < WIDTH)[None, :]
    w = tl.load(table + items[:, None] * WIDTH + columns[None, :], mask=there, other=0.0).to(tl.float32)
    weight = tl.full([B_ITEMS], 1.0, tl.float32)
    if COSINE:
        weight = inverse_norms(w)
    shift = tl.zeros([B_ITEMS], tl.float32)
    if LOGQ:
        shift = (tl.load(log_q + items, mask=drawn, other=0.0) + log_count) * LOG2E
    tl.store(weights + draws, weight, mask=drawn)
    tl.store(shifts + draws, shift, mask=drawn)
    pool = tl.sum(w * weight[:, None], 0)
    tl.store(pools + tl.program_id(0) * WIDTH + columns, pool, mask=columns < WIDTH)


@triton.jit(do_not_specialize=SIZES)
def _forward(
    states, table, targets, negatives, weights, shifts, largest_of, total_of, count_of, sum_of, mean_of,
    num_rows, num_negatives, inverse_temperature,
    WIDTH: tl.constexpr, B_ROWS: tl.constexpr, B_ITEMS: tl.constexpr, B_WIDTH: tl.constexpr,
    COSINE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a tile of positions against the same negatives, those that count: the largest score m, sum 2^(z - m), their
    number, sum z, sum 2^(z - m) b. The target is for `_finish`, so that registers are left for the loop."""
    rows = tl.program_id(0) * B_ROWS + tl.arange(0, B_ROWS)
    columns = tl.arange(0, B_WIDTH)
    real = rows < num_rows
    inside = real[:, None] & (columns < WIDTH)[None, :]
    places = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    s = tl.load(states + places, mask=inside, other=0.0)  # (B_ROWS, B_WIDTH)
    y = tl.load(targets + rows, mask=real, other=0).to(tl.int32)
    scale = tl.full([B_ROWS], LOG2E, tl.float32) * inverse_temperature
    if COSINE:
        scale *= inverse_norms(s)
    largest = tl.full([B_ROWS], LOWEST, tl.float32)
    total = tl.zeros([B_ROWS], tl.float32)
    count = tl.zeros([B_ROWS], tl.float32)
    sum_scores = tl.zeros([B_ROWS], tl.float32)
    mean = tl.zeros([B_ROWS, B_WIDTH], tl.float32)
    for start in range(0, num_negatives, B_ITEMS):
        draws = start + tl.arange(0, B_ITEMS)
        drawn = draws < num_negatives
        items = tl.load(negatives + draws, mask=drawn, other=-1)
        there = drawn[:, None] & (columns < WIDTH)[None, :]
        w = tl.load(table + items[:, None] * WIDTH + columns[None, :], mask=there, other=0.0)
        weight = tl.load(weights + draws, mask=drawn, other=0.0)
        shift = tl.load(shifts + draws, mask=drawn, other=0.0)
        scores = tl.dot(s, tl.trans(w), input_precision=PRECISION)
        scores = scores * scale[:, None] * weight[None, :] - shift[None, :]
        counts = drawn[None, :] & (items.to(tl.int32)[None, :] != y[:, None])
        count += tl.sum(counts.to(tl.float32), 1)
        sum_scores += tl.sum(tl.where(counts, scores, 0.0), 1)
        scores = tl.where(counts, scores, float("-inf"))
        new = tl.maximum(largest, tl.max(scores, 1))
        p = tl.exp2(scores - new[:, None])
        fade = tl.exp2(largest - new)
        total = total * fade + tl.sum(p, 1)
        mean = tl.dot((p * weight[None, :]).to(w.dtype), w, mean * fade[:, None], input_precision=PRECISION)
        largest = new
    tl.store(largest_of + rows, largest, mask=real)
    tl.store(total_of + rows, total, mask=real)
    tl.store(count_of + rows, count, mask=real)
    tl.store(sum_of + rows, sum_scores, mask=real)
    tl.store(mean_of + places, mean, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _finish(
    states, table, targets, pool, largest_of, total_of, count_of, sum_of, losses, lse, even, scale_of, own_of, pull,
    num_rows, num_negatives, inverse_temperature, smoothing,
    WIDTH: tl.constexpr, B_ROWS: tl.constexpr, B_WIDTH: tl.constexpr, COSINE: tl.constexpr,
):  # fmt: skip
    """Adds the target, and turns `pull` from sum 2^(z - m) b into the gradient of the loss in the state."""
    rows = tl.program_id(0) * B_ROWS + tl.arange(0, B_ROWS)
    columns = tl.arange(0, B_WIDTH)
    real = rows < num_rows
    inside = real[:, None] & (columns < WIDTH)[None, :]
    places = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    s = tl.load(states + places, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(targets + rows, mask=real, other=0)
    target = tl.load(table + y[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    scale = tl.full([B_ROWS], 1.0, tl.float32) * inverse_temperature
    if COSINE:
        target *= inverse_norms(target)[:, None]
        scale *= inverse_norms(s)
    own = tl.sum(s * target, 1) * scale * LOG2E
    others = tl.load(largest_of + rows, mask=real, other=0.0)
    largest = tl.maximum(own, others)
    fade, first = tl.exp2(others - largest), tl.exp2(own - largest)
    total = first + fade * tl.load(total_of + rows, mask=real, other=0.0)
    count = 1 + tl.load(count_of + rows, mask=real, other=0.0)
    sum_scores = own + tl.load(sum_of + rows, mask=real, other=0.0)
    share = smoothing / count  # of each candidate that competes
    log_total = largest + tl.log2(total)
    everything = tl.load(pool + columns, mask=columns < WIDTH, other=0.0)[None, :]
    everything += (count - num_negatives)[:, None] * target  # whatever collides is the target's vector once more
    mean = fade[:, None] * tl.load(pull + places, mask=inside, other=0.0) + first[:, None] * target
    gradient = mean / total[:, None] - (1 - smoothing) * target - share[:, None] * everything
    gradient *= inverse_temperature
    if COSINE:
        gradient = through_norm(gradient, s, inverse_norms(s))
    tl.store(losses + rows, (log_total - (1 - smoothing) * own - share * sum_scores) * LN2, mask=real)
    tl.store(lse + rows, log_total, mask=real)
    tl.store(even + rows, share, mask=real)
    tl.store(scale_of + rows, scale, mask=real)
    tl.store(own_of + rows, own, mask=real)
    tl.store(pull + places, gradient, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _pulls(
    states, table, targets, negatives, weights, shifts, lse, even, scale_of, out, num_rows, num_negatives, per_split,
    WIDTH: tl.constexpr, B_ROWS: tl.constexpr, B_ITEMS: tl.constexpr, B_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the positions of one part pull at each drawn vector: sum_i (softmax_ij - e / |C_i|) a_i / temperature."""
    draws = tl.program_id(0) * B_ITEMS + tl.arange(0, B_ITEMS)
    split = tl.program_id(1)
    columns = tl.arange(0, B_WIDTH)
    drawn = draws < num_negatives
    items = tl.load(negatives + draws, mask=drawn, other=0)
    there = drawn[:, None] & (columns < WIDTH)[None, :]
    w = tl.load(table + items[:, None] * WIDTH + columns[None, :], mask=there, other=0.0)  # (B_ITEMS, B_WIDTH)
    weight = tl.load(weights + draws, mask=drawn, other=0.0) * LOG2E
    shift = tl.load(shifts + draws, mask=drawn, other=0.0)
    gradient = tl.zeros([B_ITEMS, B_WIDTH], tl.float32)
    first = split * per_split
    last = tl.minimum(first + per_split, num_rows)
    for start in range(first, last, B_ROWS):
        rows = start + tl.arange(0, B_ROWS)
        real = rows < last
        inside = real[:, None] & (columns < WIDTH)[None, :]
        s = tl.load(states + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)
        y = tl.load(targets + rows, mask=real, other=-1)
        scale = tl.load(scale_of + rows, mask=real, other=0.0)
        log_total = tl.load(lse + rows, mask=real, other=float("inf"))
        share = tl.load(even + rows, mask=real, other=0.0)
        scores = tl.dot(w, tl.trans(s), input_precision=PRECISION) * weight[:, None] * scale[None, :] - shift[:, None]
        p = tl.exp2(scores - log_total[None, :]) - share[None, :]
        p = tl.where(items.to(tl.int32)[:, None] != y.to(tl.int32)[None, :], p * scale[None, :], 0.0)
        gradient = tl.dot(p.to(s.dtype), s, gradient, input_precision=PRECISION)
    places = draws.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    tl.store(out + split.to(tl.int64) * num_negatives * WIDTH + places, gradient, mask=there)


# By kernel, kind of product and padded width, chosen so that next to nothing spills on sm_90; not yet tuned
# by measurement.
TILES = {
    ("forward", "half"): {16: Tiles(64, 64, 4, 2), 32: Tiles(64, 64, 4, 2), 64: Tiles(64, 64, 8, 2),
                          128: Tiles(64, 32, 8, 2), 256: Tiles(64, 32, 8, 2)},
    ("forward", "tf32"): {16: Tiles(64, 64, 4, 2), 32: Tiles(64, 64, 4, 2), 64: Tiles(64, 32, 4, 2),
                          128: Tiles(64, 32, 8, 2), 256: Tiles(64, 16, 8, 1)},
    ("forward", "ieee"): {16: Tiles(32, 64, 4, 2), 32: Tiles(32, 64, 4, 2), 64: Tiles(32, 32, 4, 2),
                          128: Tiles(32, 64, 8, 2), 256: Tiles(16, 32, 8, 2)},
    ("pulls", "half"): {16: Tiles(64, 64, 4, 2), 32: Tiles(64, 64, 4, 2), 64: Tiles(64, 64, 4, 2),
                        128: Tiles(64, 64, 8, 2), 256: Tiles(32, 64, 8, 2)},
    ("pulls", "tf32"): {16: Tiles(64, 64, 4, 2), 32: Tiles(64, 64, 4, 2), 64: Tiles(32, 64, 4, 2),
                        128: Tiles(32, 64, 8, 2), 256: Tiles(16, 64, 8, 1)},
    ("pulls", "ieee"): {16: Tiles(64, 32, 4, 2), 32: Tiles(64, 32, 4, 2), 64: Tiles(32, 32, 4, 2),
                        128: Tiles(32, 32, 8, 2), 256: Tiles(32, 16, 8, 1)},
}  # fmt: skip
PREPARED, FINISHED = 32, 16  # drawn vectors, and positions, at once


def forward(inputs: SampledInputs, terms: SampledTerms) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See the top of the file."""
    count, drawn = len(inputs.states), inputs.negatives.shape[-1]
    shared = inputs.negatives.dim() == 1
    losses = inputs.states.new_empty(count, dtype=torch.float32)
    rows, pull = losses.new_empty(3, count), losses.new_empty(inputs.states.shape)
    scores = losses.new_empty(count, 1 if shared else 1 + drawn)
    if count:
        (_shared_forward if shared else own_forward)(inputs.contiguous(), terms, losses, rows, scores, pull)
    return losses, pull, rows, scores


def backward(share: Tensor, inputs: SampledInputs, terms: SampledTerms, rows: Tensor, scores: Tensor) -> Tensor:
    """See the top of the file."""
    if not len(inputs.states):
        return torch.zeros_like(inputs.table)
    inputs = inputs.contiguous()
    pulls = _shared_pulls(inputs, terms, rows) if inputs.negatives.dim() == 1 else None
    return collect(share, inputs, terms, rows, scores, pulls)


def _shared_forward(
    inputs: SampledInputs, terms: SampledTerms, losses: Tensor, rows: Tensor, scores: Tensor, pull: Tensor
) -> None:
    """Writes losses (n,), rows (3, n), the targets' scores (n, 1) and pull (n, d); negatives are (m,)."""
    count, width, drawn = *inputs.states.shape, len(inputs.negatives)
    tiles = TILES["forward", kind_of_product(inputs.states, terms.precision)][padded_width(width)]
    weights, shifts, pools = _prepared(inputs, terms)
    parts = rows.new_empty(4, count)
    _forward[(triton.cdiv(count, tiles.rows),)](
        *inputs[:4], weights, shifts, *parts, pull, count, drawn, 1 / terms.temperature,
        WIDTH=width, B_ROWS=tiles.rows, B_ITEMS=tiles.items, B_WIDTH=padded_width(width), COSINE=terms.cosine,
        PRECISION=terms.precision, num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    _finish[(triton.cdiv(count, FINISHED),)](
        *inputs[:3], pools.sum(0), *parts, losses, *rows, scores, pull,
        count, drawn, 1 / terms.temperature, terms.label_smoothing,
        WIDTH=width, B_ROWS=FINISHED, B_WIDTH=padded_width(width), COSINE=terms.cosine, num_warps=4,
    )  # fmt: skip


def _shared_pulls(inputs: SampledInputs, terms: SampledTerms, rows: Tensor) -> Tensor:
    """(m, d) float32, before the vectors' own norms; rows as `_shared_forward` wrote them."""
    count, width, drawn = *inputs.states.shape, len(inputs.negatives)
    tiles = TILES["pulls", kind_of_product(inputs.states, terms.precision)][padded_width(width)]
    blocks = triton.cdiv(drawn, tiles.items)
    splits, per_split = split_evenly(count, tiles.rows, blocks, terms.programs or wanted_programs(inputs.states))
    parts = rows.new_empty(splits, drawn, width)
    weights, shifts, _ = _prepared(inputs, terms)
    _pulls[blocks, splits](
        *inputs[:4], weights, shifts, *rows, parts, count, drawn, per_split, WIDTH=width, B_ROWS=tiles.rows,
        B_ITEMS=tiles.items, B_WIDTH=padded_width(width), PRECISION=terms.precision,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return parts[0] if splits == 1 else parts.sum(0)


def _prepared(inputs: SampledInputs, terms: SampledTerms) -> tuple[Tensor, Tensor, Tensor]:
    """Factors (m,) and shifts (m,) of the drawn vectors, and sums (blocks, d) of tiles of them; float32."""
    width, drawn = inputs.states.shape[1], len(inputs.negatives)
    blocks = triton.cdiv(drawn, PREPARED)
    factors, shifts = inputs.states.new_empty(2, drawn, dtype=torch.float32)
    pools = factors.new_empty(blocks, width)
    _prepare[(blocks,)](
        inputs.table, inputs.negatives, factors if inputs.log_q is None else inputs.log_q, factors, shifts, pools,
        drawn, math.log(drawn), WIDTH=width, B_ITEMS=PREPARED, B_WIDTH=padded_width(width), COSINE=terms.cosine,
        LOGQ=inputs.log_q is not None, num_warps=4,
    )  # fmt: skip
    return factors, shifts, pools
