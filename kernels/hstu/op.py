"""The torch.library op `virtualmle::hstu_attention`: choice of the kernel family, fake shapes, gradient.

A family consists of two functions, forward and backward, that take tensors and an AttentionCall; `_family` chooses by
device and max_len. Call `attention.hstu_attention` instead of the op: it checks the arguments.
"""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from ..jagged.op_registration import register_gradient, register_op
from ..jagged.threads import threads_for
from . import packed_torch
from .attention_call import AttentionCall
from .attention_checks import check_values

PACKED_LONGEST = 256  # the largest max_len of the packed family; the long family serves longer sequences
NUM_TENSORS = 9  # arguments of _TENSORS
_TENSORS = (
    "Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? position_table, Tensor? time_table, Tensor? times, "
    "Tensor? next_times, Tensor? seed"
)
_TERMS = "SymInt max_len, float scale, float alpha, bool causal, float dropout, bool deterministic"
Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


class Forward(Protocol):
    """A family's forward pass."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor: ...


class Backward(Protocol):
    """A family's backward pass."""

    def __call__(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Gradients: ...


def _family(q: Tensor, max_len: int) -> tuple[Forward, Backward]:
    if not q.is_cuda:
        return packed_torch.packed_forward, packed_torch.packed_backward
    # Triton has no wheels for some systems (macOS), so its files are imported only if tensors are on CUDA.
    if max_len <= PACKED_LONGEST:
        from . import packed_backward_triton, packed_forward_triton  # noqa: PLC0415

        return packed_forward_triton.packed_forward, packed_backward_triton.packed_backward
    from . import long_backward_triton, long_forward_triton  # noqa: PLC0415

    return long_forward_triton.long_forward, long_backward_triton.long_backward


def _forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *others: Any) -> Tensor:
    """Shaped like v, contiguous. See attention.hstu_attention; here dropout > 0 requires a seed (1,) int64."""
    call = _call(offsets, *others)
    if not offsets.is_cuda:
        check_values(offsets, len(q), call.max_len)
    if not len(q):
        return v.new_empty(v.shape)
    with _execution_context(q):
        return _family(q, call.max_len)[0](q, k, v, call)


def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """dq, dk, dv and the tables' gradients; an empty tensor for a missing table, because an op cannot return None."""
    if not len(q):
        tables = (q.new_empty(0) if table is None else torch.zeros_like(table) for table in others[:2])
        return (*(x.new_empty(x.shape) for x in (q, k, v)), *tables)
    call = _call(offsets, *others)
    with _execution_context(q):
        dq, dk, dv, *tables_ = _family(q, call.max_len)[1](grad, q, k, v, call)
    return dq, dk, dv, *(q.new_empty(0) if table is None else table.contiguous() for table in tables_)


def _call(
    offsets: Tensor,
    position_table: Tensor | None,
    time_table: Tensor | None,
    times: Tensor | None,
    next_times: Tensor | None,
    seed: Tensor | None,
    *terms: Any,
) -> AttentionCall:
    """The arguments from `offsets` on, in the order of the op's schema, as an AttentionCall."""
    max_len, scale, alpha, causal, dropout, deterministic = terms
    tables = (None if x is None else x.contiguous() for x in (position_table, time_table, times, next_times))
    return AttentionCall(
        offsets.contiguous(), max_len, scale, alpha, causal, dropout, seed, deterministic, *tables
    )  # fmt: skip


def _execution_context(q: Tensor) -> AbstractContextManager[None]:
    """Make q's CUDA device the current one, on which Triton launches; on a CPU, set the threads by the size of q."""
    if q.is_cuda:
        return torch.cuda.device(q.device)
    return threads_for(q.numel())


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
    return v.new_empty(v.shape)


def _fake_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *others: Any) -> tuple[Tensor, ...]:
    tables = (q.new_empty(0) if table is None else table.new_empty(table.shape) for table in others[:2])
    return (*(x.new_empty(x.shape) for x in (q, k, v)), *tables)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:NUM_TENSORS])
    ctx.terms = inputs[NUM_TENSORS:]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    *gradients, position, time = _backward_op(grad, *tensors, *ctx.terms)
    tables = [None if t is None else d for t, d in zip(tensors[4:6], (position, time), strict=True)]
    return *gradients, None, *tables, *[None] * (NUM_TENSORS - 6 + len(ctx.terms))


hstu_attention_op = register_op(f"hstu_attention({_TENSORS}, {_TERMS}) -> Tensor", _forward, _fake_forward)
_backward_op = register_op(
    f"hstu_attention_backward(Tensor grad, {_TENSORS}, {_TERMS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
register_gradient("hstu_attention", _save, _gradients)
