"""The gradient of the table from what its rows' candidates pull, item by item.

    collect(share, inputs, terms, rows, scores, pulls) -> gradient of the table, like table

Called by `sampled_softmax_triton.py`, in its terms. Candidates are sorted by item, and one program adds what one item's
candidates pull, in their order: no float atomics, equal inputs give equal bits. Tensor dimensions: n positions,
m negatives, V items, d width; B_ are tile sizes.
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


@triton.jit(do_not_specialize=["num_scored"])  # a size differs from step to step: one binary for all
def _collect(
    states, table, ordered, order, begins, score_of, lse, even, scale_of, drawn_pulls, share_of_loss, out,
    num_scored, smoothing,
    SCORES: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, B_ROWS: tl.constexpr, B_WIDTH: tl.constexpr,
    COSINE: tl.constexpr,
):  # fmt: skip
    """The gradient of one item's row: the sum over its candidates, which lie side by side in `order`.

    Candidate c < num_scored is column c % SCORES of position c // SCORES; what it pulls follows from its score. With
    SHARED, the later ones are negatives of all positions, whose pulls are there already.
    """
    program = tl.program_id(0)
    begin, end = tl.load(begins + program), tl.load(begins + program + 1)
    columns = tl.arange(0, B_WIDTH)
    wide = (columns < WIDTH)[None, :]
    gradient = tl.zeros([1, B_WIDTH], tl.float32)
    for start in range(begin, end, B_ROWS):
        steps = start + tl.arange(0, B_ROWS)
        real = steps < end
        candidates = tl.load(order + steps, mask=real, other=0)
        scored = real & (candidates < num_scored)
        rows = candidates // SCORES
        score = tl.load(score_of + candidates, mask=scored, other=float("-inf"))
        log_total = tl.load(lse + rows, mask=scored, other=0.0)
        p = tl.exp2(score - log_total) - tl.where(score > float("-inf"), 1.0, 0.0) * tl.load(
            even + rows, mask=scored, other=0.0
        )
        p -= tl.where(candidates % SCORES == 0, 1 - smoothing, 0.0)
        p = tl.where(scored, p, 0.0) * tl.load(scale_of + rows, mask=scored, other=0.0)
        s = tl.load(states + rows[:, None] * WIDTH + columns[None, :], mask=scored[:, None] & wide, other=0.0)
        gradient += tl.sum(p[:, None] * s.to(tl.float32), 0)[None, :]
        if SHARED:
            later = real & (candidates >= num_scored)
            places = (candidates - num_scored)[:, None] * WIDTH + columns[None, :]
            gradient += tl.sum(tl.load(drawn_pulls + places, mask=later[:, None] & wide, other=0.0), 0)[None, :]
    if begin < end:
        item = tl.load(ordered + begin)
        if COSINE:
            w = tl.load(table + item * WIDTH + columns[None, :], mask=wide, other=0.0)
            gradient = through_norm(gradient, w, inverse_norms(w))
        gradient *= tl.load(share_of_loss)
        tl.store(out + item * WIDTH + columns[None, :], gradient.to(out.dtype.element_ty), mask=wide)


COLLECTED = {16: 32, 32: 32, 64: 32, 128: 16, 256: 16}  # candidates of one item at once, by padded width
NUM_WARPS = 2


def collect(
    share: Tensor, inputs: SampledInputs, terms: SampledTerms, rows: Tensor, scores: Tensor, pulls: Tensor | None
) -> Tensor:
    """(V, d) in the table's dtype. rows (3, n); scores (n, 1) with pulls (m, d) of shared negatives, else (n, 1 + m).

    `share` (0-dim float32) multiplies the gradient of the sum of the losses.
    """
    gradient, width = torch.zeros_like(inputs.table), inputs.table.shape[1]
    if pulls is None:
        candidates = torch.cat((inputs.targets[:, None], inputs.negatives), 1).flatten()
    else:
        candidates = torch.cat((inputs.targets, inputs.negatives))
    ordered, order, begins = by_item(candidates, len(inputs.table))
    _collect[(len(begins) - 1,)](
        inputs.states, inputs.table, ordered, order, begins, scores, *rows, scores if pulls is None else pulls, share,
        gradient, scores.numel(), terms.label_smoothing, SCORES=scores.shape[1], SHARED=pulls is not None, WIDTH=width,
        B_ROWS=COLLECTED[padded_width(width)], B_WIDTH=padded_width(width), COSINE=terms.cosine, num_warps=NUM_WARPS,
    )  # fmt: skip
    return gradient


def by_item(candidates: Tensor, num_items: int) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates sorted by item, where each came from, and where each item's begin, without waiting for their number.

    Past the last item that occurs, `begins` stays at the end: there are as many entries as items might occur.
    """
    ordered, order = torch.sort(candidates, stable=True)
    number = torch.zeros_like(ordered)
    number[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    most = min(num_items, len(candidates))
    begins = torch.searchsorted(number, torch.arange(most + 1, device=number.device))
    return ordered, order, begins
