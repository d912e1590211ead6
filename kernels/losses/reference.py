"""The definition of each loss over items: plain torch with the full score matrix in memory, in any floating dtype.

The tests compare every faster implementation with this file; training does not call it. `docs/kernels.md` has the
gradients.

Tensor dimensions: n positions, V items, m negatives, d width.
"""

import math

import torch
from torch import Tensor

NORM_EPS = 1e-6  # gives a zero vector cosine 0 with every vector, and a finite gradient


def linear_cross_entropy(states: Tensor, table: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """mean_i [ logsumexp_j(s_i . w_j) - (1 - e) s_i . w_{y_i} - e mean_j(s_i . w_j) ], e = label_smoothing.

    states (n, d), table (V, d), targets (n,) int64; a scalar, NaN if n is 0.
    """
    scores = states @ table.T  # (n, V)
    own = scores.gather(1, targets[:, None])[:, 0]
    losses = scores.logsumexp(1) - (1 - label_smoothing) * own - label_smoothing * scores.mean(1)
    return losses.mean()


def sampled_softmax_loss(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    *,
    log_q: Tensor | None = None,
    temperature: float = 1.0,
    cosine: bool = False,
    label_smoothing: float = 0.0,
) -> Tensor:
    """mean_i [ logsumexp_{c in C_i} z_ic - (1 - e) z_iy - e mean_{c in C_i} z_ic ], e = label_smoothing.

    C_i consists of the target y and those of the m negatives that are not y, with multiplicity. With a = s and b = w,
    or with cosine both divided by their norms (at least NORM_EPS),

        z_iy = a_i . b_y / temperature        z_ic = a_i . b_c / temperature - log(m q_c) for a negative c

    where the last term of z_ic applies only if log_q is given: exp(z_iy) + sum_c exp(z_ic) is then an unbiased estimate
    of the sum over the catalogue (Bengio & Senecal 2008, section 3). states (n, d), table (V, d), targets (n,),
    negatives (m,) shared by all positions or (n, m), log_q (V,); a scalar, NaN if n is 0.
    """
    if cosine:
        states, table = normalised(states), normalised(table)
    drawn = negatives.expand(len(targets), -1) if negatives.dim() == 1 else negatives  # (n, m)
    own = (states * table[targets]).sum(1) / temperature
    scores = torch.einsum("nd,nmd->nm", states, table[drawn]) / temperature
    if log_q is not None:
        scores = scores - (log_q[drawn] + math.log(drawn.shape[1]))
    collisions = drawn == targets[:, None]
    logits = torch.cat((own[:, None], scores.masked_fill(collisions, -torch.inf)), 1)  # (n, 1 + m)
    total = own + scores.masked_fill(collisions, 0).sum(1)
    mean = total / (1 + (~collisions).sum(1))
    losses: Tensor = logits.logsumexp(1) - (1 - label_smoothing) * own - label_smoothing * mean
    return losses.mean()


def normalised(vectors: Tensor) -> Tensor:
    """Vectors (…, d) divided by their norms, but at least by NORM_EPS."""
    norms: Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors / norms.clamp(min=NORM_EPS)
