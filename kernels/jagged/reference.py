"""The definition of softmax attention, and the loop over sequences that every attention's definition shares; in any
floating dtype, without dropout.

The tests compare every faster implementation with this file; training does not call it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .time_buckets import time_buckets


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    offsets: Tensor,
    scale: float,
    position_table: Tensor | None = None,
    time_table: Tensor | None = None,
    times: Tensor | None = None,
    causal: bool = True,
) -> Tensor:
    """Vaswani et al. 2017 on jagged sequences, with the biases of `attend_per_sequence`:

    out_i = sum_j softmax_j(scale * q_i . k_j + b[j - i] + c[bucket(t_i - t_j)]) v_j
    """

    def weigh(scores: Tensor, allowed: Tensor) -> Tensor:
        return scores.masked_fill(~allowed, float("-inf")).softmax(-1)

    return attend_per_sequence(q * scale, k, v, offsets, (position_table, time_table, times, times), causal, weigh)


def attend_per_sequence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    biases: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    causal: bool,
    weigh: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """out_i = sum_j w_ij v_j, where `weigh` maps the scores q_i . k_j + b[j - i] + c[bucket(t_i - t_j)] to w.

    q, k (total_tokens, heads, dqk); v (total_tokens, heads, dv); offsets (batch + 1,); the result is shaped like v.
    biases: b (1 or heads, num_distances(max_len, causal)), where distances outside the table take its last entry on
    that side; c (1 or heads, NUM_TIME_BUCKETS); and the times of the queries and of the keys, (total_tokens,) int64.
    `weigh` takes the scores (heads, i, j) and the mask (i, j) of allowed pairs.
    """
    table, time_table, query_times, times = biases
    outputs = [v[:0]]
    bounds = offsets.tolist()
    for begin, end in zip(bounds, bounds[1:], strict=False):
        steps = torch.arange(end - begin, device=v.device)
        distance = steps[None, :] - steps[:, None]  # j - i
        scores = torch.einsum("ihd,jhd->hij", q[begin:end], k[begin:end])
        if table is not None:
            max_len = table.shape[1] if causal else (table.shape[1] + 1) // 2
            scores = scores + table[:, (distance + max_len - 1).clamp(0, table.shape[1] - 1)]
        if time_table is not None and query_times is not None and times is not None:
            seconds = query_times[begin:end, None] - times[None, begin:end]  # t_i - t_j
            scores = scores + time_table[:, time_buckets(seconds)]
        allowed = (distance <= 0) | (not causal)
        outputs.append(torch.einsum("hij,jhd->ihd", weigh(scores, allowed), v[begin:end]))
    return torch.cat(outputs)
