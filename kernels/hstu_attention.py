"""HSTU attention on packed tokens. `reference.hstu_attention` defines it; this is the block-diagonal path."""

import torch.nn.functional as F
from torch import Tensor

from .dropout import dropout as drop
from .packing import PackingPlan


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    plan: PackingPlan,
    scale: float,
    position_table: Tensor | None = None,
    causal: bool = True,
    dropout: float = 0.0,
    training: bool = False,
) -> Tensor:
    """scale * sum_j silu(q_i . k_j + b[j - i]) v_j over the sequence of token i (over j <= i if causal).

    q, k (total_tokens, heads, dqk); v (total_tokens, heads, dv); result shaped like v. `scale` is 1 / max_len, the same
    for every batch. position_table (1 or heads, num_distances(max_len, causal)). Dropout falls on the weights.
    """
    q, k, v = (plan.gather(x).transpose(1, 2) for x in (q, k, v))  # (rows, heads, T, d)
    scores = q @ k.transpose(-1, -2)
    if position_table is not None:
        scores = scores + plan.relative_bias(position_table, causal)
    weights = F.silu(scores) * plan.mask(causal, scores.dtype)[:, None]
    weights = drop(weights, dropout, training)
    return plan.scatter((weights @ (v * scale)).transpose(1, 2))
