"""The batch that models take: sequences concatenated without padding, with the packing plan that attention uses."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.errors import DataError
from ..kernels.jagged.packing import PackingPlan
from .config import TrialConfig


@dataclass(frozen=True, eq=False)
class JaggedBatch:
    """Sequence i is `items[offsets[i]:offsets[i + 1]]`, oldest first. Item ids are 0-based; there is no padding id."""

    items: Tensor  # (total_tokens,) int64, on the model's device
    offsets: Tensor  # (batch + 1,) int64, on the CPU; on the device in a batch of fixed shape
    plan: PackingPlan  # on the model's device
    masked: Tensor | None = None  # (total_tokens,) bool: items embedded as zeros; they keep their positions

    def last_tokens(self) -> Tensor:
        """(batch,) int64 on the items' device: index of each sequence's last token. No sequence may be empty."""
        return (self.offsets[1:] - 1).to(self.items.device, non_blocking=True)


def make_batch(
    items: Tensor, offsets: Tensor, config: TrialConfig, times: Tensor | None = None, masked: Tensor | None = None
) -> JaggedBatch:
    """Build a batch of items (total_tokens,) int64 on any device and offsets (batch + 1,) int64 on the CPU.

    times (total_tokens,) int64, in seconds, is required with `config.time_bias`; masked: see JaggedBatch. Raises
    DataError if a sequence is longer than `config.max_len`: the caller truncates with `keep_last`, because it has to
    truncate the targets in the same way.
    """
    longest = int(offsets.diff().max()) if len(offsets) > 1 else 0
    if longest > config.max_len:
        raise DataError(f"a sequence has {longest} events but max_len={config.max_len}; keep its last {config.max_len}")
    return JaggedBatch(items, offsets, PackingPlan.build(offsets, items.device, times), masked)


def keep_last(offsets: Tensor, max_len: int) -> tuple[Tensor, Tensor]:
    """(index, new offsets): `tensor[index]` keeps the last `max_len` tokens of every sequence, in order.

    offsets and both results are int64 on the CPU.
    """
    lengths = offsets.diff().clamp(max=max_len)
    new_offsets = torch.cat((offsets.new_zeros(1), lengths.cumsum(0)))
    shift = (offsets[1:] - lengths) - new_offsets[:-1]
    return torch.arange(int(new_offsets[-1])) + shift.repeat_interleave(lengths), new_offsets
