"""Cross-entropy over the whole catalogue without all logits in memory; the forward pass also computes gradients.

    loss = mean_i [ logsumexp_j(s_i . w_j) - (1 - e) s_i . w_{y_i} - e mean_j(s_i . w_j) ]        e = label_smoothing

The gradient of a row's logits is softmax - (1 - e) onehot - e / V, so that it is known as soon as the row's logits are.

On CUDA `linear_cross_entropy_triton.py` keeps tiles of logits on the chip: the forward pass accumulates softmax times
table, the backward pass recomputes the tiles for the gradient of the table. Elsewhere the forward pass computes one
block of logits at a time, multiplies it into both gradients and discards it. Apart from the gradient of the table, the
memory of a step does not grow with the catalogue. `linear_cross_entropy_bfloat16.py` is the faster way to do so on CPUs
with bfloat16 instructions.

The three matrix products take most of the time of a block. Other passes over the block are therefore avoided: the
division by the softmax sums is applied to the d-wide operands and results, and the contribution of smoothing, equal for
all items, is added outside the block.

Not included: temperature and cosine, which the caller applies to states and table.

Tensor dimensions: n positions, V items, d width.
"""

from typing import Any

import torch
from torch import Tensor

from ..jagged.op_registration import register_gradient, register_op
from .arguments import BFLOAT16, check_bfloat16, check_loss_arguments, check_precision, uses_triton
from .linear_cross_entropy_bfloat16 import in_bfloat16

BLOCK_LOGITS = {"cpu": 9 << 17, "cuda": 1 << 27}  # on CPUs a block that fits into the cache; on CUDA half a gigabyte
MIN_BLOCK_ROWS = 64  # with fewer rows the matrix products are inefficient
ROUND_ROWS = 32  # block sizes are multiples of it, to fill the CPU's vector registers
SAFE_LOGIT = 40.0  # sums of e**40 over a catalogue and 1 / e**-40 are far within the range of float32


def linear_cross_entropy(
    states: Tensor, table: Tensor, targets: Tensor, label_smoothing: float = 0.0, *, precision: str = "ieee"
) -> Tensor:
    """The mean loss, a scalar; states (n, d) and table (V, d) of one floating dtype, targets (n,) int64 in [0, V).

    Differentiable once, in states and table. If n is 0, the loss is NaN, the mean of no elements. The Triton kernels
    return float32 for every dtype, the other implementation returns the dtype of states. `precision` of float32
    products: "ieee" for full float32; in the Triton kernels "tf32" for tensor cores with three digits; on CPUs "bf16"
    for operands of three digits and float32 sums, unless the scores of the step need float32. Raises
    LossArgumentError for arguments that do not match, and for "bf16" where it is not available.
    """
    check_loss_arguments(states, table, targets, label_smoothing)
    if precision == BFLOAT16:
        check_bfloat16(states)
    else:
        check_precision(precision)
    loss: Tensor = _op(states, table, targets, label_smoothing, precision)[0]
    return loss


