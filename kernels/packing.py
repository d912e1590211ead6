"""Block-diagonal packing: whole sequences of a jagged batch laid side by side in rows of one width.

Real sequences average 9 events of 50, so padding each to the longest wastes most of the work. A plan is built once
per batch and serves every layer. Dense layers never see it: they run on packed tokens; only what couples the tokens
of a sequence (attention, readouts) goes through `gather` and `scatter`.

Not covered: one very long sequence among short ones makes every row that wide, where several widths would be cheaper.

Tensor dimensions: L total tokens, R rows, T row width.
"""

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Integers = np.ndarray[Any, np.dtype[np.int64]]
MIN_WIDTH = 16
WIDTH_STEP = 8  # CUDA's attention kernels want masks aligned to eight elements


@dataclass(frozen=True, eq=False)
class PackingPlan:
    """Where each token of a jagged batch lies in (R, T) rows. Build it with `PackingPlan.build`."""

    offsets: Tensor  # (batch + 1,) int64, always on the CPU
    num_rows: int  # R
    width: int  # T, at least the longest sequence
    slots: Tensor  # (L,) int64: row * T + column of each token
    tokens: Tensor  # (R * T,) int64: the token in each slot; any token where there is none
    empty: Tensor  # (R * T - L,) int64: the slots that no token fills
    positions: Tensor  # (L,) int64: place of each token in its sequence, 0 = first
    segments: Tensor  # (R, T) int32: which sequence of the batch fills the slot, -1 where none does
    _masks: dict[tuple[bool, torch.dtype], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def build(cls, offsets: Tensor, device: torch.device | str = "cpu") -> "PackingPlan":
        """Plan for sequences `offsets[i]:offsets[i + 1]`, offsets (batch + 1,) int64 on the CPU; may be empty."""
        starts = offsets.numpy()
        lengths = np.diff(starts)
        longest = int(lengths.max(initial=MIN_WIDTH))
        width = -(-longest // WIDTH_STEP) * WIDTH_STEP
        first_slots, num_rows = _place(lengths, width)
        steps = np.arange(starts[-1], dtype=np.int64)
        slots = steps + np.repeat(first_slots - starts[:-1], lengths)
        segments = np.full(num_rows * width, -1, dtype=np.int32)
        segments[slots] = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        tokens = np.zeros(num_rows * width, dtype=np.int64)
        tokens[slots] = steps
        plan = cls(
            offsets,
            num_rows,
            width,
            slots=torch.from_numpy(slots),
            tokens=torch.from_numpy(tokens),
            empty=torch.from_numpy(np.flatnonzero(segments < 0)),
            positions=torch.from_numpy(steps - np.repeat(starts[:-1], lengths)),
            segments=torch.from_numpy(segments).view(num_rows, width),
        )
        return plan.to(device)

    def to(self, device: torch.device | str) -> "PackingPlan":
        """The same plan with its tensors (all but `offsets`) on `device`."""
        if torch.device(device) == self.slots.device:
            return self
        names = ("slots", "tokens", "empty", "positions", "segments")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, **moved, _masks={})

    def gather(self, tokens: Tensor) -> Tensor:
        """(L, ...) to (R, T, ...); slots that no token fills are zero."""
        slots: Tensor = _ToSlots.apply(tokens, self)  # type: ignore[no-untyped-call]
        return slots.view(self.num_rows, self.width, *tokens.shape[1:])

    def scatter(self, rows: Tensor) -> Tensor:
        """(R, T, ...) back to (L, ...): the inverse and the adjoint of `gather`."""
        tokens: Tensor = _ToTokens.apply(rows.flatten(0, 1), self)  # type: ignore[no-untyped-call]
        return tokens

    def mask(self, causal: bool, dtype: torch.dtype = torch.bool) -> Tensor:
        """(R, T, T): one where query i may see key j: the same sequence, and j <= i if causal.

        Empty slots see each other, so no query is without a key. Computed once per plan, shared by all layers.
        """
        if (causal, dtype) not in self._masks:
            if dtype == torch.bool:
                mask = self.segments[:, :, None] == self.segments[:, None, :]
                self._masks[causal, dtype] = mask.tril_() if causal else mask
            else:
                self._masks[causal, dtype] = self.mask(causal).to(dtype)
        return self._masks[causal, dtype]

    def relative_bias(self, table: Tensor, causal: bool) -> Tensor:
        """(tables, num_distances(max_len, causal)) to (tables, T, T): entry [i, j] is the bias of distance j - i.

        A sequence lies side by side in its row, so that one T x T square serves every row. The table starts at
        distance -(max_len - 1); what is further away takes the entry of the furthest.
        """
        max_len = table.shape[1] if causal else (table.shape[1] + 1) // 2
        columns = torch.arange(self.width, device=table.device)
        distances = columns[None, :] - columns[:, None]  # (T, T)
        index = (distances + max_len - 1).clamp_(0, table.shape[1] - 1)
        return table.index_select(1, index.flatten()).view(-1, self.width, self.width)


def num_distances(max_len: int, causal: bool) -> int:
    """Entries of a relative position table: distances j - i of -(max_len - 1) .. 0, or .. max_len - 1 if not causal."""
    return max_len if causal else 2 * max_len - 1


def _place(lengths: Integers, width: int) -> tuple[Integers, int]:
    """First slot of each sequence, and the number of rows. Each row: the longest left, then as many of the shortest."""
    order = np.argsort(lengths, kind="stable")
    ascending = lengths[order]
    filled = np.concatenate(([0], np.cumsum(ascending)))
    sums = filled.tolist()
    ends, low, high = [0], 0, len(lengths)
    while low < high:  # once per row
        high -= 1
        room = width - (sums[high + 1] - sums[high])
        low = bisect_right(sums, sums[low] + room, low, high + 1) - 1
        ends.append(low)
    num_rows = len(ends) - 1
    rows = np.arange(num_rows, dtype=np.int64)
    heads = ascending[::-1][:num_rows]  # the long sequence of each row, at column 0
    begins = np.asarray(ends[:-1], dtype=np.int64)
    tail_rows = np.repeat(rows, np.diff(ends))
    first = np.empty(len(lengths), dtype=np.int64)
    first[order[::-1][:num_rows]] = rows * width
    tail = filled[: len(tail_rows)] - filled[begins][tail_rows]
    first[order[: len(tail_rows)]] = tail_rows * width + heads[tail_rows] + tail
    return first, num_rows


class _ToSlots(torch.autograd.Function):
    """`gather` and `scatter` are each other's backward, so that neither needs index_add, which CUDA sums unordered."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, plan: PackingPlan) -> Tensor:
        ctx.plan = plan
        if not len(tokens):
            return tokens.new_zeros(len(plan.tokens), *tokens.shape[1:])
        return tokens.index_select(0, plan.tokens).index_fill_(0, plan.empty, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _ToTokens.apply(grad, ctx.plan), None  # type: ignore[no-untyped-call]


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slots: Tensor, plan: PackingPlan) -> Tensor:
        ctx.plan = plan
        return slots.index_select(0, plan.slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _ToSlots.apply(grad, ctx.plan), None  # type: ignore[no-untyped-call]
