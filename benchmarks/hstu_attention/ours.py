"""What this repository has: the public op, and C3, the packed path in plain torch that also runs on CPUs."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from virtualmle.kernels.hstu.attention import _packed, hstu_attention
from virtualmle.kernels.jagged.packing import PackingPlan
from virtualmle.kernels.jagged.threads import threads_for

from .implementation import Implementation, Leaves, compiles_slowly, squares_too_large
from .shapes import Problem

OURS = "ours"
DETERMINISTIC = "ours deterministic"
PACKED = "C3 packed torch"


def plan_of(problem: Problem) -> PackingPlan:
    """The packing of a batch: made once, it serves every layer."""
    if "plan" not in problem.cache:
        problem.cache["plan"] = PackingPlan.build(problem.offsets, problem.times.device, problem.times)
    plan = problem.cache["plan"]
    assert isinstance(plan, PackingPlan)
    return plan


def tables_of(problem: Problem, leaves: Leaves) -> dict[str, Tensor]:
    return dict(zip(problem.names[3:], leaves[3:], strict=True))


def _op(**options: Any) -> Callable[[Problem, Leaves], Tensor]:
    """As any caller with offsets on the device has it: Triton on CUDA."""

    def attend(problem: Problem, leaves: Leaves) -> Tensor:
        times = {} if len(leaves) < 5 else {"times": problem.times, "next_times": problem.next_times}
        return hstu_attention(
            *leaves[:3], offsets=problem.offsets_device, max_len=problem.shape.max_len, scale=problem.scale,
            **tables_of(problem, leaves), **times, **options,
        )  # fmt: skip

    return attend


def _plain(problem: Problem, leaves: Leaves) -> Tensor:
    """What training on a CPU runs. On CUDA the public function would choose Triton, so the path itself is called."""
    tables, plan = tables_of(problem, leaves), plan_of(problem)
    if not leaves[0].is_cuda:
        return hstu_attention(*leaves[:3], plan=plan, scale=problem.scale, **tables)
    pair = tables.get("position_table"), tables.get("time_table")
    return _packed(*leaves[:3], plan, problem.scale, *pair, True, 0.0)


def _threads_of_training(problem: Problem) -> AbstractContextManager[None]:
    """As many as `training/trainer.py` gives a step of this size on a CPU; no more than there are."""
    return nullcontext() if problem.leaves[0].is_cuda else threads_for(problem.leaves[0].numel())


def our_implementations(device: torch.device, compiled: bool) -> list[Implementation]:
    """C3 is the gate's yardstick."""
    found = [
        Implementation(OURS, _op()),
        Implementation(DETERMINISTIC, _op(deterministic=True)),
        Implementation(PACKED, _plain, refuses=squares_too_large, around=_threads_of_training),
    ]
    if compiled:
        plain = torch.compile(_plain, dynamic=True)
        found.append(Implementation(f"{PACKED} compiled", plain, refuses=compiles_slowly))
    return found
