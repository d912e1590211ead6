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
    time_table: Tensor | None = None,
    causal: bool = True,
    dropout: float = 0.0,
    training: bool = False,
) -> Tensor:
    """scale * sum_j silu(q_i . k_j + b[j - i] + c[bucket(t_i - t_j)]) v_j over the sequence (over j <= i if causal).

    q, k (total_tokens, heads, dqk); v (total_tokens, heads, dv); result shaped like v. `scale` is 1 / max_len, the same
    for every batch. position_table (1 or heads, num_distances(max_len, causal)), time_table (1 or heads,
    NUM_TIME_BUCKETS): the plan then needs times. Dropout falls on the weights.
    """
    outputs = []
    for group, q_, k_, v_ in zip(plan.groups, plan.gather(q), plan.gather(k), plan.gather(v * scale), strict=True):
        scores = q_.transpose(1, 2) @ k_.permute(0, 2, 3, 1)  # (rows, heads, T, T)
        bias = group.bias(position_table, time_table, causal)
        weights = F.silu(scores if bias is None else scores + bias) * group.mask(causal, scores.dtype)[:, None]
        outputs.append((drop(weights, dropout, training) @ v_.transpose(1, 2)).transpose(1, 2))
    return plan.scatter(outputs)
