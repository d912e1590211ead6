"""Cross-entropy over a whole catalogue without its logits in memory: a block of rows at a time, gradients on the way.

    loss = mean_i [ logsumexp_j(s_i . w_j) - (1 - e) s_i . w_{y_i} - e mean_j(s_i . w_j) ]        e = label_smoothing

The gradient of a row's logits is softmax - (1 - e) onehot - e / V, so it is known as soon as the row's logits are: the
forward pass multiplies it into the gradients of states and table at once and throws the block away. What a step
holds is one block, whatever the number of positions and items.

The three matrix products are most of the time, so little else passes over a block: softmax is divided by its sum on
the d-wide side of the products, and what smoothing adds is the same for all items and never enters the block.

Not here: temperature and cosine, which the caller folds into states and table.

Tensor dimensions: n positions, V items, d width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 27}  # a block that stays in the cache, or half a gigabyte
MIN_BLOCK_ROWS = 64  # fewer make the matrix products slim
SAFE_LOGIT = 40.0  # e**40 summed over a catalogue, and one over e**-40, are far inside float32


def linear_cross_entropy(states: Tensor, table: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The mean loss, a scalar; states (n, d) and table (V, d) of one floating dtype, targets (n,) int64.

    Differentiable once, in states and table. n may be 0: the loss is then NaN, as the mean of nothing.
    """
    loss: Tensor = _LinearCrossEntropy.apply(states, table, targets, label_smoothing)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        count, num_items = len(states), len(table)
        rows = max(MIN_BLOCK_ROWS, BLOCK_LOGITS[states.device.type] // num_items)
        columns, shift = table.T.contiguous(), not _is_safe(states, table)
        block = states.new_empty(min(rows, max(count, 1)), num_items)
        losses = states.new_empty(count)
        grad_states, grad_table = torch.empty_like(states), torch.zeros_like(table)
        for first in range(0, count, rows):
            part = slice(first, first + rows)
            logits = torch.mm(states[part], columns, out=block[: len(states[part])])
            losses[part], total = _to_gradient(logits, targets[part], smoothing, shift)
            torch.mm(logits, table, out=grad_states[part])
            grad_states[part].div_(total)
            grad_table.addmm_(logits.T, states[part] / total)
        if smoothing:
            centre = table.mean(dim=0)  # s . centre is the mean logit of a row
            losses -= states @ (smoothing * centre)
            grad_states -= smoothing * centre
            grad_table -= states.sum(dim=0) * (smoothing / num_items)
        ctx.save_for_backward(grad_states, grad_table)
        ctx.count = count
        return losses.mean()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_states, grad_table = ctx.saved_tensors
        share = grad / ctx.count
        return grad_states * share, grad_table * share, None, None


def _is_safe(states: Tensor, table: Tensor) -> bool:
    """Whether every logit is so small (|s . w| <= |s| |w|) that exp needs no shift by the row's largest.

    Two passes over a block fewer. Never on a GPU, which would have to be waited for.
    """
    if states.is_cuda or not len(states):
        return False
    return bool(states.norm(dim=1).max() * table.norm(dim=1).max() <= SAFE_LOGIT)


def _to_gradient(logits: Tensor, targets: Tensor, smoothing: float, shift: bool) -> tuple[Tensor, Tensor]:
    """Losses (rows,) and sums of exponentials (rows, 1), but for the even share of smoothing.

    `logits` (rows, V) become, in place, the gradient of the sum of the losses times each row's sum.
    """
    own = logits.gather(1, targets[:, None])
    largest = logits.amax(dim=1, keepdim=True) if shift else torch.zeros_like(own)
    if shift:
        logits.sub_(largest)
    total = logits.exp_().sum(dim=1, keepdim=True)
    logits.scatter_(1, targets[:, None], logits.gather(1, targets[:, None]) - (1 - smoothing) * total)
    return (largest + total.log() - (1 - smoothing) * own)[:, 0], total
