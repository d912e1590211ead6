"""Argument checks of attention; each failed check raises a KernelError with one sentence.

Sizes, dtypes and devices are free to check. The values of offsets are checked only if they are on the CPU or on
request.
"""

import torch
from torch import Tensor

from ...data.errors import KernelError
from ..jagged.packing import PackingPlan, check_offsets
from ..jagged.time_buckets import NUM_TIME_BUCKETS

CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256


def check_plan(q: Tensor, plan: PackingPlan, max_len: int | None) -> int:
    """max_len, by default the length of the plan's longest sequence. `PackingPlan.build` has checked the offsets."""
    positions = plan.positions
    if positions.shape[0] != q.shape[0]:  # len() would fix the size of a graph that is exported
        raise KernelError(f"the plan has {len(positions)} tokens but q has {len(q)}; build a plan for this batch")
    if positions.device != q.device:
        raise KernelError(f"the plan is on {positions.device} but q on {q.device}; build it with device=q.device")
    if max_len is None and plan.longest is None:
        raise KernelError("the plan's lengths are known only on its device; pass max_len")
    if max_len is None or plan.longest is None:
        return max_len or max(plan.longest or 0, 1)
    if plan.longest > max_len:
        raise KernelError(f"a sequence has {plan.longest} tokens but max_len={max_len}; truncate it or raise max_len")
    return max_len


def check_tensors(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None, max_len: int | None) -> tuple[int, Tensor]:
    """Check all tensors but the tables; return max_len, and offsets as int32."""
    if offsets is None or max_len is None:
        raise KernelError("the sequences are not given; pass a plan, or offsets together with max_len")
    if max_len < 1:
        raise KernelError(f"max_len={max_len} is below 1; give the largest number of tokens that a sequence may have")
    if q.ndim != 3 or q.shape != k.shape or v.ndim != 3 or v.shape[:2] != q.shape[:2]:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise KernelError(f"{shapes}: give q and k (total_tokens, heads, dqk) and v (total_tokens, heads, dv)")
    if 0 in (*q.shape[1:], v.shape[2]):
        raise KernelError(f"q {tuple(q.shape)} or v {tuple(v.shape)} has no heads or no width; give at least 1 of each")
    if not q.dtype == k.dtype == v.dtype:
        raise KernelError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; give all three in one dtype")
    if not q.is_floating_point() or (q.is_cuda and q.dtype not in CUDA_DTYPES):
        raise KernelError(f"q is {q.dtype} on {q.device}; give float32, float16 or bfloat16 (on a CPU, float64 too)")
    if q.is_cuda and max(q.shape[2], v.shape[2]) > MAX_HEAD_DIM:
        raise KernelError(f"heads are {q.shape[2]} and {v.shape[2]} wide; on CUDA give at most {MAX_HEAD_DIM}")
    _check_device(q, k=k, v=v, offsets=offsets)
    if offsets.ndim != 1 or not len(offsets) or offsets.dtype not in (torch.int32, torch.int64):
        shape = tuple(offsets.shape)
        raise KernelError(f"offsets are {offsets.dtype} of shape {shape}; give (batch + 1,) int32")
    return max_len, offsets.to(torch.int32)


def check_tables(
    q: Tensor, position_table: Tensor | None, time_table: Tensor | None, times: Tensor | None, next_times: Tensor | None
) -> None:
    """Check shapes, dtypes and devices of the tables and times."""
    heads = q.shape[1]
    for name, table in (("position_table", position_table), ("time_table", time_table)):
        if table is None:
            continue
        if table.ndim != 2 or len(table) not in (1, heads) or not table.shape[1] or not table.is_floating_point():
            shape = tuple(table.shape)
            raise KernelError(f"{name} is {table.dtype} of shape {shape}; give (1 or {heads}, entries), floating")
        _check_device(q, **{name: table})
    if time_table is None:
        return
    if time_table.shape[1] != NUM_TIME_BUCKETS:
        raise KernelError(f"time_table has {time_table.shape[1]} entries; give {NUM_TIME_BUCKETS}, one for each bucket")
    if times is None:
        raise KernelError("a time table needs the events' times; pass times, or build the plan with times")
    for name, seconds in (("times", times), ("next_times", next_times)):
        if seconds is None:
            continue
        if seconds.shape != q.shape[:1] or seconds.dtype != times.dtype:
            shape = tuple(seconds.shape)
            raise KernelError(f"{name} is {seconds.dtype} of shape {shape}; give ({len(q)},), in the dtype of times")
        if seconds.dtype not in (torch.int64, torch.int32):
            raise KernelError(f"{name} is {seconds.dtype}; give integer seconds, int64 or int32")
        _check_device(q, **{name: seconds})


def check_values(offsets: Tensor, total_tokens: int, max_len: int) -> None:
    """Check the values of the offsets; for offsets on CUDA this waits for the device."""
    offsets = offsets.cpu()
    check_offsets(offsets)
    if int(offsets[-1]) != total_tokens:
        raise KernelError(f"offsets end at {int(offsets[-1])} but there are {total_tokens} tokens; make the two equal")
    longest = int(offsets.diff().max()) if len(offsets) > 1 else 0
    if longest > max_len:
        raise KernelError(f"a sequence has {longest} tokens but max_len={max_len}; truncate it or raise max_len")


def _check_device(q: Tensor, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.device != q.device:
            raise KernelError(f"{name} is on {tensor.device} but q on {q.device}; move it there")
