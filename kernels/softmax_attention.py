"""Softmax attention on packed tokens. `reference.softmax_attention` defines it; this is the block-diagonal path."""

import torch.nn.functional as F
from torch import Tensor

from .packing import PackingPlan


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    plan: PackingPlan,
    scale: float | None = None,
    position_table: Tensor | None = None,
    causal: bool = True,
    dropout: float = 0.0,
    training: bool = False,
) -> Tensor:
    """sum_j softmax_j(scale * q_i . k_j + b[j - i]) v_j over the sequence of token i (over j <= i if causal).

    q, k (total_tokens, heads, dqk); v (total_tokens, heads, dv); result shaped like v. `scale` defaults to
    1 / sqrt(dqk). position_table (1 or heads, num_distances(max_len, causal)). Dropout falls on the weights.
    """
    q, k, v = (plan.gather(x).transpose(1, 2) for x in (q, k, v))  # (rows, heads, T, d)
    mask = plan.mask(causal)[:, None]
    if position_table is not None:
        mask = plan.relative_bias(position_table, causal).masked_fill(~mask, float("-inf"))
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout if training else 0.0, scale=scale)
    return plan.scatter(out.transpose(1, 2))
