"""Where the long backward pass collects the gradients of the two bias tables: float32 copies, added up at the end."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..jagged.time_buckets import NUM_TIME_BUCKETS
from .attention_call import AttentionCall

SHARED_SLOTS = 32  # copies that programs share: enough that few wait for each other
ORDERED_PROGRAMS = 2048  # deterministic: programs to aim at, several rounds on an H200, each with copies of its own


@dataclass(frozen=True, eq=False)
class TableCopies:
    """position (slots, heads, distances), time (slots, heads, NUM_TIME_BUCKETS); None where there is no table.

    A sequence's blocks of keys are dealt to `groups` programs per head.
    """

    groups: int
    slots: int
    position: Tensor | None
    time: Tensor | None

    def position_gradient(self, call: AttentionCall) -> Tensor | None:
        """Like call.position_table."""
        table = call.position_table
        if self.position is None or table is None:
            return None
        sums = _by_row(self.position, len(table)) * call.scale
        return clipped_columns(sums, call.position_reach - (call.max_len - 1), table.shape[1]).to(table.dtype)

    def time_gradient(self, call: AttentionCall) -> Tensor | None:
        """Like call.time_table."""
        if self.time is None or call.time_table is None:
            return None
        return (_by_row(self.time, len(call.time_table)) * call.scale).to(call.time_table.dtype)


def copies_of(call: AttentionCall, heads: int, blocks: int) -> TableCopies:
    """Zeros for a backward pass over at most `blocks` blocks of keys in a sequence.

    Deterministic, every program has a copy of its own, in which it adds up in its order; there are fewer programs then,
    each with several blocks of keys, so that copies stay near ORDERED_PROGRAMS * max_len floats.
    """
    biased = call.position_table is not None or call.time_table is not None
    groups = blocks
    if call.deterministic and biased:
        groups = min(blocks, -(-ORDERED_PROGRAMS // max(call.batch * heads, 1)))
    slots = call.batch * groups
    if not call.deterministic:
        slots = min(slots, SHARED_SLOTS)
    device = call.offsets.device
    position = time = None
    if call.position_table is not None:
        position = torch.zeros(slots, heads, call.num_distances(), dtype=torch.float32, device=device)
    if call.time_table is not None:
        time = torch.zeros(slots, heads, NUM_TIME_BUCKETS, dtype=torch.float32, device=device)
    return TableCopies(groups, max(slots, 1), position, time)


def clipped_columns(columns: Tensor, first: int, entries: int) -> Tensor:
    """(rows, n) to (rows, entries): column c is added to entry first + c, clipped to 0 .. entries - 1.

    By slices alone: an index_add would have no fixed order on CUDA.
    """
    n = columns.shape[1]
    left, right = min(max(-first, 0), n), min(max(first + n - entries, 0), n)  # how many are beyond either end
    before = min(max(first, 0), entries)
    table = F.pad(columns[:, left : n - right], (before, entries - before - (n - left - right)))
    table[:, 0] += columns[:, :left].sum(1)
    table[:, -1] += columns[:, n - right :].sum(1)
    return table


def _by_row(copies: Tensor, rows: int) -> Tensor:
    """(slots, heads, n) to (rows, n): summed over the copies, and over the heads where they share one row."""
    return copies.sum((0, 1)).unsqueeze(0) if rows == 1 else copies.sum(0)
