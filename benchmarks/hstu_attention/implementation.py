"""What every contestant is, how it is called on a problem, and ours: the op, and C3, the packed path in torch."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from virtualmle.kernels.hstu import reference
from virtualmle.kernels.hstu.attention import _packed, hstu_attention
from virtualmle.kernels.jagged.packing import PackingPlan
from virtualmle.kernels.jagged.threads import threads_for

from .shapes import Problem, Shape

OURS, DETERMINISTIC, PACKED = "ours", "ours deterministic", "C3 packed torch"
SQUARES = 8  # tensors of all pairs that an eager forward and backward hold at once
Leaves = Sequence[Tensor]
Result = tuple[Tensor, ...]  # the output and the gradients of the leaves


def anything(shape: Shape, device: torch.device) -> str | None:
    """The contestant takes every shape."""
    return None


@dataclass(frozen=True)
class Implementation:
    """`attend` computes the packed output (L, H, dim) from the leaves; what a batch needs once goes to its cache."""

    name: str
    attend: Callable[[Problem, Leaves], Tensor]
    refuses: Callable[[Shape, torch.device], str | None] = anything  # a reason not to run
    captures: bool = True  # may be put into a CUDA graph from outside
    threads: Callable[[Problem], AbstractContextManager[None]] = lambda problem: nullcontext()


def step(implementation: Implementation, problem: Problem) -> Callable[[], Result]:
    """Forward and backward, with the gradient of every leaf."""

    def run() -> Result:
        with implementation.threads(problem):
            out = implementation.attend(problem, problem.leaves)
            return (out.detach(), *torch.autograd.grad(out, problem.leaves, problem.grad))

    return run


def forward(implementation: Implementation, problem: Problem) -> Callable[[], Result]:
    """Forward alone, as in serving."""
    leaves = tuple(leaf.detach() for leaf in problem.leaves)

    def run() -> Result:
        with torch.no_grad(), implementation.threads(problem):
            return (implementation.attend(problem, leaves),)

    return run


def truth(problem: Problem) -> Result:
    """Output and gradients by the reference, in float64 on the CPU."""
    leaves = tuple(leaf.detach().cpu().double().requires_grad_() for leaf in problem.leaves)
    tables = tables_of(problem, leaves)
    times = {"times": problem.times.cpu()} if "time_table" in tables else {}
    out = reference.hstu_attention(*leaves[:3], offsets=problem.offsets, scale=problem.scale, **tables, **times)
    return (out.detach(), *torch.autograd.grad(out, leaves, problem.grad.cpu().double()))


def failure(error: Exception) -> str:
    """In one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"failed: {type(error).__name__}: {lines[0][:120]}"


def squares_too_large(shape: Shape, device: torch.device) -> str | None:
    """A reason not to run what materialises all pairs, where they do not fit on the device."""
    if device.type != "cuda":
        return None
    needed = SQUARES * shape.batch * shape.heads * shape.max_len**2 * shape.dtype.itemsize
    available = torch.cuda.get_device_properties(device).total_memory
    return f"the squares of all pairs need about {needed / 1e9:.0f} GB" if needed > 0.8 * available else None


def compiles_slowly(shape: Shape, device: torch.device) -> str | None:
    """What torch.compile has to build anew for each shape is measured at a few: the script has ten minutes."""
    short = shape.name in ("A1", "A4") and shape.dtype != torch.bfloat16
    long = shape.name == "B d=128 N=4096 full" and shape.bias == "position+time"
    return None if short or long else "compiles for some seconds a shape: measured at A1, A4 and one long shape alone"


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
        times = {} if len(leaves) < 5 else {"times": problem.times}
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


def our_implementations(compiled: bool) -> list[Implementation]:
    """C3 is the gate's yardstick."""
    found = [
        Implementation(OURS, _op()),
        Implementation(DETERMINISTIC, _op(deterministic=True)),
        Implementation(PACKED, _plain, refuses=squares_too_large, threads=_threads_of_training),
    ]
    if compiled:
        plain = torch.compile(_plain, dynamic=True)
        found.append(Implementation(f"{PACKED} compiled", plain, refuses=compiles_slowly))
    return found
