"""A packing plan whose shapes do not depend on the data, built on the device: a training step that uses it can be
captured as a CUDA graph and replayed on other batches.

The flat tokens are padded at the end to a fixed number. HSTU's attention on CUDA reads only the offsets. Operations
that work on rows get one row per sequence, wide enough for max_len. This gives up the savings of packing; in return the
host does no work and a replayed graph needs no launch per operation.

Tensor dimensions: B sequences, C tokens including padding, T row width.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .packing import WIDTH_STEP, PackingPlan, RowGroup, Rows


class TokenPlaces(NamedTuple):
    """The sequence of each of C tokens and its position there; a padding token has sequence 0 and position 0."""

    sequences: Tensor  # (C,) int64
    positions: Tensor  # (C,) int64: index in the sequence, 0 = first
    counted: Tensor  # (C,) bool: False for padding


def token_places(offsets: Tensor, num_tokens: int) -> TokenPlaces:
    """Places of `num_tokens` (C) tokens; sequence i has `offsets[i]:offsets[i + 1]`, and later tokens are padding."""
    steps = torch.arange(num_tokens, device=offsets.device)
    owners = torch.searchsorted(offsets[1:], steps, right=True)  # skips empty sequences, which end where they begin
    counted = owners < len(offsets) - 1
    owners = torch.where(counted, owners, 0)
    return TokenPlaces(owners, torch.where(counted, steps - offsets.index_select(0, owners), 0), counted)


def fixed_plan(offsets: Tensor, places: TokenPlaces, max_len: int, times: Tensor | None = None) -> PackingPlan:
    """Plan for sequences of at most max_len tokens; offsets (B + 1,) int64 and `places` on the same device.

    times (C,) int64, as in `PackingPlan.build`. The host never waits for the device.
    """
    lay_out = partial(_one_row_per_sequence, offsets, places, max_len, times)
    return PackingPlan(offsets, places.positions, lay_out, times)


def _one_row_per_sequence(offsets: Tensor, places: TokenPlaces, max_len: int, times: Tensor | None) -> Rows:
    """Rows that hold one sequence each. Padding tokens read the last slot of the first row, which is always empty: no
    token of a sequence attends to it, and no gradient reaches it.
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
    """T: the smallest multiple of WIDTH_STEP above max_len, so that the last slot of every row is empty."""
    return (max_len // WIDTH_STEP + 1) * WIDTH_STEP
