"""Block-diagonal packing: the sequences of a jagged batch, unsplit, side by side in rows.

Real sequences average 9 of at most 50 events, so padding each to the longest wastes most of the work. Short sequences
share rows of one width; longer ones have rows of two, four, … times that width. The cost of attention therefore follows
the number of events, and a long sequence widens only its own row. A plan is built once per batch and serves every
layer. Dense layers run on packed tokens and do not need it; only operations that couple the tokens of a sequence use
`gather` and `scatter`.

Tensor dimensions: L total tokens; per group of equally wide rows: R rows, T row width.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.errors import KernelError
from .time_buckets import time_buckets

Integers = np.ndarray[Any, np.dtype[np.int64]]
MAX_INT32 = 2**31 - 1
BASE_WIDTH = 32  # width of the narrowest rows; smaller matrix products are dominated by call overhead
WIDTH_STEP = 8  # CUDA's attention kernels require masks aligned to eight elements


@dataclass(frozen=True, eq=False)
class RowGroup:
    """Rows of one width, with the sequence that fills each slot, -1 for an empty slot."""

    segments: Tensor  # (R, T) int32
    times: Tensor | None  # (R, T) int64
    single: bool = False  # every row holds one sequence, from column 0 on
    _masks: dict[tuple[bool, torch.dtype], Tensor] = field(default_factory=dict, repr=False)
    _buckets: list[Tensor] = field(default_factory=list, repr=False)

    @property
    def width(self) -> int:
        """T."""
        return self.segments.shape[1]

    def mask(self, causal: bool, dtype: torch.dtype = torch.bool) -> Tensor:
        """(R, T, T): one where query i may attend to key j: in the same sequence, and j <= i if causal.

        Empty slots attend to each other, so that no query is without a key. Computed once per plan for all layers.
        """
        if (causal, dtype) not in self._masks:
            if dtype == torch.bool:
                mask = self.segments[:, :, None] == self.segments[:, None, :]
                self._masks[causal, dtype] = mask.tril_() if causal else mask
            else:
                self._masks[causal, dtype] = self.mask(causal).to(dtype)
        return self._masks[causal, dtype]

    def bias(self, position_table: Tensor | None, time_table: Tensor | None, causal: bool) -> Tensor | None:
        """The bias of each pair of slots, broadcastable to (R, heads, T, T); None if there is no table."""
        position = None if position_table is None else self.position_bias(position_table, causal)
        if time_table is None:
            return position
        return self.time_bias(time_table) if position is None else position + self.time_bias(time_table)

    def position_bias(self, table: Tensor, causal: bool) -> Tensor:
        """(tables, num_distances(max_len, causal)) to (tables, T, T): entry [i, j] is the bias of distance j - i.

        The tokens of a sequence are contiguous in its row, so that one T x T square serves every row. The table starts
        at distance -(max_len - 1); larger distances take the entry of the largest distance in the table.
        """
        max_len = table.shape[1] if causal else (table.shape[1] + 1) // 2
        columns = torch.arange(self.width, device=table.device)
        distances = columns[None, :] - columns[:, None]  # (T, T)
        index = (distances + max_len - 1).clamp_(0, table.shape[1] - 1)
        return table.index_select(1, index.flatten()).view(-1, self.width, self.width)

    def time_bias(self, table: Tensor) -> Tensor:
        """(tables, NUM_TIME_BUCKETS) to (R, tables, T, T): the bias of the time between the events in two slots."""
        if self.times is None:
            raise ValueError("a time table needs the events' times; build the plan with times")
        if not self._buckets:
            self._buckets.append(time_buckets(self.times[:, :, None] - self.times[:, None, :]))
        bias: Tensor = _LookUp.apply(table, self._buckets[0])  # type: ignore[no-untyped-call]
        return bias


@dataclass(frozen=True, eq=False)
class Rows:
    """The layout of a jagged batch in rows."""

    groups: tuple[RowGroup, ...]  # narrowest first
    slots: Tensor  # (L,) int64: the slot of each token, numbered through the rows of all groups
    tokens: Tensor  # (all slots,) int64: the token in each slot; arbitrary for an empty slot
    empty: Tensor  # empty slots: indices (all slots - L,) int64, or in a plan of fixed shape a mask (all slots,) bool


@dataclass(frozen=True, eq=False)
class PackingPlan:
    """The sequences of a jagged batch, and their rows. Build it with `PackingPlan.build` or `fixed_plan`.

    Rows are laid out at first use: HSTU's attention on CUDA needs only `device_offsets`.
    """

    offsets: Tensor  # (batch + 1,) int64, on the CPU; on the device in a plan of fixed shape
    positions: Tensor  # (L,) int64: index of each token in its sequence, 0 = first
    lay_out: Callable[[], Rows] = field(repr=False)
    times: Tensor | None = None  # (L,) int64, seconds

    @classmethod
    def build(cls, offsets: Tensor, device: torch.device | str = "cpu", times: Tensor | None = None) -> "PackingPlan":
        """Plan for sequences `offsets[i]:offsets[i + 1]`, offsets (batch + 1,) int64 on the CPU; may be empty.

        times (L,) int64: the time of each event in seconds; only attention with a time table reads them. Raises
        KernelError for offsets that do not begin at 0 or that decrease, and for times of another length.
        """
        check_offsets(offsets)
        starts = offsets.numpy()
        if times is not None and len(times) != starts[-1]:
            raise KernelError(f"there are {len(times)} times for {starts[-1]} tokens; give one for each token")
        positions = np.arange(starts[-1], dtype=np.int64) - np.repeat(starts[:-1], np.diff(starts))
        on_device = torch.from_numpy(positions).to(device, non_blocking=True)
        return cls(offsets, on_device, partial(_pack, starts, torch.device(device), times), times)

    @property
    def groups(self) -> tuple[RowGroup, ...]:
        """See Rows, also for `slots`, `tokens` and `empty`."""
        return self._rows.groups

    @property
    def slots(self) -> Tensor:
        return self._rows.slots

    @property
    def tokens(self) -> Tensor:
        return self._rows.tokens

    @property
    def empty(self) -> Tensor:
        return self._rows.empty

    @cached_property
    def _rows(self) -> Rows:
        return self.lay_out()

    @cached_property
    def longest(self) -> int | None:
        """Length of the longest sequence; None if the offsets are on a GPU: reading them would wait for the device."""
        if self.offsets.device.type != "cpu":
            return None
        return int(self.offsets.diff().max()) if len(self.offsets) > 1 else 0

    @cached_property
    def device_offsets(self) -> Tensor:
        """offsets as int32 on the device of the tokens, as the CUDA kernels expect them."""
        return self.offsets.to(torch.int32).to(self.positions.device, non_blocking=True)

    @cached_property
    def relative_times(self) -> Tensor | None:
        """Seconds since the first event of the sequence, as int32: half the work of int64 in a CUDA kernel.

        Exact for sequences that span less than 2**31 seconds (68 years); larger differences are clamped.
        """
        if self.times is None:
            return None
        firsts = torch.arange(len(self.positions), device=self.positions.device) - self.positions
        passed = self.times - self.times.index_select(0, firsts)
        return passed.clamp_(-MAX_INT32, MAX_INT32).to(torch.int32)

    def gather(self, tokens: Tensor) -> list[Tensor]:
        """(L, ...) to (R, T, ...) for each group; empty slots are zero."""
        slots: Tensor = _ToSlots.apply(tokens, self)  # type: ignore[no-untyped-call]
        return _split(slots, [(len(group.segments), group.width) for group in self.groups])

    def clear(self, slots: Tensor) -> Tensor:
        """Zero the empty slots of `slots` (all slots, ...) in place, and return it."""
        if self.empty.dtype != torch.bool:
            return slots.index_fill_(0, self.empty, 0)
        return slots.masked_fill_(self.empty.view(-1, *[1] * (slots.dim() - 1)), 0)

    def scatter(self, rows: Sequence[Tensor]) -> Tensor:
        """(R, T, ...) of each group back to (L, ...): the inverse and the adjoint of `gather`."""
        flat = [group.flatten(0, 1) for group in rows]
        tokens: Tensor = _ToTokens.apply(torch.cat(flat) if len(flat) > 1 else flat[0], self)  # type: ignore[no-untyped-call]
        return tokens


def check_offsets(offsets: Tensor) -> None:
    """Raise KernelError unless offsets (batch + 1,), integers on the CPU, begin at 0 and never decrease."""
    if offsets.ndim != 1 or not len(offsets) or offsets.dtype not in (torch.int64, torch.int32):
        raise KernelError(f"offsets are {offsets.dtype} of shape {tuple(offsets.shape)}; give (batch + 1,) integers")
    if int(offsets[0]) != 0:
        raise KernelError(f"offsets begin at {int(offsets[0])}; the first sequence begins at token 0")
    if len(offsets) > 1 and int(offsets.diff().min()) < 0:
        sequence = int(offsets.diff().argmin())
        raise KernelError(f"offsets decrease after sequence {sequence}; each sequence ends where the next begins")


def _pack(starts: Integers, device: torch.device, times: Tensor | None) -> Rows:
    lengths = np.diff(starts)
    first_slots, shapes = _lay_out(lengths)
    num_slots = sum(rows * width for rows, width in shapes)
    steps = np.arange(starts[-1], dtype=np.int64)
    slots = steps + np.repeat(first_slots - starts[:-1], lengths)
    segments = np.full(num_slots, -1, dtype=np.int32)
    segments[slots] = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    tokens = np.zeros(num_slots, dtype=np.int64)
    tokens[slots] = steps
    segments_, slots_, tokens_, empty = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (segments, slots, tokens, np.flatnonzero(segments < 0))
    )
    slot_times = [None] * len(shapes) if times is None else _split(times.index_select(0, tokens_), shapes)
    groups = zip(_split(segments_, shapes), slot_times, strict=True)
    return Rows(tuple(RowGroup(*group) for group in groups), slots_, tokens_, empty)


def _split(slots: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    parts = torch.split(slots, [rows * width for rows, width in shapes])
    return [part.view(*shape, *slots.shape[1:]) for part, shape in zip(parts, shapes, strict=True)]


def num_distances(max_len: int, causal: bool) -> int:
    """Columns of a relative position table: distances j - i of -(max_len - 1) .. 0, or .. max_len - 1 if not causal."""
    return max_len if causal else 2 * max_len - 1


def _lay_out(lengths: Integers) -> tuple[Integers, list[tuple[int, int]]]:
    """First slot of each sequence, and (rows, width) of each group; at least one group, even without tokens."""
    classes = np.ceil(np.log2(np.maximum(lengths, BASE_WIDTH) / BASE_WIDTH)).astype(np.int64)
    first, shapes, num_slots = np.zeros(len(lengths), dtype=np.int64), [], 0
    for number in np.unique(classes).tolist() or [0]:
        members = np.flatnonzero(classes == number)
        width = -(-int(lengths[members].max(initial=BASE_WIDTH)) // WIDTH_STEP) * WIDTH_STEP
        places, rows = _place(lengths[members], width)
        first[members] = places + num_slots
        shapes.append((rows, width))
        num_slots += rows * width
    return first, shapes


def _place(lengths: Integers, width: int) -> tuple[Integers, int]:
    """First slot of each sequence, and the number of rows.

    Each row takes the longest remaining sequence, then as many of the shortest remaining ones as fit.
    """
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
    heads = ascending[::-1][:num_rows]  # length of the long sequence of each row, which starts at column 0
    begins = np.asarray(ends[:-1], dtype=np.int64)
    tail_rows = np.repeat(rows, np.diff(ends))
    first = np.empty(len(lengths), dtype=np.int64)
    first[order[::-1][:num_rows]] = rows * width
    tail = filled[: len(tail_rows)] - filled[begins][tail_rows]
    first[order[: len(tail_rows)]] = tail_rows * width + heads[tail_rows] + tail
    return first, num_rows


class _LookUp(torch.autograd.Function):
    """table[:, index] as (R, tables, T, T). On a CPU the backward pass sums by bucket with bincount."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.index, ctx.shape = index, table.shape
        return torch.stack([row[index] for row in table], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        index, (tables, size) = ctx.index.flatten(), ctx.shape
        if grad.is_cuda:  # bincount on CUDA waits for the device
            columns = grad.transpose(0, 1).flatten(1)  # (tables, R * T * T)
            return columns.new_zeros(ctx.shape).index_add_(1, index, columns), None
        sums = [torch.bincount(index, grad[:, table].flatten(), minlength=size) for table in range(tables)]
        return torch.stack(sums).to(grad.dtype), None


class _ToSlots(torch.autograd.Function):
    """`gather` and `scatter` are each other's backward pass; index_add, which CUDA sums in any order, is not needed."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, plan: PackingPlan) -> Tensor:
        ctx.plan = plan
        if not len(tokens):
            return tokens.new_zeros(len(plan.tokens), *tokens.shape[1:])
        return plan.clear(tokens.index_select(0, plan.tokens))

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
