"""What every contestant is: a name, the function that it computes, and how to call it on a problem."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from virtualmle.kernels.hstu.reference import hstu_attention
from virtualmle.kernels.jagged.reference import softmax_attention

from .shapes import Problem, Shape

Leaves = Sequence[Tensor]
Result = tuple[Tensor, ...]  # the output and the gradients of the leaves


def anything(shape: Shape, device: torch.device) -> str | None:
    """The contestant takes every shape."""
    return None


def as_it_stands(problem: Problem) -> AbstractContextManager[None]:
    """Nothing is set for a call."""
    return nullcontext()


@dataclass(frozen=True)
class Implementation:
    """`attend` computes the packed output (L, H, dim) from the leaves; what a batch needs once goes to its cache."""

    name: str
    attend: Callable[[Problem, Leaves], Tensor]
    function: str = "hstu"  # or "softmax": another function whose work is comparable; its own reference judges it
    refuses: Callable[[Shape, torch.device], str | None] = anything  # a reason not to run
    needs_full: bool = False  # every sequence has to have max_len
    asks_next: bool = False  # a query's time has to be that of the next event
    forward_only_on_cpu: bool = False
    captures: bool = True  # may be put into a CUDA graph from outside
    around: Callable[[Problem], AbstractContextManager[None]] = as_it_stands  # what its callers set for a whole step


SQUARES = 8  # tensors of all pairs that an eager forward and backward hold at once


def squares_too_large(shape: Shape, device: torch.device) -> str | None:
    """A reason not to run what materialises all pairs, where they do not fit on the device."""
    if device.type != "cuda":
        return None
    needed = SQUARES * shape.batch * shape.heads * shape.max_len**2 * shape.dtype.itemsize
    available = torch.cuda.get_device_properties(device).total_memory
    return f"the squares of all pairs need about {needed / 1e9:.0f} GB" if needed > 0.8 * available else None


def compiles_slowly(shape: Shape, device: torch.device) -> str | None:
    """What torch.compile has to build anew for each shape is measured at a few: the script has ten minutes."""
    short = shape.name in ("A1", "A4", "tiny") and shape.dtype != torch.bfloat16
    long = shape.name == "B d=128 N=4096 full" and shape.bias == "position+time"
    return None if short or long else "compiles for some seconds a shape: measured at A1, A4 and one long shape alone"


def failure(error: Exception) -> str:
    """In one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"failed: {type(error).__name__}: {lines[0][:120]}"


def step(implementation: Implementation, problem: Problem) -> Callable[[], Result]:
    """Forward and backward, with the gradient of every leaf."""

    def run() -> Result:
        with implementation.around(problem):
            out = implementation.attend(problem, problem.leaves)
            return (out.detach(), *torch.autograd.grad(out, problem.leaves, problem.grad))

    return run


def forward(implementation: Implementation, problem: Problem) -> Callable[[], Result]:
    """Forward alone, as in serving."""
    leaves = tuple(leaf.detach() for leaf in problem.leaves)

    def run() -> Result:
        with torch.no_grad(), implementation.around(problem):
            return (implementation.attend(problem, leaves),)

    return run


def softmax_scale(shape: Shape) -> float:
    """With 1 here, as HSTU has it, a softmax over N(0, 1) inputs would be a choice of one key."""
    return shape.dim**-0.5


def truth(problem: Problem, function: str) -> Result:
    """Output and gradients by the reference, in float64 on the CPU."""
    exact = problem.to(torch.float64)
    leaves = tuple(leaf.detach().cpu().requires_grad_() for leaf in exact.leaves)
    tables = dict(zip(exact.names[3:], leaves[3:], strict=True))
    attention = hstu_attention if function == "hstu" else softmax_attention
    times = {}
    if "time_table" in tables:
        times = {"times": exact.times.cpu()}
        if exact.next_times is not None:
            times["next_times"] = exact.next_times.cpu()
    scale = problem.scale if function == "hstu" else softmax_scale(problem.shape)
    out = attention(*leaves[:3], offsets=problem.offsets, scale=scale, **tables, **times)
    return (out.detach(), *torch.autograd.grad(out, leaves, exact.grad.cpu()))
