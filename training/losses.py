"""The training losses over a position's target and its negatives, and the contrastive loss between two views.

Every loss is a mean over the n positions, or over those that `counted` (n,) bool names: what stands in the others is
then without effect, as long as it is finite. `own` (n,) are the scores of the targets, `negatives` (n, m) those of the
negatives, `collisions` (n, m) says which negatives are the position's target: those are no negatives there.
The loss over the whole catalogue is `kernels/losses/linear_cross_entropy.py`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_loss(losses: Tensor, counted: Tensor | None) -> Tensor:
    """The mean of losses (n,), or of the counted ones, whose number stays on the device."""
    if counted is None:
        return losses.mean()
    return torch.where(counted, losses, 0).sum() / counted.sum()


def sampled_softmax(
    own: Tensor, negatives: Tensor, collisions: Tensor, label_smoothing: float = 0.0, counted: Tensor | None = None
) -> Tensor:
    """-log softmax over the target and its negatives, of the target.

    With label_smoothing e the target counts 1 - e, and e is spread evenly over all candidates.
    """
    logits = torch.cat((own[:, None], negatives.masked_fill(collisions, -torch.inf)), dim=1)  # (n, 1 + m)
    losses = logits.logsumexp(dim=1) - (1 - label_smoothing) * own
    if label_smoothing:
        candidates = 1 + (~collisions).sum(dim=1)
        losses = losses - label_smoothing * (own + negatives.masked_fill(collisions, 0).sum(dim=1)) / candidates
    return mean_loss(losses, counted)


def corrected_by_logq(negatives: Tensor, log_q: Tensor, num_negatives: int) -> Tensor:
    """Negative scores minus log(m q_j): exp(own) + sum exp(corrected) then estimates the sum over all items.

    The estimate has no bias, because a negative j comes m q_j times on average (Bengio & Senecal 2008, section 3;
    the target's own score stays as it is, since its term is exact). "All items" are those that can be drawn: q_j > 0.
    log_q like `negatives`, or to be broadcast to it.
    """
    return negatives - (log_q + math.log(num_negatives))


def binary_cross_entropy(
    own: Tensor, negatives: Tensor, collisions: Tensor, beta: float = 1.0, counted: Tensor | None = None
) -> Tensor:
    """-(beta log sigmoid(own) + sum_j log(1 - sigmoid(negative_j))) / (1 + m).

    beta = 1 is the loss of SASRec (Kang & McAuley 2018, eq. 7); another is gBCE (Petrov & Macdonald 2023, eq. 9),
    which raises the target's probability to the power beta: `gbce_beta`.
    """
    wrong = F.softplus(negatives).masked_fill(collisions, 0).sum(dim=1)
    return mean_loss((beta * F.softplus(-own) + wrong) / (1 + negatives.shape[1]), counted)


def gbce_beta(num_negatives: int, num_items: int, calibration: float) -> float:
    """a (t (1 - 1/a) + 1/a) with sampling rate a = m / (V - 1) <= 1 (Petrov & Macdonald 2023, eq. 11).

    t = 0 gives 1, plain BCE; t = 1 gives a, calibrated probabilities.
    """
    rate = min(1.0, num_negatives / max(1, num_items - 1))
    return rate * (calibration * (1 - 1 / rate) + 1 / rate)


def contrastive_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """InfoNCE between two views (n, d) of the same n sequences, cosine similarity, both ways averaged.

    A row's positive is the same sequence's other view, its negatives are the other sequences' other views.
    """
    scores = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature
    same = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, same) + F.cross_entropy(scores.T, same)) / 2
