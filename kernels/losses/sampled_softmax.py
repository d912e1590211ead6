"""Sampled softmax with the look-up inside: neither the negatives' vectors nor, on CUDA, shared scores lie in memory.

`reference.sampled_softmax_loss` has the formula. The gradient of a candidate's score is softmax - e / |C_i|, and
1 - e less for the target. On CUDA `sampled_softmax_triton.py` fetches rows of the table inside its kernels; elsewhere
`sampled_softmax_blocks.py` makes both gradients in the forward pass, a block of positions at a time.

Tensor dimensions: n positions, m negatives, V items, d width.
"""

from typing import Any

import torch
from torch import Tensor

from ..jagged.op_registration import register_gradient, register_op
from .arguments import (
    LossArgumentError,
    SampledInputs,
    SampledTerms,
    check_device,
    check_items,
    check_loss_arguments,
    check_precision,
    takes_triton,
)
from .sampled_softmax_blocks import in_blocks

_TENSORS = "Tensor states, Tensor table, Tensor targets, Tensor negatives, Tensor? log_q"
_TERMS = "float temperature, bool cosine, float label_smoothing, str precision"
NUM_TENSORS = 5  # arguments of _TENSORS


def sampled_softmax_loss(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    *,
    log_q: Tensor | None = None,
    temperature: float = 1.0,
    cosine: bool = False,
    label_smoothing: float = 0.0,
    precision: str = "ieee",
) -> Tensor:
    """The mean loss, a scalar; states (n, d) and table (V, d) of one floating dtype, targets (n,) int64 in [0, V).

    negatives: (m,) for all positions, or (n, m), int64 in [0, V), repeats allowed; one that is the position's target
    does not count there. log_q (V,) float32: log probability of being drawn, for the logQ correction; finite wherever
    an item is drawn. `cosine` divides states and rows by their norms. `precision` as in `linear_cross_entropy`.

    Differentiable once, in states and table, with a dense gradient of the table: where its rows are many, pass those
    that occur (as `training/objective.py` does). n may be 0: the loss is then NaN. The Triton form returns float32
    whatever the dtype, the others the dtype of states. LossArgumentError for what does not go together.
    """
    check_loss_arguments(states, table, targets, label_smoothing)
    check_precision(precision)
    _check_sampled(SampledInputs(states, table, targets, negatives, log_q), temperature)
    loss: Tensor = _op(states, table, targets, negatives, log_q, temperature, cosine, label_smoothing, precision)[0]
    return loss


def _check_sampled(inputs: SampledInputs, temperature: float) -> None:
    states, negatives, log_q = inputs.states, inputs.negatives, inputs.log_q
    if negatives.dim() not in (1, 2) or not negatives.shape[-1]:
        raise LossArgumentError(
            f"negatives must be (m,) or (n, m) with m >= 1; their shape is {tuple(negatives.shape)}"
        )
    check_items("negatives", negatives, states, (*(len(states),) * (negatives.dim() - 1), negatives.shape[-1]))
    if not temperature > 0:
        raise LossArgumentError(f"temperature must be positive; it is {temperature}")
    if log_q is not None:
        if log_q.shape != inputs.table.shape[:1] or log_q.dtype != torch.float32:
            raise LossArgumentError(
                f"log_q must be ({len(inputs.table)},) float32, one entry per row of the table; it is "
                f"{tuple(log_q.shape)} {log_q.dtype}"
            )
        check_device("log_q", log_q, states)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and what its gradient needs: the gradient of the states before it is multiplied by the loss's own; that
    of the table or, from Triton, three numbers per position; and, from Triton, scores.
    """
    inputs, terms = SampledInputs(*arguments[:NUM_TENSORS]), SampledTerms(*arguments[NUM_TENSORS:])
    if not takes_triton(inputs.states):
        return (*in_blocks(inputs, terms), inputs.states.new_empty(0))
    from . import sampled_softmax_triton as on_gpu  # noqa: PLC0415 (Triton exists for Linux alone)

    losses, pull, rows, scores = on_gpu.forward(inputs, terms)
    return losses.mean(), pull, rows, scores


def _backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    inputs = SampledInputs(*arguments[:NUM_TENSORS])
    pull, rest, scores, *terms = arguments[NUM_TENSORS:]
    share = grad / len(inputs.states)
    if not takes_triton(inputs.states):
        return pull * share, rest * share
    from . import sampled_softmax_triton as on_gpu  # noqa: PLC0415

    table = on_gpu.backward(share, inputs, SampledTerms(*terms), rest, scores)
    return (pull * share).to(inputs.states.dtype), table


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    states, table, _, negatives = arguments[:4]
    if not takes_triton(states):
        return states.new_empty(()), torch.empty_like(states), torch.empty_like(table), states.new_empty(0)
    scores = (len(states), 1 if negatives.dim() == 1 else 1 + negatives.shape[1])
    shapes = ((), states.shape, (3, len(states)), scores)
    loss, pull, rows, kept = (states.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return loss, pull, rows, kept


def _fake_backward(grad: Tensor, states: Tensor, table: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(states), torch.empty_like(table)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.terms = inputs[NUM_TENSORS:]
    ctx.save_for_backward(*inputs[:NUM_TENSORS], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros as large as the table for results that nothing follows from


def _gradients(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    gradients = _backward_op(grad, *ctx.saved_tensors, *ctx.terms)
    return (*gradients, *(None,) * (NUM_TENSORS - 2 + len(ctx.terms)))


_op = register_op(f"sampled_softmax({_TENSORS}, {_TERMS}) -> (Tensor, Tensor, Tensor, Tensor)", _forward, _fake_forward)
_backward_op = register_op(
    f"sampled_softmax_backward(Tensor grad, {_TENSORS}, Tensor pull, Tensor rest, Tensor scores, {_TERMS})"
    " -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
)
register_gradient("sampled_softmax", _save, _gradients)
