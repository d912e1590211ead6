"""Negatives that each position has for itself, fetched and scored a position at a time.

    own_forward(inputs, terms, losses, rows, scores, pull) -> None, writes the last four

Called by `sampled_softmax_triton.py`, in its terms. One program serves one position and passes once over its
candidates; nothing but the scores is kept. Scores are in units of log 2. Tensor dimensions: n positions, m negatives,
d width; B_ are tile sizes.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (a kernel's arguments have no Python type: pointers, and sizes on the device)

import math

import triton
import triton.language as tl
from torch import Tensor

from ..jagged.padded_width import padded_width
from .arguments import SampledInputs, SampledTerms
from .norms_triton import inverse_norms, through_norm
from .score_units_triton import LN2, LOG2E


@triton.jit(do_not_specialize=["num_negatives"])
def _forward(
    states, table, targets, negatives, log_q, losses, lse, even, scale_of, score_of, pull,
    num_negatives, inverse_temperature, log_count, smoothing,
    WIDTH: tl.constexpr, B_ITEMS: tl.constexpr, B_WIDTH: tl.constexpr, COSINE: tl.constexpr, LOGQ: tl.constexpr,
):  # fmt: skip
    """The loss of one position against negatives of its own, its gradient in the state, and every candidate's score."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, B_WIDTH)
    wide = (columns < WIDTH)[None, :]
    s = tl.load(states + row * WIDTH + columns[None, :], mask=wide, other=0.0).to(tl.float32)  # (1, B_WIDTH)
    y = tl.load(targets + row)
    target = tl.load(table + y * WIDTH + columns[None, :], mask=wide, other=0.0).to(tl.float32)
    scale = tl.full([1], 1.0, tl.float32) * inverse_temperature
    if COSINE:
        inverse = inverse_norms(s)
        scale *= inverse
        target *= inverse_norms(target)[:, None]
    own = tl.sum(s * target, 1) * scale * LOG2E  # (1,)
    score_of += row * (1 + num_negatives)
    tl.store(score_of + tl.arange(0, 1), own)
    largest, total, mean = own, tl.full([1], 1.0, tl.float32), target
    count, sum_scores, pool = tl.full([1], 1.0, tl.float32), own, target
    for start in range(0, num_negatives, B_ITEMS):
        draws = start + tl.arange(0, B_ITEMS)
        drawn = draws < num_negatives
        items = tl.load(negatives + row * num_negatives + draws, mask=drawn, other=0)
        w = tl.load(table + items[:, None] * WIDTH + columns[None, :], mask=drawn[:, None] & wide, other=0.0)
        w = w.to(tl.float32)  # (B_ITEMS, B_WIDTH)
        if COSINE:
            w *= inverse_norms(w)[:, None]
        scores = tl.sum(w * s, 1) * scale * LOG2E  # (B_ITEMS,)
        if LOGQ:
            scores -= (tl.load(log_q + items, mask=drawn, other=0.0) + log_count) * LOG2E
        counts = drawn & (items != y)
        count += tl.sum(counts.to(tl.float32), 0)
        sum_scores += tl.sum(tl.where(counts, scores, 0.0), 0)
        pool += tl.sum(tl.where(counts[:, None], w, 0.0), 0)[None, :]
        scores = tl.where(counts, scores, float("-inf"))
        tl.store(score_of + 1 + draws, scores, mask=drawn)
        new = tl.maximum(largest, tl.max(scores, 0))
        p = tl.exp2(scores - new)
        fade = tl.exp2(largest - new)
        total = total * fade + tl.sum(p, 0)
        mean = mean * fade[:, None] + tl.sum(p[:, None] * w, 0)[None, :]
        largest = new
    share = smoothing / count
    log_total = largest + tl.log2(total)
    gradient = (mean / total[:, None] - (1 - smoothing) * target - share[:, None] * pool) * inverse_temperature
    if COSINE:
        gradient = through_norm(gradient, s, inverse)
    one = row + tl.arange(0, 1)
    tl.store(losses + one, (log_total - (1 - smoothing) * own - share * sum_scores) * LN2)
    tl.store(lse + one, log_total)
    tl.store(even + one, share)
    tl.store(scale_of + one, scale)
    tl.store(pull + row * WIDTH + columns[None, :], gradient, mask=wide)


OWN_ITEMS = {16: 64, 32: 64, 64: 64, 128: 32, 256: 16}  # candidates at once, by padded width


def own_forward(
    inputs: SampledInputs, terms: SampledTerms, losses: Tensor, rows: Tensor, scores: Tensor, pull: Tensor
) -> None:
    """Writes losses (n,), rows (3, n), all candidates' scores (n, 1 + m) and pull (n, d); negatives are (n, m)."""
    width, (count, drawn) = inputs.states.shape[1], inputs.negatives.shape
    _forward[(count,)](
        *inputs[:4], losses if inputs.log_q is None else inputs.log_q, losses, *rows, scores, pull,
        drawn, 1 / terms.temperature, math.log(drawn), terms.label_smoothing,
        WIDTH=width, B_ITEMS=OWN_ITEMS[padded_width(width)], B_WIDTH=padded_width(width),
        COSINE=terms.cosine, LOGQ=inputs.log_q is not None, num_warps=4,
    )  # fmt: skip
