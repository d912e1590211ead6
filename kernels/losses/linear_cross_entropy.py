"""Cross-entropy over a whole catalogue without its logits in memory; gradients of the states on the way.

    loss = mean_i [ logsumexp_j(s_i . w_j) - (1 - e) s_i . w_{y_i} - e mean_j(s_i . w_j) ]        e = label_smoothing

The gradient of a row's logits is softmax - (1 - e) onehot - e / V, so it is known as soon as the row's logits are.

On CUDA `linear_cross_entropy_triton.py` keeps tiles of logits on the chip: the forward pass sums softmax times table as
it goes, the backward pass computes the tiles once more for the table. Elsewhere a block of rows at a time is multiplied
into both gradients in the forward pass and thrown away. What a step holds does not grow with the catalogue, but for
the gradient of the table.

The three matrix products are most of the time of a block, so little else passes over it: softmax is divided by its sum
on the d-wide side of the products, and what smoothing adds is the same for all items and never enters the block.

Not here: temperature and cosine, which the caller folds into states and table.

Tensor dimensions: n positions, V items, d width.
"""

from typing import Any

import torch
from torch import Tensor

from ..jagged.op_registration import register_gradient, register_op
from .arguments import check_loss_arguments, check_precision, takes_triton

BLOCK_LOGITS = {"cpu": 9 << 17, "cuda": 1 << 27}  # a block that stays in the cache, or half a gigabyte
MIN_BLOCK_ROWS = 64  # fewer make the matrix products slim
ROUND_ROWS = 32  # and other numbers leave a rest in each of the processor's vectors
SAFE_LOGIT = 40.0  # e**40 summed over a catalogue, and one over e**-40, are far inside float32


def linear_cross_entropy(
    states: Tensor, table: Tensor, targets: Tensor, label_smoothing: float = 0.0, *, precision: str = "ieee"
) -> Tensor:
    """The mean loss, a scalar; states (n, d) and table (V, d) of one floating dtype, targets (n,) int64 in [0, V).

    Differentiable once, in states and table. n may be 0: the loss is then NaN, as the mean of nothing. The Triton form
    returns float32 whatever the dtype, the others the dtype of states. `precision` says how the Triton form multiplies
    float32: "ieee" as float32, "tf32" on the tensor cores with three digits.
    LossArgumentError for what does not go together.
    """
    check_loss_arguments(states, table, targets, label_smoothing)
    check_precision(precision)
    loss: Tensor = _op(states, table, targets, label_smoothing, precision)[0]
    return loss


def _forward(
    states: Tensor, table: Tensor, targets: Tensor, smoothing: float, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and what its gradient needs: the gradient of the states before it is multiplied by the loss's own, and
    either that of the table or, from Triton, log2 of each row's sum.
    """
    if not takes_triton(states):
        return in_blocks(states, table, targets, smoothing)
    from . import linear_cross_entropy_triton as on_gpu  # noqa: PLC0415 (Triton exists for Linux alone)

    losses, lse, pull = on_gpu.forward(states, table, targets, smoothing, precision)
    return losses.mean(), pull, lse


def _fake_forward(
    states: Tensor, table: Tensor, targets: Tensor, smoothing: float, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    if not takes_triton(states):
        return states.new_empty(()), torch.empty_like(states), torch.empty_like(table)
    shapes = ((), states.shape, (len(states),))
    loss, pull, lse = (states.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return loss, pull, lse


def _backward(
    grad: Tensor, states: Tensor, table: Tensor, targets: Tensor, pull: Tensor, rest: Tensor, smoothing: float,
    precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    share = grad / len(states)
    if not takes_triton(states):
        return pull * share, rest * share
    from . import linear_cross_entropy_triton as on_gpu  # noqa: PLC0415

    return (pull * share).to(states.dtype), on_gpu.backward(share, states, table, targets, rest, smoothing, precision)


def _fake_backward(grad: Tensor, states: Tensor, table: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(states), torch.empty_like(table)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.smoothing, ctx.precision = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros as large as the table for results that nothing follows from


def _gradients(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor, Tensor, None, None, None]:
    states, table = _backward_op(grad, *ctx.saved_tensors, ctx.smoothing, ctx.precision)
    return states, table, None, None, None


_op = register_op(
    "linear_cross_entropy(Tensor states, Tensor table, Tensor targets, float label_smoothing, str precision)"
    " -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
)
_backward_op = register_op(
    "linear_cross_entropy_backward(Tensor grad, Tensor states, Tensor table, Tensor targets, Tensor pull, Tensor rest,"
    " float label_smoothing, str precision) -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
)
register_gradient("linear_cross_entropy", _save, _gradients)


def in_blocks(states: Tensor, table: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """The mean loss and the gradients of the summed losses in states and table: a block of rows at a time."""
    count, num_items = len(states), len(table)
    rows = max(MIN_BLOCK_ROWS, BLOCK_LOGITS[states.device.type] // num_items // ROUND_ROWS * ROUND_ROWS)
    shift = not _is_safe(states, table)
    block = states.new_empty(num_items * min(rows, count))
    losses = states.new_empty(count)
    grad_states, grad_table = torch.empty_like(states), torch.zeros_like(table)
    for first in range(0, count, rows):
        part = slice(first, first + rows)
        some = states[part]
        # items by positions: a fifth faster than the other way round, whose products are slim the wrong way
        logits = torch.mm(table, some.T, out=block[: num_items * len(some)].view(num_items, len(some)))
        losses[part], total = _to_gradient(logits, targets[part], smoothing, shift)
        torch.mm(logits.T, table, out=grad_states[part])
        grad_states[part].div_(total)
        grad_table.addmm_(logits, some / total)
    if smoothing:
        centre = table.mean(dim=0)  # s . centre is the mean logit of a row
        losses -= states @ (smoothing * centre)
        grad_states -= smoothing * centre
        grad_table -= states.sum(dim=0) * (smoothing / num_items)
    return losses.mean(), grad_states, grad_table


def _is_safe(states: Tensor, table: Tensor) -> bool:
    """Whether every logit is so small (|s . w| <= |s| |w|) that exp needs no shift by the row's largest.

    Two passes over a block fewer. Never on a GPU, which would have to be waited for.
    """
    if states.is_cuda or not len(states):
        return False
    return bool(states.norm(dim=1).max() * table.norm(dim=1).max() <= SAFE_LOGIT)


def _to_gradient(logits: Tensor, targets: Tensor, smoothing: float, shift: bool) -> tuple[Tensor, Tensor]:
    """Losses (rows,) and sums of exponentials (rows, 1), but for the even share of smoothing.

    `logits` (V, rows) become, in place, the gradient of the sum of the losses times each position's sum.
    """
    own = logits.gather(0, targets[None])
    largest = logits.amax(dim=0, keepdim=True) if shift else torch.zeros_like(own)
    if shift:
        logits.sub_(largest)
    total = logits.exp_().sum(dim=0, keepdim=True)
    logits.scatter_(0, targets[None], logits.gather(0, targets[None]) - (1 - smoothing) * total)
    return (largest + total.log() - (1 - smoothing) * own)[0], total.T
