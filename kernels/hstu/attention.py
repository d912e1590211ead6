"""HSTU attention on jagged sequences: one function for every device. `reference.hstu_attention` defines it.

On a CPU with a PackingPlan, as in training, it runs in plain torch with autograd. All other calls use the op
`virtualmle::hstu_attention`. torch.compile and CUDA graphs support the op: nothing in it waits for the device, and its
grids depend on sizes only. docs/kernels.md has the limits and the numerics.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..jagged.dropout import dropout as drop
from ..jagged.packing import PackingPlan
from .attention_checks import check_plan, check_tables, check_tensors, check_values
from .op import hstu_attention_op


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    plan: PackingPlan | None = None,
    offsets: Tensor | None = None,
    max_len: int | None = None,
    alpha: float = 1.0,
    position_table: Tensor | None = None,
    time_table: Tensor | None = None,
    times: Tensor | None = None,
    next_times: Tensor | None = None,
    causal: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    seed: int | Tensor | None = None,
    deterministic: bool = False,
    validate: bool = False,
) -> Tensor:
    """scale * sum_j silu(alpha q_i . k_j + b[j - i] + c[bucket(|t_i - t_j|)]) v_j over the sequence (j <= i if causal).

    q, k (total_tokens, heads, dqk); v (total_tokens, heads, dv); result shaped like v. `scale` should be 1 / max_len,
    equal for every batch. Pass the sequences as a plan, or as offsets (batch + 1,) int32 on q's device with `max_len`,
    which no sequence may exceed (default with a plan: its longest sequence). position_table (1 or heads,
    num_distances(max_len, causal)). time_table (1 or heads, NUM_TIME_BUCKETS) requires times (total_tokens,), seconds
    in int64 or int32, by default the plan's. next_times (like times) gives t_i of the queries if t_i is not the time of
    the query's own event.

    Dropout applies to the weights, in training only. `seed`, an integer or a (1,) int64 tensor on q's device,
    determines the mask; by default a seed is drawn from torch's generator of that device. deterministic: bit-identical
    results in every run (also if torch.use_deterministic_algorithms is on). Raises KernelError for arguments that do
    not match. The values of offsets are checked where this is free, in a plan and on a CPU; on CUDA only with
    `validate`, which waits for the device.
    """
    dropout = dropout if training else 0.0
    if plan is not None:
        max_len = check_plan(q, plan, max_len)
        if not q.is_cuda and seed is None and times is None and next_times is None:
            q = q if alpha == 1.0 else q * alpha
            return _packed(q, k, v, plan, scale, position_table, time_table, causal, dropout)
        offsets = plan.device_offsets
        times = _times_of(plan, next_times) if times is None else times
    max_len, offsets = check_tensors(q, k, v, offsets, max_len)
    check_tables(q, position_table, time_table, times, next_times)
    if validate:
        check_values(offsets, len(q), max_len)
    key = _mask_key(q, seed) if dropout else None
    deterministic = deterministic or torch.are_deterministic_algorithms_enabled()
    if time_table is None:
        times = next_times = None
    out: Tensor = hstu_attention_op(
        q, k, v, offsets, position_table, time_table, times, next_times, key, max_len, scale, alpha, causal, dropout,
        deterministic,
    )  # fmt: skip
    return out


def _times_of(plan: PackingPlan, next_times: Tensor | None) -> Tensor | None:
    """The plan's times, relative to each sequence's first event unless there are next_times, which are absolute."""
    return plan.relative_times if next_times is None else plan.times


def _packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: PackingPlan,
    scale: float,
    position_table: Tensor | None,
    time_table: Tensor | None,
    causal: bool,
    dropout: float,
) -> Tensor:
    """The formula on the rows of the plan; q is already multiplied by alpha."""
    outputs = []
    for group, q_, k_, v_ in zip(plan.groups, plan.gather(q), plan.gather(k), plan.gather(v * scale), strict=True):
        scores = q_.transpose(1, 2) @ k_.permute(0, 2, 3, 1)  # (rows, heads, T, T)
        bias = group.bias(position_table, time_table, causal)
        weights = F.silu(scores if bias is None else scores + bias) * group.mask(causal, scores.dtype)[:, None]
        outputs.append((drop(weights, dropout, True) @ v_.transpose(1, 2)).transpose(1, 2))
    return plan.scatter(outputs)


def _mask_key(q: Tensor, seed: int | Tensor | None) -> Tensor:
    """The seed as (1,) int64, created on q's device: copying a number from the host would wait for the device."""
    if isinstance(seed, Tensor):
        return seed
    if seed is not None:
        return torch.full((1,), seed, dtype=torch.int64, device=q.device)
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=q.device)
