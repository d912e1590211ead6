"""The op `virtualmle::hstu_attention` as torch.library knows it: its families, its shapes, its gradient.

Every family is two functions, forward and backward, that take tensors and an AttentionCall; `_families` chooses by
device and max_len alone. `hstu_attention.hstu_attention` is the function to call: it checks what it is given.
"""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from . import hstu_packed_torch
from .attention_call import AttentionCall
from .attention_checks import check_values
from .threads import threads_for

PACKED_LONGEST = 256  # max_len up to which one tile's programs see whole sequences; above, the long family
Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


class Forward(Protocol):
    """A family's forward pass."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor: ...


class Backward(Protocol):
    """A family's backward pass."""

    def __call__(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Gradients: ...


def _families(q: Tensor, max_len: int) -> tuple[Forward, Backward]:
    if not q.is_cuda:
        return hstu_packed_torch.packed_forward, hstu_packed_torch.packed_backward
    # Triton has no wheels for some systems (macOS), so its files are read only where tensors are on CUDA.
    if max_len <= PACKED_LONGEST:
        from . import hstu_packed_triton  # noqa: PLC0415

        return hstu_packed_triton.packed_forward, hstu_packed_triton.packed_backward
    from . import hstu_long_triton  # noqa: PLC0415

    return hstu_long_triton.long_forward, hstu_long_triton.long_backward


@torch.library.custom_op("virtualmle::hstu_attention", mutates_args=())
def hstu_attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    position_table: Tensor | None,
    time_table: Tensor | None,
    times: Tensor | None,
    next_times: Tensor | None,
    seed: Tensor | None,
    max_len: int,
    scale: float,
    alpha: float,
    causal: bool,
    dropout: float,
    deterministic: bool,
) -> Tensor:
    """See hstu_attention.hstu_attention; here dropout is 0 or goes with a seed (1,) int64."""
    if not offsets.is_cuda:
        check_values(offsets, len(q), max_len)
    if not len(q):
        return v.new_empty(v.shape)
    call = _call(
        offsets, position_table, time_table, times, next_times, seed, max_len, scale, alpha, causal, dropout,
        deterministic,
    )  # fmt: skip
    with _where_it_runs(q):
        return _families(q, max_len)[0](q, k, v, call)


@torch.library.custom_op("virtualmle::hstu_attention_backward", mutates_args=())
def hstu_attention_backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    position_table: Tensor | None,
    time_table: Tensor | None,
    times: Tensor | None,
    next_times: Tensor | None,
    seed: Tensor | None,
    max_len: int,
    scale: float,
    alpha: float,
    causal: bool,
    dropout: float,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, and the tables' gradients, without an element where there is no table: an op returns no None."""
    if not len(q):
        tables = (torch.zeros_like(t) if t is not None else q.new_empty(0) for t in (position_table, time_table))
        return (*(x.new_empty(x.shape) for x in (q, k, v)), *tables)  # type: ignore[return-value]
    call = _call(
        offsets, position_table, time_table, times, next_times, seed, max_len, scale, alpha, causal, dropout,
        deterministic,
    )  # fmt: skip
    with _where_it_runs(q):
        dq, dk, dv, dposition, dtime = _families(q, max_len)[1](grad, q, k, v, call)
    return dq, dk, dv, _present(dposition, q), _present(dtime, q)


def _where_it_runs(q: Tensor) -> AbstractContextManager[None]:
    """q's device as the current one, on which Triton launches; on a CPU as many threads as the tokens are worth."""
    if q.is_cuda:
        return torch.cuda.device(q.device)
    return threads_for(q.numel())


def _present(gradient: Tensor | None, q: Tensor) -> Tensor:
    return q.new_empty(0) if gradient is None else gradient.contiguous()


def _call(
    offsets: Tensor,
    position_table: Tensor | None,
    time_table: Tensor | None,
    times: Tensor | None,
    next_times: Tensor | None,
    seed: Tensor | None,
    max_len: int,
    scale: float,
    alpha: float,
    causal: bool,
    dropout: float,
    deterministic: bool,
) -> AttentionCall:
    return AttentionCall(
        offsets.contiguous(),
        max_len,
        scale,
        alpha,
        causal,
        dropout,
        seed,
        deterministic,
        *(None if x is None else x.contiguous() for x in (position_table, time_table, times, next_times)),
    )


@hstu_attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
    return v.new_empty(v.shape)


@hstu_attention_backward_op.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, position: Tensor | None, time: Tensor | None,
    *others: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    tables = (q.new_empty(0) if table is None else table.new_empty(table.shape) for table in (position, time))
    return (*(x.new_empty(x.shape) for x in (q, k, v)), *tables)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:9])
    ctx.terms = inputs[9:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    gradients = hstu_attention_backward_op(grad, *tensors, *ctx.terms)  # type: ignore[no-untyped-call]
    dq, dk, dv, dposition, dtime = gradients
    tables = [None if t is None else d for t, d in zip(tensors[4:6], (dposition, dtime), strict=True)]
    return dq, dk, dv, None, *tables, *[None] * 9


hstu_attention_op.register_autograd(_backward, setup_context=_remember)
