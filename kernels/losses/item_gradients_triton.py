"""The gradient of the table, as the sum over each item's candidates.

    table_gradient(grad_scale, inputs, terms, statistics, scores, negative_gradients) -> the gradient, like table

Called by `sampled_softmax_triton.py`, which explains the arguments. Candidates are sorted by item, and one program sums
the contributions of one item's candidates in this order. There are no float atomics: equal inputs give equal bits.
Tensor dimensions: n positions, m negatives, V items, d width; B_ are tile sizes.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (a kernel's arguments have no Python type: pointers, and sizes on the device)

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..jagged.padded_width import padded_width
from .arguments import SampledInputs, SampledTerms
from .norms_triton import inverse_norms, through_norm


@triton.jit(do_not_specialize=["num_scored"])  # it differs between steps; one binary serves all values
def _collect(
    states, table, ordered, order, begins, candidate_scores, lse, smoothing_shares, score_scales, negative_gradients,
    grad_scale, out, num_scored, smoothing,
    SCORES: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, B_ROWS: tl.constexpr, B_WIDTH: tl.constexpr,
    COSINE: tl.constexpr,
):  # fmt: skip
    """The gradient of one item's row: the sum over its candidates, which are consecutive in `order`.

    Candidate c < num_scored is column c % SCORES of position c // SCORES; its contribution follows from its score. With
    SHARED, the remaining candidates are negatives of all positions, whose gradients have been computed already.
    """
    program = tl.program_id(0)
    begin, end = tl.load(begins + program), tl.load(begins + program + 1)
    columns = tl.arange(0, B_WIDTH)
    in_width = (columns < WIDTH)[None, :]
    gradient = tl.zeros([1, B_WIDTH], tl.float32)
    for start in range(begin, end, B_ROWS):
        steps = start + tl.arange(0, B_ROWS)
        valid = steps < end
        candidates = tl.load(order + steps, mask=valid, other=0)
        scored = valid & (candidates < num_scored)
        rows = candidates // SCORES
        score = tl.load(candidate_scores + candidates, mask=scored, other=float("-inf"))
        log_total = tl.load(lse + rows, mask=scored, other=0.0)
        p = tl.exp2(score - log_total) - tl.where(score > float("-inf"), 1.0, 0.0) * tl.load(
            smoothing_shares + rows, mask=scored, other=0.0
        )
        p -= tl.where(candidates % SCORES == 0, 1 - smoothing, 0.0)
        p = tl.where(scored, p, 0.0) * tl.load(score_scales + rows, mask=scored, other=0.0)
        s = tl.load(states + rows[:, None] * WIDTH + columns[None, :], mask=scored[:, None] & in_width, other=0.0)
        gradient += tl.sum(p[:, None] * s.to(tl.float32), 0)[None, :]
        if SHARED:
            is_shared = valid & (candidates >= num_scored)
            places = (candidates - num_scored)[:, None] * WIDTH + columns[None, :]
            loaded = tl.load(negative_gradients + places, mask=is_shared[:, None] & in_width, other=0.0)
            gradient += tl.sum(loaded, 0)[None, :]
    if begin < end:
        item = tl.load(ordered + begin)
        if COSINE:
            w = tl.load(table + item * WIDTH + columns[None, :], mask=in_width, other=0.0)
            gradient = through_norm(gradient, w, inverse_norms(w))
        gradient *= tl.load(grad_scale)
        tl.store(out + item * WIDTH + columns[None, :], gradient.to(out.dtype.element_ty), mask=in_width)


COLLECT_ROWS = {16: 32, 32: 32, 64: 32, 128: 16, 256: 16}  # candidates of one item per iteration, by padded width
NUM_WARPS = 2


def table_gradient(
    grad_scale: Tensor,
    inputs: SampledInputs,
    terms: SampledTerms,
    statistics: Tensor,
    scores: Tensor,
    negative_gradients: Tensor | None,
) -> Tensor:
    """(V, d) in the table's dtype. statistics (3, n); scores (n, 1 + m).

    If negatives are shared, scores are (n, 1) and negative_gradients (m, d). `grad_scale` (0-dim float32) multiplies
    the gradient of the summed losses.
    """
    gradient, width = torch.zeros_like(inputs.table), inputs.table.shape[1]
    if negative_gradients is None:
        candidates = torch.cat((inputs.targets[:, None], inputs.negatives), 1).flatten()
    else:
        candidates = torch.cat((inputs.targets, inputs.negatives))
    ordered, order, begins = by_item(candidates, len(inputs.table))
    _collect[(len(begins) - 1,)](
        inputs.states, inputs.table, ordered, order, begins, scores, *statistics,
        scores if negative_gradients is None else negative_gradients, grad_scale, gradient, scores.numel(),
        terms.label_smoothing, SCORES=scores.shape[1], SHARED=negative_gradients is not None, WIDTH=width,
        B_ROWS=COLLECT_ROWS[padded_width(width)], B_WIDTH=padded_width(width), COSINE=terms.cosine, num_warps=NUM_WARPS,
    )  # fmt: skip
    return gradient


def by_item(candidates: Tensor, num_items: int) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates sorted by item, the original index of each, and where each item begins in the sorted order.

    `begins` has one entry per item that might occur, so that the host need not wait for the number of distinct items;
    the entries past the last item are the number of candidates.
    """
    ordered, order = torch.sort(candidates, stable=True)
    number = torch.zeros_like(ordered)
    number[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    max_items = min(num_items, len(candidates))
    begins = torch.searchsorted(number, torch.arange(max_items + 1, device=number.device))
    return ordered, order, begins
