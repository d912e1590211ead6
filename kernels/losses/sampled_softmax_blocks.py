"""Sampled softmax in plain torch; the forward pass computes both gradients, one block of positions at a time.

Memory: the scores of one block and, for negatives (n, m), the vectors of its negatives.

Tensor dimensions: n positions, m negatives, V items, d width; r positions in a block.
"""

import math

import torch
from torch import Tensor

from .arguments import SampledInputs, SampledTerms
from .reference import NORM_EPS

BLOCK_ELEMENTS = 1 << 21  # elements of a block: eight megabytes in float32


def in_blocks(inputs: SampledInputs, terms: SampledTerms) -> tuple[Tensor, Tensor, Tensor]:
    """The mean loss and the gradients of the summed losses in states and table."""
    states, table, targets, negatives, _ = inputs
    losses = states.new_empty(len(states))
    grad_states, grad_table = torch.empty_like(states), torch.zeros_like(table)
    elements_per_row = negatives.shape[-1] * (1 if negatives.dim() == 1 else states.shape[1])
    rows = max(1, BLOCK_ELEMENTS // elements_per_row)
    for first in range(0, len(states), rows):
        part = slice(first, first + rows)
        drawn = negatives if negatives.dim() == 1 else negatives[part]
        block = SampledInputs(states[part], table, targets[part], drawn, inputs.log_q)
        losses[part], grad_states[part] = _block(block, terms, grad_table)
    return losses.mean(), grad_states, grad_table


def _block(inputs: SampledInputs, terms: SampledTerms, grad_table: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (r,) and gradients of the states (r, d) of one block; adds the block's gradient to grad_table."""
    a, state_norms = _unit(inputs.states, terms.cosine)
    target, target_norms = _unit(inputs.table[inputs.targets], terms.cosine)
    vectors, negative_norms = _unit(inputs.table[inputs.negatives], terms.cosine)  # (m, d) or (r, m, d)
    target_scores = (a * target).sum(1) / terms.temperature
    shared = inputs.negatives.dim() == 1
    scores = (a @ vectors.T if shared else torch.bmm(vectors, a[:, :, None])[:, :, 0]) / terms.temperature
    if inputs.log_q is not None:
        scores = scores - (inputs.log_q[inputs.negatives] + math.log(scores.shape[1]))
    losses, grad_target_scores, grad_scores = _gradients_of_scores(target_scores, scores, inputs, terms.label_smoothing)
    grad_target_scores, grad_scores = grad_target_scores / terms.temperature, grad_scores / terms.temperature
    grad_a = grad_target_scores[:, None] * target
    if shared:
        grad_a.addmm_(grad_scores, vectors)
        grad_vectors = grad_scores.T @ a
    else:
        grad_a += torch.bmm(grad_scores[:, None], vectors)[:, 0]
        grad_vectors = grad_scores[:, :, None] * a[:, None]
    grad_table.index_add_(0, inputs.targets, _through_norm(grad_target_scores[:, None] * a, target, target_norms))
    grad_negatives = _through_norm(grad_vectors, vectors, negative_norms)
    grad_table.index_add_(0, inputs.negatives.flatten(), grad_negatives.flatten(0, -2))
    return losses, _through_norm(grad_a, a, state_norms)


def _gradients_of_scores(
    target_scores: Tensor, scores: Tensor, inputs: SampledInputs, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (r,) and their gradients in the scores of the targets (r,) and of the negatives (r, m)."""
    collisions = inputs.negatives == inputs.targets[:, None]
    logits = torch.cat((target_scores[:, None], scores.masked_fill(collisions, -torch.inf)), 1)
    log_total = logits.logsumexp(1)
    smoothing_shares = smoothing / (1 + (~collisions).sum(1)).to(target_scores.dtype)
    total = target_scores + scores.masked_fill(collisions, 0).sum(1)
    grad_logits = (logits - log_total[:, None]).exp() - smoothing_shares[:, None]
    losses = log_total - (1 - smoothing) * target_scores - smoothing_shares * total
    return losses, grad_logits[:, 0] - (1 - smoothing), grad_logits[:, 1:].masked_fill(collisions, 0)


def _unit(vectors: Tensor, cosine: bool) -> tuple[Tensor, Tensor | None]:
    """With cosine, vectors divided by their norms, and the norms (…, 1); else the vectors and None."""
    if not cosine:
        return vectors, None
    norms = vectors.norm(dim=-1, keepdim=True)
    return vectors / norms.clamp(min=NORM_EPS), norms


def _through_norm(gradient: Tensor, unit: Tensor, norms: Tensor | None) -> Tensor:
    """Gradient in v of a function of v / |v|: (g - v^ (v^ . g)) / |v|; without the projection if |v| is clamped."""
    if norms is None:
        return gradient
    along = (unit * gradient).sum(-1, keepdim=True).masked_fill(norms < NORM_EPS, 0)
    return (gradient - unit * along) / norms.clamp(min=NORM_EPS)
