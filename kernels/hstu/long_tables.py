"""Float32 copies of the two bias tables in which the long backward pass accumulates gradients, summed at the end."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..jagged.time_buckets import NUM_TIME_BUCKETS
from .attention_call import AttentionCall

SHARED_SLOTS = 32  # number of shared copies, enough to keep contention between programs low
ORDERED_PROGRAMS = 2048  # deterministic: target number of programs, several waves on an H200, each with its own copies


@dataclass(frozen=True, eq=False)
class TableCopies:
    """position (slots, heads, distances), time (slots, heads, NUM_TIME_BUCKETS); None for a missing table.

    The blocks of keys of a sequence are distributed over `groups` programs per head.
    """

    groups: int
    slots: int
    position: Tensor | None
    time: Tensor | None

    def position_gradient(self, call: AttentionCall) -> Tensor | None:
        """The gradient of call.position_table, None without one."""
        table = call.position_table
        if self.position is None or table is None:
            return None
        sums = _by_row(self.position, len(table)) * call.scale
        return clipped_columns(sums, call.position_reach - (call.max_len - 1), table.shape[1]).to(table.dtype)

    def time_gradient(self, call: AttentionCall) -> Tensor | None:
        """The gradient of call.time_table, None without one."""
        if self.time is None or call.time_table is None:
            return None
        return (_by_row(self.time, len(call.time_table)) * call.scale).to(call.time_table.dtype)


def copies_of(call: AttentionCall, heads: int, blocks: int) -> TableCopies:
    """Zeroed copies for a backward pass over at most `blocks` blocks of keys per sequence.

    In deterministic mode every program adds to its own copy, in program order. There are then fewer programs, each with
    several blocks of keys, so that the copies take about ORDERED_PROGRAMS * max_len floats.
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

    Computed with slices, because index_add has no fixed order on CUDA.
    """
    n = columns.shape[1]
    left, right = min(max(-first, 0), n), min(max(first + n - entries, 0), n)  # number of columns beyond either end
    before = min(max(first, 0), entries)
    table = F.pad(columns[:, left : n - right], (before, entries - before - (n - left - right)))
    table[:, 0] += columns[:, :left].sum(1)
    table[:, -1] += columns[:, n - right :].sum(1)
    return table


def _by_row(copies: Tensor, rows: int) -> Tensor:
    """(slots, heads, n) to (rows, n): the sum over the copies, and over the heads if they share one row."""
    return copies.sum((0, 1)).unsqueeze(0) if rows == 1 else copies.sum(0)
