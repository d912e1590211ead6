"""The definition of each attention: a plain loop over sequences, in any floating dtype, without dropout.

Every faster implementation is held against this page; nothing in training calls it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .time_buckets import time_buckets


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    offsets: Tensor,
    scale: float,
    alpha: float = 1.0,
    position_table: Tensor | None = None,
    time_table: Tensor | None = None,
    times: Tensor | None = None,
    next_times: Tensor | None = None,
    causal: bool = True,
) -> Tensor:
    """HSTU's pointwise attention (Zhai et al. 2024, section 3): with b and c the two tables,

        out_i = scale * sum_j silu(alpha * q_i . k_j + b[j - i] + c[bucket(|t_i - t_j|)]) v_j

    q, k (total_tokens, heads, dqk); v (total_tokens, heads, dv); offsets (batch + 1,); result shaped like v.
    No softmax and no 1 / sqrt(d). position_table (1 or heads, num_distances(max_len, causal)); distances that it does
    not reach take its furthest entry. time_table (1 or heads, NUM_TIME_BUCKETS) goes with times (total_tokens,) int64,
    the time of each token's own event in seconds; with next_times (like times), t_i is next_times[i] for the query, as
    in HSTU's research code, where it is the time of the event to come. j runs over the sequence, or over j <= i if
    causal.
    """

    def weigh(scores: Tensor, allowed: Tensor) -> Tensor:
        return F.silu(scores) * scale * allowed

    query_times = times if next_times is None else next_times
    return _per_sequence(q * alpha, k, v, offsets, (position_table, time_table, query_times, times), causal, weigh)


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
    """Vaswani et al. 2017 on jagged sequences, with biases as in `hstu_attention`:

        out_i = sum_j softmax_j(scale * q_i . k_j + b[j - i] + c[bucket(t_i - t_j)]) v_j
    """

    def weigh(scores: Tensor, allowed: Tensor) -> Tensor:
        return scores.masked_fill(~allowed, float("-inf")).softmax(-1)

    return _per_sequence(q * scale, k, v, offsets, (position_table, time_table, times, times), causal, weigh)


def _per_sequence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    biases: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    causal: bool,
    weigh: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
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
