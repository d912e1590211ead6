"""The training losses: softmax cross-entropy over the whole catalogue, or over a few negatives.

Tensor dimensions: n supervised positions, m negatives. Both losses are means over the n positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.sequence_model import SequenceModel


def full_softmax(model: SequenceModel, states: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(scores over the catalogue)[target]; states (n, hidden_dim), targets (n,) int64."""
    return F.cross_entropy(model.score(states), targets)


def sampled_softmax(model: SequenceModel, states: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """-log softmax(scores of the target and the negatives)[target].

    The negatives (m,) int64 are drawn uniformly, so no logQ term is due, and serve all positions: a gather of its own
    for each costs more than the encoder. A negative that is a position's target is no negative there (masked to -inf).
    """
    own, shared = model.score_sampled(states, targets, negatives)
    logits = torch.cat((own[:, None], shared), dim=1)  # (n, 1 + m)
    # outside the graph: the softmax gives these entries no gradient anyway
    logits.detach()[:, 1:].masked_fill_(targets[:, None] == negatives, -torch.inf)
    return F.cross_entropy(logits, torch.zeros_like(targets))
