"""Sampled softmax with a fused look-up: vectors of negatives and, on CUDA, scores of shared negatives are not stored.

`reference.sampled_softmax_loss` has the formula. The gradient of a candidate's score is softmax - e / |C_i|, minus
1 - e for the target. On CUDA the kernels of `sampled_softmax_triton.py` load rows of the table themselves. Elsewhere
`sampled_softmax_blocks.py` computes both gradients in the forward pass, one block of positions at a time.

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
    uses_triton,
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

    negatives: (m,) shared by all positions, or (n, m), int64 in [0, V), repeats allowed; a negative that equals the
    position's target is ignored there. log_q (V,) float32: log probability of being drawn, for the logQ correction;
    finite for every drawn item. `cosine` divides states and rows by their norms. `precision` as in
    `linear_cross_entropy`.

    Differentiable once, in states and table. The gradient of the table is dense; if the table has many rows, pass only
    those that occur, as `training/objective.py` does. If n is 0, the loss is NaN. The Triton kernels return float32 for
    every dtype, the other implementation returns the dtype of states. Raises LossArgumentError for arguments that do
    not match.
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
    """The mean loss, and three tensors for the backward pass: the gradient of the summed losses in the states; their
    gradient in the table or, from Triton, three statistics per position; and, from Triton, scores.
    """
    inputs, terms = SampledInputs(*arguments[:NUM_TENSORS]), SampledTerms(*arguments[NUM_TENSORS:])
    if not uses_triton(inputs.states):
        return (*in_blocks(inputs, terms), inputs.states.new_empty(0))
    from . import sampled_softmax_triton as on_gpu  # noqa: PLC0415 (Triton exists only for Linux)

    losses, grad_states, statistics, scores = on_gpu.forward(inputs, terms)
    return losses.mean(), grad_states, statistics, scores


def _backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    inputs = SampledInputs(*arguments[:NUM_TENSORS])
    grad_states, grad_table_or_statistics, scores, *terms = arguments[NUM_TENSORS:]
    grad_scale = grad / len(inputs.states)
    if not uses_triton(inputs.states):
        return grad_states * grad_scale, grad_table_or_statistics * grad_scale
    from . import sampled_softmax_triton as on_gpu  # noqa: PLC0415

    grad_table = on_gpu.backward(grad_scale, inputs, SampledTerms(*terms), grad_table_or_statistics, scores)
    return (grad_states * grad_scale).to(inputs.states.dtype), grad_table


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    states, table, _, negatives = arguments[:4]
    if not uses_triton(states):
        return states.new_empty(()), torch.empty_like(states), torch.empty_like(table), states.new_empty(0)
    scores_shape = (len(states), 1 if negatives.dim() == 1 else 1 + negatives.shape[1])
    shapes = ((), states.shape, (3, len(states)), scores_shape)
    loss, grad_states, statistics, scores = (states.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return loss, grad_states, statistics, scores


def _fake_backward(grad: Tensor, states: Tensor, table: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(states), torch.empty_like(table)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.terms = inputs[NUM_TENSORS:]
    ctx.save_for_backward(*inputs[:NUM_TENSORS], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no table-sized zero gradients for the non-differentiable outputs


def _gradients(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    gradients = _backward_op(grad, *ctx.saved_tensors, *ctx.terms)
    return (*gradients, *(None,) * (NUM_TENSORS - 2 + len(ctx.terms)))


_op = register_op(f"sampled_softmax({_TENSORS}, {_TERMS}) -> (Tensor, Tensor, Tensor, Tensor)", _forward, _fake_forward)
_backward_op = register_op(
    f"sampled_softmax_backward(Tensor grad, {_TENSORS}, Tensor grad_states, Tensor grad_table_or_statistics,"
    f" Tensor scores, {_TERMS}) -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
)
register_gradient("sampled_softmax", _save, _gradients)