def _forward(
    states: Tensor, table: Tensor, targets: Tensor, smoothing: float, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean loss, and two tensors for the backward pass: the gradient of the summed losses in the states, and either
    their gradient in the table or, from Triton, log2 of each row's sum of exponentials.
    """
    if not uses_triton(states):
        return in_blocks(states, table, targets, smoothing, precision)
    from . import linear_cross_entropy_triton as on_gpu  # noqa: PLC0415 (Triton exists only for Linux)

    losses, lse, grad_states = on_gpu.forward(states, table, targets, smoothing, precision)
    return losses.mean(), grad_states, lse


def _fake_forward(
    states: Tensor, table: Tensor, targets: Tensor, smoothing: float, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    if not uses_triton(states):
        return states.new_empty(()), torch.empty_like(states), torch.empty_like(table)
    shapes = ((), states.shape, (len(states),))
    loss, grad_states, lse = (states.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return loss, grad_states, lse


def _backward(
    grad: Tensor, states: Tensor, table: Tensor, targets: Tensor, grad_states: Tensor,
    grad_table_or_lse: Tensor, smoothing: float, precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grad_scale = grad / len(states)
    if not uses_triton(states):
        return grad_states * grad_scale, grad_table_or_lse * grad_scale
    from . import linear_cross_entropy_triton as on_gpu  # noqa: PLC0415

    grad_table = on_gpu.backward(grad_scale, states, table, targets, grad_table_or_lse, smoothing, precision)
    return (grad_states * grad_scale).to(states.dtype), grad_table


def _fake_backward(grad: Tensor, states: Tensor, table: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(states), torch.empty_like(table)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.smoothing, ctx.precision = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no table-sized zero gradients for the non-differentiable outputs


def _gradients(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor, Tensor, None, None, None]:
    grad_states, grad_table = _backward_op(grad, *ctx.saved_tensors, ctx.smoothing, ctx.precision)
    return grad_states, grad_table, None, None, None


_op = register_op(
    "linear_cross_entropy(Tensor states, Tensor table, Tensor targets, float label_smoothing, str precision)"
    " -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
)
_backward_op = register_op(
    "linear_cross_entropy_backward(Tensor grad, Tensor states, Tensor table, Tensor targets, Tensor grad_states,"
    " Tensor grad_table_or_lse, float label_smoothing, str precision) -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
)
register_gradient("linear_cross_entropy", _save, _gradients)


def in_blocks(
    states: Tensor, table: Tensor, targets: Tensor, smoothing: float, precision: str = "ieee"
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean loss and the gradients of the summed losses in states and table, one block of rows at a time."""
    found = in_bfloat16(states, table, targets, 1 - smoothing) if precision == BFLOAT16 else None
    losses, grad_states, grad_table = found or _in_inputs_dtype(states, table, targets, smoothing)
    if smoothing:
        centre = table.mean(dim=0)  # s . centre is the mean logit of a row
        losses -= states @ (smoothing * centre)
        grad_states -= smoothing * centre
        grad_table -= states.sum(dim=0) * (smoothing / len(table))
    return losses.mean(), grad_states, grad_table


def _in_inputs_dtype(states: Tensor, table: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (n,) and the gradients of their sum, without the uniform term of smoothing."""
    count, num_items = len(states), len(table)
    rows = max(MIN_BLOCK_ROWS, BLOCK_LOGITS[states.device.type] // num_items // ROUND_ROWS * ROUND_ROWS)
    shift = not _is_safe(states, table)
    block = states.new_empty(num_items * min(rows, count))
    losses = states.new_empty(count)
    grad_states, grad_table = torch.empty_like(states), torch.zeros_like(table)
    for first in range(0, count, rows):
        part = slice(first, first + rows)
        block_states = states[part]
        # (V, rows) instead of (rows, V): the matrix products are a fifth faster
        buffer = block[: num_items * len(block_states)].view(num_items, len(block_states))
        logits = torch.mm(table, block_states.T, out=buffer)
        losses[part], total = _to_gradient(logits, targets[part], smoothing, shift)
        torch.mm(logits.T, table, out=grad_states[part])
        grad_states[part].div_(total)
        grad_table.addmm_(logits, block_states / total)
    return losses, grad_states, grad_table


def _is_safe(states: Tensor, table: Tensor) -> bool:
    """Whether every logit (|s . w| <= |s| |w|) is so small that exp needs no shift by the row's maximum.

    This saves two passes over each block. Always False on a GPU, where the check would wait for the device.
    """
    if states.is_cuda or not len(states):
        return False
    return bool(states.norm(dim=1).max() * table.norm(dim=1).max() <= SAFE_LOGIT)


def _to_gradient(logits: Tensor, targets: Tensor, smoothing: float, shift: bool) -> tuple[Tensor, Tensor]:
    """Losses (rows,) and sums of exponentials (rows, 1), both without the uniform term of smoothing.

    `logits` (V, rows) are replaced in place by the gradient of the summed losses times these sums.
    """
    target_logits = logits.gather(0, targets[None])
    maxima = logits.amax(dim=0, keepdim=True) if shift else torch.zeros_like(target_logits)
    if shift:
        logits.sub_(maxima)
    total = logits.exp_().sum(dim=0, keepdim=True)
    logits.scatter_(0, targets[None], logits.gather(0, targets[None]) - (1 - smoothing) * total)
    return (maxima + total.log() - (1 - smoothing) * target_logits)[0], total.T
