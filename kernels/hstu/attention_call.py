"""What every family of HSTU kernels is told of one call, beside q, k and v. `docs/kernels.md` has the formula."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..jagged.packing import num_distances
from ..jagged.time_buckets import last_seconds
from .philox import kept_levels


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """The terms of one attention; all tensors on the device of q. Nothing here makes the host wait for the device.

    offsets: (batch + 1,) int32; sequence s is the tokens offsets[s]:offsets[s + 1]. Tokens past the last offset belong
    to no sequence: their outputs and gradients are zero. max_len bounds every sequence and so the grids.
    """

    offsets: Tensor
    max_len: int
    scale: float  # multiplies the sum over keys
    alpha: float = 1.0  # multiplies q . k
    causal: bool = True
    dropout: float = 0.0  # probability that a weight falls; 0 outside training
    seed: Tensor | None = None  # (1,) int64, where dropout > 0: the key of the masks
    deterministic: bool = False  # no sum whose order may differ between runs
    position_table: Tensor | None = None  # (1 or heads, entries) contiguous; entry reach + (j - i), clipped to the ends
    time_table: Tensor | None = None  # (1 or heads, NUM_TIME_BUCKETS) contiguous; goes with times
    times: Tensor | None = None  # (total_tokens,) int64 or int32 seconds: the key's; the query's too without next_times
    next_times: Tensor | None = None  # like times: the query's time, where it is not its own event's

    @property
    def batch(self) -> int:
        """Number of sequences, empty ones included."""
        return len(self.offsets) - 1

    @property
    def search_steps(self) -> int:
        """Halvings that find a token's sequence among the offsets: the constexpr of `sequence_bounds`."""
        return self.batch.bit_length()

    @property
    def query_times(self) -> Tensor | None:
        """(total_tokens,): the time that each query is asked at."""
        return self.times if self.next_times is None else self.next_times

    @property
    def position_reach(self) -> int:
        """Column of distance j - i = 0 in the position table; 0 without one."""
        table = self.position_table
        if table is None:
            return 0
        return table.shape[1] - 1 if self.causal else (table.shape[1] - 1) // 2

    @property
    def kept_levels(self) -> int:
        """Levels of the dropout draw that keep a weight, of philox.LEVELS."""
        return kept_levels(self.dropout)

    @cached_property
    def last_seconds(self) -> Tensor:
        """(NUM_TIME_BUCKETS,) in the dtype of times, on their device: the longest time of each bucket."""
        if self.times is None:
            raise ValueError("a time table needs times; pass times=")
        return last_seconds(self.times.dtype, self.times.device)

    def num_distances(self) -> int:
        """Distances that sequences of max_len have, each way if not causal."""
        return num_distances(self.max_len, self.causal)


def fast_math(dtype: torch.dtype) -> bool:
    """Whether the kernels may use the GPU's approximate tanh and log2: where bfloat16 rounds more coarsely anyway."""
    return dtype == torch.bfloat16
