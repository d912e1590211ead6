"""Cross-entropy over a whole catalogue without its logits in memory: a block of rows at a time, gradients on the way.

    loss = mean_i [ logsumexp_j(s_i . w_j) - (1 - e) s_i . w_{y_i} - e mean_j(s_i . w_j) ]        e = label_smoothing

The gradient of a row's logits is softmax - (1 - e) onehot - e / V, so it is known as soon as the row's logits are: the
forward pass multiplies it into the gradients of states and table at once and throws the block away. What a step
holds is one block, whatever the number of positions and items.

Not here: temperature and cosine, which the caller folds into states and table.

Tensor dimensions: n positions, V items, d width.
"""

from typing import Any

import torch
from torch import Tensor

BLOCK_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 27}  # a block that stays in the cache, or half a gigabyte
MIN_BLOCK_ROWS = 64  # fewer make the matrix products slim


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
        columns = table.T.contiguous()
        block = states.new_empty(min(rows, max(count, 1)), num_items)
        losses = states.new_empty(count)
        grad_states, grad_table = torch.empty_like(states), torch.zeros_like(table)
        for first in range(0, count, rows):
            part = slice(first, first + rows)
            logits = torch.mm(states[part], columns, out=block[: len(states[part])])
            losses[part] = _to_gradient(logits, targets[part], smoothing)
            torch.mm(logits, table, out=grad_states[part])
            grad_table.addmm_(logits.T, states[part])
        ctx.save_for_backward(grad_states, grad_table)
        ctx.count = count
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        grad_states, grad_table = ctx.saved_tensors
        share = grad / ctx.count
        return grad_states * share, grad_table * share, None, None


def _to_gradient(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The losses (rows,); `logits` (rows, V) become the gradient of the sum of the losses, in place."""
    own = logits.gather(1, targets[:, None])
    largest = logits.amax(dim=1, keepdim=True)
    spread = logits.mean(dim=1, keepdim=True) * smoothing if smoothing else 0.0
    total = logits.sub_(largest).exp_().sum(dim=1, keepdim=True)
    losses = largest + total.log() - own * (1 - smoothing) - spread
    logits.mul_(total.reciprocal_())
    if smoothing:
        logits.sub_(smoothing / logits.shape[1])
    logits.scatter_(1, targets[:, None], logits.gather(1, targets[:, None]) - (1 - smoothing))
    return losses[:, 0]
