"""Training losses over the target and the negatives of each position, and the contrastive loss between two views.

Every loss is a mean over the n positions, or over the positions where `counted` (n,) bool is True; the values at the
other positions then have no effect as long as they are finite. `target_scores` is (n,), `negative_scores` (n, m), and
`collisions` (n, m) bool marks accidental hits: negatives that equal the position's target. The losses exclude them.
The loss over the whole catalogue is in `kernels/losses/linear_cross_entropy.py`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_loss(losses: Tensor, counted: Tensor | None) -> Tensor:
    """The mean of losses (n,), or of those where `counted` is True; needs no device sync."""
    if counted is None:
        return losses.mean()
    return torch.where(counted, losses, 0).sum() / counted.sum()


def sampled_softmax(
    target_scores: Tensor,
    negative_scores: Tensor,
    collisions: Tensor,
    label_smoothing: float = 0.0,
    counted: Tensor | None = None,
) -> Tensor:
    """Negative log-softmax of the target, over the target and its negatives.

    With label_smoothing e the target has weight 1 - e, and e is spread evenly over all candidates.
    """
    logits = torch.cat((target_scores[:, None], negative_scores.masked_fill(collisions, -torch.inf)), dim=1)
    losses = logits.logsumexp(dim=1) - (1 - label_smoothing) * target_scores  # logits: (n, 1 + m)
    if label_smoothing:
        num_candidates = 1 + (~collisions).sum(dim=1)
        total = target_scores + negative_scores.masked_fill(collisions, 0).sum(dim=1)
        losses = losses - label_smoothing * total / num_candidates
    return mean_loss(losses, counted)


def apply_logq_correction(negative_scores: Tensor, log_q: Tensor, num_negatives: int) -> Tensor:
    """Negative scores minus log(m q_j): exp(target) + sum exp(corrected) then estimates the sum over all items.

    The estimate is unbiased, because item j is drawn m q_j times on average (Bengio & Senecal 2008, section 3). The
    target's score is not corrected: its term is exact. "All items" are those that can be drawn, with q_j > 0.
    log_q has the shape of `negative_scores`, or broadcasts to it.
    """
    return negative_scores - (log_q + math.log(num_negatives))


def binary_cross_entropy(
    target_scores: Tensor,
    negative_scores: Tensor,
    collisions: Tensor,
    beta: float = 1.0,
    counted: Tensor | None = None,
) -> Tensor:
    """-(beta log sigmoid(target) + sum_j log(1 - sigmoid(negative_j))) / (1 + m).

    beta = 1 is the loss of SASRec (Kang & McAuley 2018, eq. 7). Any other beta, see `gbce_beta`, is gBCE (Petrov &
    Macdonald 2023, eq. 9), which raises the target's probability to the power beta.
    """
    negative_loss = F.softplus(negative_scores).masked_fill(collisions, 0).sum(dim=1)
    return mean_loss((beta * F.softplus(-target_scores) + negative_loss) / (1 + negative_scores.shape[1]), counted)


def gbce_beta(num_negatives: int, num_items: int, calibration: float) -> float:
    """beta = a (t (1 - 1/a) + 1/a) with sampling rate a = m / (V - 1) <= 1 (Petrov & Macdonald 2023, eq. 11).

    t = 0 gives 1, plain BCE; t = 1 gives a, calibrated probabilities.
    """
    rate = min(1.0, num_negatives / max(1, num_items - 1))
    return rate * (calibration * (1 - 1 / rate) + 1 / rate)


def contrastive_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """InfoNCE with cosine similarity between two views (n, d) of the same n sequences, averaged over both directions.

    The positive of a row is the same sequence in the other view; its negatives are all other sequences in that view.
    """
    scores = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature
    same = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, same) + F.cross_entropy(scores.T, same)) / 2
