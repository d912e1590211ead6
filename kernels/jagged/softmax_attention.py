"""Softmax attention on packed tokens, block-diagonally masked. `reference.softmax_attention` defines the function."""

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
    time_table: Tensor | None = None,
    causal: bool = True,
    dropout: float = 0.0,
    training: bool = False,
) -> Tensor:
    """sum_j softmax_j(scale * q_i . k_j + b[j - i] + c[bucket(t_i - t_j)]) v_j over the sequence (j <= i if causal).

    q, k (total_tokens, heads, dqk); v (total_tokens, heads, dv); result shaped like v. `scale` defaults to
    1 / sqrt(dqk). position_table (1 or heads, num_distances(max_len, causal)), time_table (1 or heads,
    NUM_TIME_BUCKETS), which requires a plan with times. Dropout applies to the weights.
    """
    outputs = []
    for group, *rows in zip(plan.groups, plan.gather(q), plan.gather(k), plan.gather(v), strict=True):
        q_, k_, v_ = (part.transpose(1, 2) for part in rows)  # (rows, heads, T, d)
        bias = group.bias(position_table, time_table, causal)
        only_causal = group.single and causal and bias is None  # torch needs no explicit mask then
        mask = None if only_causal else group.mask(causal)[:, None]
        if bias is not None and mask is not None:
            mask = bias.masked_fill(~mask, float("-inf"))
        out = F.scaled_dot_product_attention(q_, k_, v_, mask, dropout if training else 0.0, only_causal, scale=scale)
        outputs.append(out.transpose(1, 2))
    return plan.scatter(outputs)
