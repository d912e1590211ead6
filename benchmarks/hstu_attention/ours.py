"""What this repository has: the public op, and C3, the packed path in plain torch that also runs on CPUs."""

from collections.abc import Callable

import torch
from torch import Tensor

from virtualmle.kernels.hstu_attention import hstu_attention
from virtualmle.kernels.packing import PackingPlan

from .implementation import Implementation, Leaves, squares_too_large
from .shapes import Problem

OURS = "ours"
PACKED = "C3 packed torch"


def plan_of(problem: Problem) -> PackingPlan:
    """The packing of a batch: made once, it serves every layer."""
    if "plan" not in problem.cache:
        problem.cache["plan"] = PackingPlan.build(problem.offsets, problem.times.device, problem.times)
    plan = problem.cache["plan"]
    assert isinstance(plan, PackingPlan)
    return plan


def _packed(function: Callable[..., Tensor]) -> Callable[[Problem, Leaves], Tensor]:
    def attend(problem: Problem, leaves: Leaves) -> Tensor:
        tables = dict(zip(problem.names[3:], leaves[3:], strict=True))
        return function(*leaves[:3], plan=plan_of(problem), scale=problem.scale, **tables)

    return attend


def our_implementations(device: torch.device, compiled: bool) -> list[Implementation]:
    found = [Implementation(PACKED, _packed(hstu_attention), refuses=squares_too_large)]
    if compiled:
        attend = _packed(torch.compile(hstu_attention, dynamic=True))
        found.append(Implementation(f"{PACKED} compiled", attend, refuses=squares_too_large))
    return found
