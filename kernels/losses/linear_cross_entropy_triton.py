"""Cross-entropy over the whole catalogue in Triton: tiles of logits stay on the chip.

    forward(states, table, targets, label_smoothing, precision) -> losses (n,), lse (n,), grad_states (n, d), float32
    backward(grad_scale, states, table, targets, lse, label_smoothing, precision) -> gradient of the table, like table

lse is log2 sum_j 2^{l_ij} with l = log2(e) s . w. grad_states holds the gradient of each row's loss in its state.
grad_scale (0-dim, float32) multiplies the gradient of the summed losses. There are no float atomics: equal inputs give
equal bits.

Tensor dimensions: n positions, V items, d width; B_ are tile sizes, powers of two.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (a kernel's arguments have no Python type: pointers, and sizes on the device)

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..jagged.padded_width import padded_width
from .score_units_triton import LN2, LOG2E, LOWEST
from .tiles import Tiles, kind_of_product, split_evenly, wanted_programs

PROBABILITY_SCALE = tl.constexpr(4096.0)  # unscaled, a probability of one in a million loses its digits in float16
SIZES = ["num_rows", "num_items", "num_splits", "per_split"]  # they differ between steps; one binary serves all values


@triton.jit(do_not_specialize=SIZES)
def _forward(
    states, table, max_logits, exp_sums, weighted_sums, num_rows, num_items, per_split,
    WIDTH: tl.constexpr, B_ROWS: tl.constexpr, B_ITEMS: tl.constexpr, B_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """For one tile of rows and one part of the catalogue: the maximum logit m, sum 2^(l - m), sum 2^(l - m) w_j."""
    rows = tl.program_id(0) * B_ROWS + tl.arange(0, B_ROWS)
    split = tl.program_id(1)
    columns = tl.arange(0, B_WIDTH)
    inside = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    places = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    s = tl.load(states + places, mask=inside, other=0.0)  # (B_ROWS, B_WIDTH)
    largest = tl.full([B_ROWS], LOWEST, tl.float32)
    total = tl.zeros([B_ROWS], tl.float32)
    weighted_sum = tl.zeros([B_ROWS, B_WIDTH], tl.float32)
    first = split * per_split
    last = tl.minimum(first + per_split, num_items)
    for start in range(first, last, B_ITEMS):
        items = start + tl.arange(0, B_ITEMS)
        tile_mask = (items < last)[:, None] & (columns < WIDTH)[None, :]
        w = tl.load(table + items.to(tl.int64)[:, None] * WIDTH + columns[None, :], mask=tile_mask, other=0.0)
        logits = tl.dot(s, tl.trans(w), input_precision=PRECISION) * LOG2E
        logits = tl.where((items < last)[None, :], logits, float("-inf"))
        new_max = tl.maximum(largest, tl.max(logits, 1))
        p = tl.exp2(logits - new_max[:, None])
        rescale = tl.exp2(largest - new_max)
        total = total * rescale + tl.sum(p, 1)
        weighted_sum = tl.dot(p.to(w.dtype), w, weighted_sum * rescale[:, None], input_precision=PRECISION)
        largest = new_max
    offset = split.to(tl.int64) * num_rows
    tl.store(max_logits + offset + rows, largest, mask=rows < num_rows)
    tl.store(exp_sums + offset + rows, total, mask=rows < num_rows)
    tl.store(weighted_sums + offset * WIDTH + places, weighted_sum, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _finish(
    states, table, targets, centre, max_logits, exp_sums, weighted_sums, losses, lse, grad_states,
    num_rows, num_splits, smoothing,
    WIDTH: tl.constexpr, B_ROWS: tl.constexpr, B_WIDTH: tl.constexpr,
):  # fmt: skip
    """Combine the parts of the catalogue: d loss_i / d s_i = sum_j softmax_ij w_j - (1 - e) w_y - e mean_j w_j."""
    rows = tl.program_id(0) * B_ROWS + tl.arange(0, B_ROWS)
    columns = tl.arange(0, B_WIDTH)
    valid = rows < num_rows
    inside = valid[:, None] & (columns < WIDTH)[None, :]
    places = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    largest = tl.full([B_ROWS], LOWEST, tl.float32)
    for split in range(0, num_splits):
        split_max = tl.load(max_logits + split * num_rows.to(tl.int64) + rows, mask=valid, other=0.0)
        largest = tl.maximum(largest, split_max)
    total = tl.zeros([B_ROWS], tl.float32)
    weighted_sum = tl.zeros([B_ROWS, B_WIDTH], tl.float32)
    for split in range(0, num_splits):
        offset = split * num_rows.to(tl.int64)
        weight = tl.exp2(tl.load(max_logits + offset + rows, mask=valid, other=0.0) - largest)
        total += weight * tl.load(exp_sums + offset + rows, mask=valid, other=1.0)
        weighted_sum += weight[:, None] * tl.load(weighted_sums + offset * WIDTH + places, mask=inside, other=0.0)
    s = tl.load(states + places, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(targets + rows, mask=valid, other=0)
    w = tl.load(table + y[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    centre_row = tl.load(centre + columns, mask=columns < WIDTH, other=0.0)[None, :]
    target_row = (1 - smoothing) * w + smoothing * centre_row
    log_total = largest + tl.log2(total)
    tl.store(lse + rows, log_total, mask=valid)
    tl.store(losses + rows, log_total * LN2 - tl.sum(s * target_row, 1), mask=valid)
    tl.store(grad_states + places, weighted_sum / total[:, None] - target_row, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _table_gradient(
    states, table, targets, lse, state_sum, grad_scale, out, num_rows, num_items, per_split, smoothing,
    WIDTH: tl.constexpr, B_ROWS: tl.constexpr, B_ITEMS: tl.constexpr, B_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """d sum_i loss_i / d w_j = sum_i (softmax_ij - (1 - e) [y_i = j]) s_i - e / V sum_i s_i, for one tile of items.

    With SPLIT, only the first sum over one part of the rows, without grad_scale.
    """
    items = tl.program_id(0) * B_ITEMS + tl.arange(0, B_ITEMS)
    split = tl.program_id(1)
    columns = tl.arange(0, B_WIDTH)
    inside = (items < num_items)[:, None] & (columns < WIDTH)[None, :]
    places = items.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    w = tl.load(table + places, mask=inside, other=0.0)  # (B_ITEMS, B_WIDTH)
    gradient = tl.zeros([B_ITEMS, B_WIDTH], tl.float32)
    first = split * per_split
    last = tl.minimum(first + per_split, num_rows)
    for start in range(first, last, B_ROWS):
        rows = start + tl.arange(0, B_ROWS)
        tile_mask = (rows < last)[:, None] & (columns < WIDTH)[None, :]
        s = tl.load(states + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :], mask=tile_mask, other=0.0)
        log_total = tl.load(lse + rows, mask=rows < last, other=float("inf"))  # probability 0 for rows past the end
        y = tl.load(targets + rows, mask=rows < last, other=-1)
        logits = tl.dot(w, tl.trans(s), input_precision=PRECISION) * LOG2E  # (B_ITEMS, B_ROWS)
        p = tl.exp2(logits - log_total[None, :])
        p = tl.where(items[:, None] == y[None, :], p - (1 - smoothing), p)
        gradient = tl.dot((p * PROBABILITY_SCALE).to(s.dtype), s, gradient, input_precision=PRECISION)
    gradient = gradient / PROBABILITY_SCALE
    if SPLIT:
        out += split.to(tl.int64) * num_items * WIDTH
    else:
        uniform = tl.load(state_sum + columns, mask=columns < WIDTH, other=0.0) * (smoothing / num_items)
        gradient = (gradient - uniform[None, :]) * tl.load(grad_scale)
    tl.store(out + places, gradient.to(out.dtype.element_ty), mask=inside)


# By kernel, kind of product ("half" for 16-bit inputs, else the precision) and padded width. Chosen so that hardly any
# register spills on sm_90; not yet tuned by measurement.
TILES = {
    ("forward", "half"): {16: Tiles(128, 64, 4, 3), 32: Tiles(128, 64, 4, 3), 64: Tiles(128, 64, 4, 3),
                          128: Tiles(128, 64, 8, 3), 256: Tiles(64, 64, 8, 2)},
    ("forward", "tf32"): {16: Tiles(128, 64, 4, 3), 32: Tiles(128, 64, 4, 3), 64: Tiles(64, 64, 4, 3),
                          128: Tiles(64, 64, 8, 2), 256: Tiles(64, 16, 8, 2)},
    ("forward", "ieee"): {16: Tiles(64, 64, 4, 2), 32: Tiles(64, 64, 4, 2), 64: Tiles(64, 32, 8, 2),
                          128: Tiles(32, 64, 8, 2), 256: Tiles(16, 32, 8, 1)},
    ("table", "half"): {16: Tiles(64, 128, 4, 3), 32: Tiles(64, 128, 4, 3), 64: Tiles(64, 128, 8, 3),
                        128: Tiles(64, 128, 8, 3), 256: Tiles(64, 64, 8, 2)},
    ("table", "tf32"): {16: Tiles(64, 128, 4, 3), 32: Tiles(64, 64, 4, 3), 64: Tiles(64, 64, 4, 3),
                        128: Tiles(64, 64, 8, 2), 256: Tiles(16, 64, 8, 2)},
    ("table", "ieee"): {16: Tiles(64, 64, 4, 2), 32: Tiles(32, 64, 4, 2), 64: Tiles(32, 64, 8, 2),
                        128: Tiles(64, 32, 8, 2), 256: Tiles(32, 16, 8, 1)},
}  # fmt: skip
FINISH_ROWS = 16


def forward(
    states: Tensor, table: Tensor, targets: Tensor, label_smoothing: float, precision: str, programs: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """See the module docstring; states (n, d), table (V, d), targets (n,).

    programs: target number of programs; 0: in proportion to the multiprocessors. The catalogue is split into as many
    parts as keep all multiprocessors busy: few if there are many rows. Temporary memory is about four bytes per element
    of states for each part.
    """
    states, table = states.contiguous(), table.contiguous()
    (count, width), num_items = states.shape, len(table)
    losses, lse = (states.new_empty(count, dtype=torch.float32) for _ in range(2))
    grad_states = states.new_empty(count, width, dtype=torch.float32)
    if not count:
        return losses, lse, grad_states
    tiles = TILES["forward", kind_of_product(states, precision)][padded_width(width)]
    blocks = triton.cdiv(count, tiles.rows)
    splits, per_split = split_evenly(num_items, tiles.items, blocks, programs or wanted_programs(states))
    max_logits, exp_sums = (losses.new_empty(splits, count) for _ in range(2))
    weighted_sums = grad_states.new_empty(splits, count, width)
    _forward[blocks, splits](
        states, table, max_logits, exp_sums, weighted_sums, count, num_items, per_split,
        WIDTH=width, B_ROWS=tiles.rows, B_ITEMS=tiles.items, B_WIDTH=padded_width(width), PRECISION=precision,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    centre = table.mean(0, dtype=torch.float32) if label_smoothing else grad_states.new_zeros(width)
    _finish[(triton.cdiv(count, FINISH_ROWS),)](
        states, table, targets, centre, max_logits, exp_sums, weighted_sums, losses, lse, grad_states,
        count, splits, label_smoothing, WIDTH=width, B_ROWS=FINISH_ROWS, B_WIDTH=padded_width(width), num_warps=4,
    )  # fmt: skip
    return losses, lse, grad_states


def backward(
    grad_scale: Tensor,
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    lse: Tensor,
    label_smoothing: float,
    precision: str,
    programs: int = 0,
) -> Tensor:
    """See the module docstring; one pass over the rows, or a sum over parts of the rows that run in parallel."""
    states, table = states.contiguous(), table.contiguous()
    (count, width), num_items = states.shape, len(table)
    if not count:
        return torch.zeros_like(table)
    tiles = TILES["table", kind_of_product(states, precision)][padded_width(width)]
    blocks = triton.cdiv(num_items, tiles.items)
    splits, per_split = split_evenly(count, tiles.rows, blocks, programs or wanted_programs(states))
    state_sum = states.sum(0, dtype=torch.float32)
    out = torch.empty_like(table) if splits == 1 else lse.new_empty(splits, num_items, width)
    _table_gradient[blocks, splits](
        states, table, targets, lse, state_sum, grad_scale, out, count, num_items, per_split, label_smoothing,
        WIDTH=width, B_ROWS=tiles.rows, B_ITEMS=tiles.items, B_WIDTH=padded_width(width), PRECISION=precision,
        SPLIT=splits > 1, num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    if splits == 1:
        return out
    return ((out.sum(0) - state_sum * (label_smoothing / num_items)) * grad_scale).to(table.dtype)
