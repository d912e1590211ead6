"""A packing plan whose shapes do not follow the data, made on the device: a step over it can be captured as a CUDA
graph and replayed on other batches.

The flat tokens are padded at their end to a fixed number. HSTU's attention on CUDA walks the offsets and needs no more.
What needs rows gets one for every sequence, wide enough for the longest that may come: that gives up what packing
saves, for no work on the host and no launch per operation.

Tensor dimensions: B sequences, C tokens with those that pad, T row width.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .packing import WIDTH_STEP, PackingPlan, RowGroup, Rows


class TokenPlaces(NamedTuple):
    """Whose each of C tokens is; for a token that only pads, sequence 0 and place 0."""

    sequences: Tensor  # (C,) int64
    positions: Tensor  # (C,) int64: place in the sequence, 0 = first
    counted: Tensor  # (C,) bool: not a token that only pads


def token_places(offsets: Tensor, num_tokens: int) -> TokenPlaces:
    """Sequence i has the tokens `offsets[i]:offsets[i + 1]` of `num_tokens` (C); what lies behind them pads."""
    steps = torch.arange(num_tokens, device=offsets.device)
    owners = torch.searchsorted(offsets[1:], steps, right=True)  # skips empty sequences: they end where they begin
    counted = owners < len(offsets) - 1
    owners = torch.where(counted, owners, 0)
    return TokenPlaces(owners, torch.where(counted, steps - offsets.index_select(0, owners), 0), counted)


def fixed_plan(offsets: Tensor, places: TokenPlaces, max_len: int, times: Tensor | None = None) -> PackingPlan:
    """Plan for sequences of at most max_len tokens; offsets (B + 1,) int64 and `places` on the same device.

    times (C,) int64, as in `PackingPlan.build`. The device is never waited for.
    """
    return PackingPlan(offsets, places.positions, partial(_row_each, offsets, places, max_len, times), times)


def _row_each(offsets: Tensor, places: TokenPlaces, max_len: int, times: Tensor | None) -> Rows:
    """A row for every sequence. A token that only pads reads the last slot of the first row, which is always empty: no
    other token sees it, and no gradient reaches it.
    """
    width = row_width(max_len)
    lengths = offsets.diff()
    columns = torch.arange(width, device=offsets.device)
    filled = columns < lengths[:, None]  # (B, T)
    tokens = torch.where(filled, offsets[:-1, None] + columns, 0).flatten()
    rows = torch.arange(len(lengths), dtype=torch.int32, device=offsets.device)
    segments = torch.where(filled, rows[:, None], -1)
    row_times = None if times is None else times.index_select(0, tokens).view(segments.shape)
    return Rows(
        groups=(RowGroup(segments, row_times, single=True),),
        slots=torch.where(places.counted, places.sequences * width + places.positions, width - 1),
        tokens=tokens,
        empty=~filled.flatten(),
    )


def row_width(max_len: int) -> int:
    """T: more than max_len, and a multiple of what CUDA's attention kernels want their masks aligned to."""
    return (max_len // WIDTH_STEP + 1) * WIDTH_STEP
