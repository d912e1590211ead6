"""Sampled softmax with negatives (n, m) of each position: the forward pass.

    own_forward(inputs, terms, losses, statistics, scores, grad_states) -> None, writes the last four

Called by `sampled_softmax_triton.py`, which explains the arguments. Each program loads and scores the candidates of one
position in a single pass and keeps only their scores, in units of log 2. Tensor dimensions: n positions, m negatives,
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
    states, table, targets, negatives, log_q, losses, lse, smoothing_shares, score_scales, candidate_scores,
    grad_states, num_negatives, inverse_temperature, log_count, smoothing,
    WIDTH: tl.constexpr, B_ITEMS: tl.constexpr, B_WIDTH: tl.constexpr, COSINE: tl.constexpr, LOGQ: tl.constexpr,
):  # fmt: skip
    """The loss of one position with its own negatives, its gradient in the state, and the scores of all candidates."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, B_WIDTH)
    in_width = (columns < WIDTH)[None, :]
    s = tl.load(states + row * WIDTH + columns[None, :], mask=in_width, other=0.0).to(tl.float32)  # (1, B_WIDTH)
    y = tl.load(targets + row)
    target = tl.load(table + y * WIDTH + columns[None, :], mask=in_width, other=0.0).to(tl.float32)
    scale = tl.full([1], 1.0, tl.float32) * inverse_temperature
    if COSINE:
        inverse = inverse_norms(s)
        scale *= inverse
        target *= inverse_norms(target)[:, None]
    target_score = tl.sum(s * target, 1) * scale * LOG2E  # (1,)
    candidate_scores += row * (1 + num_negatives)
    tl.store(candidate_scores + tl.arange(0, 1), target_score)
    largest, total, weighted_sum = target_score, tl.full([1], 1.0, tl.float32), target
    count, sum_scores, candidate_sum = tl.full([1], 1.0, tl.float32), target_score, target
    for start in range(0, num_negatives, B_ITEMS):
        draws = start + tl.arange(0, B_ITEMS)
        drawn = draws < num_negatives
        items = tl.load(negatives + row * num_negatives + draws, mask=drawn, other=0)
        w = tl.load(table + items[:, None] * WIDTH + columns[None, :], mask=drawn[:, None] & in_width, other=0.0)
        w = w.to(tl.float32)  # (B_ITEMS, B_WIDTH)
        if COSINE:
            w *= inverse_norms(w)[:, None]
        scores = tl.sum(w * s, 1) * scale * LOG2E  # (B_ITEMS,)
        if LOGQ:
            scores -= (tl.load(log_q + items, mask=drawn, other=0.0) + log_count) * LOG2E
        competes = drawn & (items != y)
        count += tl.sum(competes.to(tl.float32), 0)
        sum_scores += tl.sum(tl.where(competes, scores, 0.0), 0)
        candidate_sum += tl.sum(tl.where(competes[:, None], w, 0.0), 0)[None, :]
        scores = tl.where(competes, scores, float("-inf"))
        tl.store(candidate_scores + 1 + draws, scores, mask=drawn)
        new_max = tl.maximum(largest, tl.max(scores, 0))
        p = tl.exp2(scores - new_max)
        rescale = tl.exp2(largest - new_max)
        total = total * rescale + tl.sum(p, 0)
        weighted_sum = weighted_sum * rescale[:, None] + tl.sum(p[:, None] * w, 0)[None, :]
        largest = new_max
    smoothing_share = smoothing / count
    log_total = largest + tl.log2(total)
    gradient = (
        weighted_sum / total[:, None] - (1 - smoothing) * target - smoothing_share[:, None] * candidate_sum
    ) * inverse_temperature
    if COSINE:
        gradient = through_norm(gradient, s, inverse)
    position = row + tl.arange(0, 1)
    tl.store(losses + position, (log_total - (1 - smoothing) * target_score - smoothing_share * sum_scores) * LN2)
    tl.store(lse + position, log_total)
    tl.store(smoothing_shares + position, smoothing_share)
    tl.store(score_scales + position, scale)
    tl.store(grad_states + row * WIDTH + columns[None, :], gradient, mask=in_width)


OWN_ITEMS = {16: 64, 32: 64, 64: 64, 128: 32, 256: 16}  # candidates per iteration, by padded width


def own_forward(
    inputs: SampledInputs, terms: SampledTerms, losses: Tensor, statistics: Tensor, scores: Tensor, grad_states: Tensor
) -> None:
    """Write losses (n,), statistics (3, n), scores (n, 1 + m) of all candidates and grad_states (n, d)."""
    width, (count, drawn) = inputs.states.shape[1], inputs.negatives.shape
    _forward[(count,)](
        *inputs[:4], losses if inputs.log_q is None else inputs.log_q, losses, *statistics, scores, grad_states,
        drawn, 1 / terms.temperature, math.log(drawn), terms.label_smoothing,
        WIDTH=width, B_ITEMS=OWN_ITEMS[padded_width(width)], B_WIDTH=padded_width(width),
        COSINE=terms.cosine, LOGQ=inputs.log_q is not None, num_warps=4,
    )  # fmt: skip
