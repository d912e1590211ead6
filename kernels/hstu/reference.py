"""The definition of HSTU's attention, in any floating dtype, without dropout.

The tests compare every faster implementation with this file; training does not call it.
"""

import torch.nn.functional as F
from torch import Tensor

from ..jagged.reference import attend_per_sequence


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
    """HSTU's pointwise attention (Zhai et al. 2024, section 3); b and c are the position table and the time table:

        out_i = scale * sum_j silu(alpha * q_i . k_j + b[j - i] + c[bucket(|t_i - t_j|)]) v_j

    q, k (total_tokens, heads, dqk); v (total_tokens, heads, dv); offsets (batch + 1,); the result is shaped like v.
    There is no softmax and no 1 / sqrt(d). position_table (1 or heads, num_distances(max_len, causal)); distances
    outside the table take its first or last entry. time_table (1 or heads, NUM_TIME_BUCKETS) requires times
    (total_tokens,) int64, the time of each token's own event in seconds. With next_times (like times), t_i of the query
    is next_times[i], the time of the next event, as in HSTU's research code. j runs over the sequence, or over j <= i
    if causal.
    """

    def weigh(scores: Tensor, allowed: Tensor) -> Tensor:
        return F.silu(scores) * scale * allowed

    query_times = times if next_times is None else next_times
    biases = (position_table, time_table, query_times, times)
    return attend_per_sequence(q * alpha, k, v, offsets, biases, causal, weigh)
