"""The interface of a contestant, and our own contestants: the op, and C3, the packed path in plain torch."""

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
PAIR_TENSORS = 8  # tensors of all pairs that an eager forward and backward hold at the same time
Leaves = Sequence[Tensor]
Result = tuple[Tensor, ...]  # the output and the gradients of the leaves


def accepts_all(shape: Shape, device: torch.device) -> str | None:
    """The default of `Implementation.refuses`: no reason not to run."""
    return None


@dataclass(frozen=True)
class Implementation:
    """A contestant: `attend` computes the output (L, H, dim) from the leaves, and may use the problem's cache."""

    name: str
    attend: Callable[[Problem, Leaves], Tensor]
    refuses: Callable[[Shape, torch.device], str | None] = accepts_all  # a reason not to run, or None
    captures: bool = True  # the benchmark may capture it in a CUDA graph
    threads: Callable[[Problem], AbstractContextManager[None]] = lambda problem: nullcontext()


def step(implementation: Implementation, problem: Problem) -> Callable[[], Result]:
    """A function that runs forward and backward, with the gradient of every leaf."""

    def run() -> Result:
        with implementation.threads(problem):
            out = implementation.attend(problem, problem.leaves)
            return (out.detach(), *torch.autograd.grad(out, problem.leaves, problem.grad))

    return run


def forward(implementation: Implementation, problem: Problem) -> Callable[[], Result]:
    """A function that runs the forward pass only, without gradients, as in serving."""
    leaves = tuple(leaf.detach() for leaf in problem.leaves)

    def run() -> Result:
        with torch.no_grad(), implementation.threads(problem):
            return (implementation.attend(problem, leaves),)

    return run


def reference_result(problem: Problem) -> Result:
    """Output and gradients of the reference, in float64 on the CPU."""
    leaves = tuple(leaf.detach().cpu().double().requires_grad_() for leaf in problem.leaves)
    tables = tables_of(problem, leaves)
    times = {"times": problem.times.cpu()} if "time_table" in tables else {}
    out = reference.hstu_attention(*leaves[:3], offsets=problem.offsets, scale=problem.scale, **tables, **times)
    return (out.detach(), *torch.autograd.grad(out, leaves, problem.grad.cpu().double()))


def failure(error: Exception) -> str:
    """The error as one line of text."""
    lines = str(error).strip().splitlines() or [""]
    return f"failed: {type(error).__name__}: {lines[0][:120]}"


def pairs_exceed_memory(shape: Shape, device: torch.device) -> str | None:
    """A reason not to run a contestant that materialises all pairs, if they do not fit into the device's memory."""
    if device.type != "cuda":
        return None
    needed = PAIR_TENSORS * shape.batch * shape.heads * shape.max_len**2 * shape.dtype.itemsize
    available = torch.cuda.get_device_properties(device).total_memory
    return f"tensors of all pairs need about {needed / 1e9:.0f} GB" if needed > 0.8 * available else None


def compiles_slowly(shape: Shape, device: torch.device) -> str | None:
    """A reason not to run a contestant that torch.compile compiles anew for each shape, except on three shapes."""
    short = shape.name in ("A1", "A4") and shape.dtype != torch.bfloat16
    long = shape.name == "B d=128 N=4096 full" and shape.bias == "position+time"
    return None if short or long else "takes seconds to compile per shape: measured at A1, A4 and one long shape only"


def plan_of(problem: Problem) -> PackingPlan:
    """The packing plan of a batch, built once and cached, because all layers share it."""
    if "plan" not in problem.cache:
        problem.cache["plan"] = PackingPlan.build(problem.offsets, problem.times.device, problem.times)
    plan = problem.cache["plan"]
    assert isinstance(plan, PackingPlan)
    return plan


def tables_of(problem: Problem, leaves: Leaves) -> dict[str, Tensor]:
    return dict(zip(problem.names[3:], leaves[3:], strict=True))


def _op(**options: Any) -> Callable[[Problem, Leaves], Tensor]:
    """The public op with offsets on the device, which runs Triton on CUDA."""

    def attend(problem: Problem, leaves: Leaves) -> Tensor:
        times = {} if len(leaves) < 5 else {"times": problem.times}
        return hstu_attention(
            *leaves[:3], offsets=problem.offsets_device, max_len=problem.shape.max_len, scale=problem.scale,
            **tables_of(problem, leaves), **times, **options,
        )  # fmt: skip

    return attend


def _plain(problem: Problem, leaves: Leaves) -> Tensor:
    """The packed path, as in training on a CPU. On CUDA it is called directly, because the op would choose Triton."""
    tables, plan = tables_of(problem, leaves), plan_of(problem)
    if not leaves[0].is_cuda:
        return hstu_attention(*leaves[:3], plan=plan, scale=problem.scale, **tables)
    pair = tables.get("position_table"), tables.get("time_table")
    return _packed(*leaves[:3], plan, problem.scale, *pair, True, 0.0)


def _threads_of_training(problem: Problem) -> AbstractContextManager[None]:
    """The number of threads that `training/trainer.py` gives a step of this size on a CPU."""
    return nullcontext() if problem.leaves[0].is_cuda else threads_for(problem.leaves[0].numel())


def our_implementations(compiled: bool) -> list[Implementation]:
    """The op, its deterministic form, and C3, which sets the limits of the gate; with `compiled` also C3 compiled."""
    implementations = [
        Implementation(OURS, _op()),
        Implementation(DETERMINISTIC, _op(deterministic=True)),
        Implementation(PACKED, _plain, refuses=pairs_exceed_memory, threads=_threads_of_training),
    ]
    if compiled:
        plain = torch.compile(_plain, dynamic=True)
        implementations.append(Implementation(f"{PACKED} compiled", plain, refuses=compiles_slowly))
    return implementations
