"""The cross-entropy over the whole catalogue on a CPU with bfloat16 instructions: products of bfloat16, float32 sums.

`linear_cross_entropy.py` defines the loss and calls this module, if asked to, for float32 states and table.

A block consists of some positions and all items, and of its logits only the bfloat16 exponentials are stored:

    P_ji = exp(w_j . s_i - c_i)                  grad_states_i = sum_j P_ji w_j / Z_i          Z_i = sum_j P_ji
                                                  grad_table_j = sum_i P_ji s_i / Z_i

The contribution of the targets, and with it most of the loss, is added in float32 outside the blocks. The passes over a
block that a direct translation of the float32 code would need are avoided:

- torch has no matrix product of bfloat16 operands with a float32 result on CPUs, and a pass of exp over bfloat16 logits
  would see logits with three digits. oneDNN instead applies a sigmoid to the float32 sums of the first product, before
  they are rounded: sigmoid(x - c) = exp(x - c) / (1 + exp(x - c)) is exp(x - c) up to the factor 1 + exp(x - c), which
  is below the rounding error of bfloat16 because c is MARGIN above every logit of the row.
- Z is one more row of the second product, whose first operand has a row of ones.
- c comes from the norms of states and rows, not from the logits. If that bound is so far above a row's largest logit
  that exponentials would underflow, this module declines, and the caller computes the step in float32.

Tensor dimensions: n positions, V items, d width.
"""

import torch
from torch import Tensor

BLOCK_LOGITS = 6 << 20  # 12 MB; with smaller blocks adding up the table's gradient takes longer
MIN_BLOCK_ROWS = 128
ROUND_ROWS = 32
MARGIN = 8.0  # exp(-MARGIN) is a sixth of the rounding error of bfloat16
MAX_BOUND = 120.0  # of |s| |w|: up to 128, rounding c to bfloat16 changes it by at most .25, which MARGIN covers
MAX_GAP = 56.0  # exponentials reach down to exp(-87), so that those of exp(-23) times a row's largest are not lost


def is_available() -> bool:
    """Whether torch can multiply bfloat16 matrices on this CPU, in hardware or emulated by AVX-512."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def in_bfloat16(
    states: Tensor, table: Tensor, targets: Tensor, target_weight: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Losses (n,) and the gradients of their sum in states and table; None if float32 is needed for these scores.

    target_weight: 1 - label_smoothing. The uniform term of smoothing is left to the caller.
    """
    target_vectors = table[targets]
    target_logits = (states * target_vectors).sum(dim=1)
    shifts = _shifts(states, table, target_logits)
    if shifts is None:
        return None
    totals = states.new_empty(len(states))
    grad_states, grad_table = torch.empty_like(states), torch.zeros_like(table)
    _add_blocks(states, table, shifts, totals, grad_states, grad_table)
    grad_states -= target_weight * target_vectors
    grad_table.index_add_(0, targets, states, alpha=-target_weight)
    return totals.log() + shifts.float() - target_weight * target_logits, grad_states, grad_table


def _shifts(states: Tensor, table: Tensor, target_logits: Tensor) -> Tensor | None:
    """c (n,) in bfloat16; None if the bound |s| max |w| exceeds MAX_BOUND, or a row's largest logit by MAX_GAP.

    The logit of the target and the mean logit are lower bounds of the largest one. NaN gives None.
    """
    if not len(states):
        return None
    bounds = states.norm(dim=1) * table.norm(dim=1).max()
    largest = torch.maximum(target_logits, states @ table.mean(dim=0))
    fit = bounds.max() <= MAX_BOUND and (bounds - largest).max() <= MAX_GAP
    return (bounds + MARGIN).bfloat16() if fit else None


def _add_blocks(
    states: Tensor, table: Tensor, shifts: Tensor, totals: Tensor, grad_states: Tensor, grad_table: Tensor
) -> None:
    """Write Z (n,) to `totals` and grad_states, and add to grad_table, without the contribution of the targets."""
    (num_items, width), rows = table.shape, _block_rows(len(states), len(table))
    vectors, inputs, biases = table.bfloat16(), states.bfloat16(), -shifts
    with_ones = vectors.new_empty(width + 1, num_items)
    with_ones[:width], with_ones[width] = vectors.T, 1
    for first in range(0, len(states), rows):
        part = slice(first, first + rows)
        exponentials = torch.ops.mkldnn._linear_pointwise(vectors, inputs[part], biases[part], "sigmoid", [], "")
        sums = torch.mm(with_ones, exponentials).float()  # (d + 1, rows)
        totals[part] = sums[width]
        grad_states[part] = (sums[:width] / sums[width]).T
        grad_table += torch.mm(exponentials, (states[part] / totals[part, None]).bfloat16())


def _block_rows(count: int, num_items: int) -> int:
    """Rows of a block, so that all blocks but the last are equal and the last is not much smaller."""
    limit = max(MIN_BLOCK_ROWS, BLOCK_LOGITS // num_items // ROUND_ROWS * ROUND_ROWS)
    blocks = -(-count // limit)
    return -(-count // blocks // ROUND_ROWS) * ROUND_ROWS
