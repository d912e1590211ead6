"""Sampled softmax in plain torch: a block of positions at a time, both gradients on the way.

What a step holds is one block of scores and, for negatives of single positions, of their vectors.

Tensor dimensions: n positions, m negatives, V items, d width; r positions of a block.
"""

import math

import torch
from torch import Tensor

from .arguments import SampledInputs, SampledTerms
from .reference import NORM_EPS

BLOCK_NUMBERS = 1 << 21  # numbers held at once: eight megabytes in float32


def in_blocks(inputs: SampledInputs, terms: SampledTerms) -> tuple[Tensor, Tensor, Tensor]:
    """The mean loss and the gradients of the summed losses in states and table."""
    states, table, targets, negatives, _ = inputs
    losses = states.new_empty(len(states))
    grad_states, grad_table = torch.empty_like(states), torch.zeros_like(table)
    each = negatives.shape[-1] * (1 if negatives.dim() == 1 else states.shape[1])
    rows = max(1, BLOCK_NUMBERS // each)
    for first in range(0, len(states), rows):
        part = slice(first, first + rows)
        drawn = negatives if negatives.dim() == 1 else negatives[part]
        block = SampledInputs(states[part], table, targets[part], drawn, inputs.log_q)
        losses[part], grad_states[part] = _block(block, terms, grad_table)
    return losses.mean(), grad_states, grad_table


def _block(inputs: SampledInputs, terms: SampledTerms, grad_table: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (r,) and gradients of the states (r, d) of some positions; adds to the gradient of the table."""
    a, of_states = _unit(inputs.states, terms.cosine)
    target, of_targets = _unit(inputs.table[inputs.targets], terms.cosine)
    vectors, of_drawn = _unit(inputs.table[inputs.negatives], terms.cosine)  # (m, d) or (r, m, d)
    own = (a * target).sum(1) / terms.temperature
    shared = inputs.negatives.dim() == 1
    scores = (a @ vectors.T if shared else torch.bmm(vectors, a[:, :, None])[:, :, 0]) / terms.temperature
    if inputs.log_q is not None:
        scores = scores - (inputs.log_q[inputs.negatives] + math.log(scores.shape[1]))
    losses, at_own, at_scores = _gradients_of_scores(own, scores, inputs, terms.label_smoothing)
    at_own, at_scores = at_own / terms.temperature, at_scores / terms.temperature
    at_states = at_own[:, None] * target
    if shared:
        at_states.addmm_(at_scores, vectors)
        at_vectors = at_scores.T @ a
    else:
        at_states += torch.bmm(at_scores[:, None], vectors)[:, 0]
        at_vectors = at_scores[:, :, None] * a[:, None]
    grad_table.index_add_(0, inputs.targets, _through_norm(at_own[:, None] * a, target, of_targets))
    pulls = _through_norm(at_vectors, vectors, of_drawn)
    grad_table.index_add_(0, inputs.negatives.flatten(), pulls.flatten(0, -2))
    return losses, _through_norm(at_states, a, of_states)


def _gradients_of_scores(
    own: Tensor, scores: Tensor, inputs: SampledInputs, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (r,) and their gradients in the scores of the target (r,) and of the negatives (r, m)."""
    collisions = inputs.negatives == inputs.targets[:, None]
    logits = torch.cat((own[:, None], scores.masked_fill(collisions, -torch.inf)), 1)
    log_total = logits.logsumexp(1)
    even = smoothing / (1 + (~collisions).sum(1)).to(own.dtype)
    total = own + scores.masked_fill(collisions, 0).sum(1)
    shares = (logits - log_total[:, None]).exp() - even[:, None]
    losses = log_total - (1 - smoothing) * own - even * total
    return losses, shares[:, 0] - (1 - smoothing), shares[:, 1:].masked_fill(collisions, 0)


def _unit(vectors: Tensor, cosine: bool) -> tuple[Tensor, Tensor | None]:
    """Vectors divided by their norms, and the norms (…, 1), where scores are cosines."""
    if not cosine:
        return vectors, None
    norms = vectors.norm(dim=-1, keepdim=True)
    return vectors / norms.clamp(min=NORM_EPS), norms


def _through_norm(gradient: Tensor, unit: Tensor, norms: Tensor | None) -> Tensor:
    """Gradient in v of a function of v / |v|: (g - v^ (v^ . g)) / |v|, without the projection where eps is the norm."""
    if norms is None:
        return gradient
    along = (unit * gradient).sum(-1, keepdim=True).masked_fill(norms < NORM_EPS, 0)
    return (gradient - unit * along) / norms.clamp(min=NORM_EPS)
