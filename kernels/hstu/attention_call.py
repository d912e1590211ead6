"""The arguments of one attention call besides q, k and v, as every kernel family receives them.

`docs/kernels.md` has the formula.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..jagged.packing import num_distances
from ..jagged.time_buckets import last_seconds
from .philox import kept_levels


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """The terms of one attention call; all tensors are on the device of q. No property waits for this device.

    offsets: (batch + 1,) int32; sequence s consists of the tokens offsets[s]:offsets[s + 1]. Tokens past the last
    offset belong to no sequence: their outputs and gradients are zero. No sequence is longer than max_len, from which
    the kernels' grids follow.
    """

    offsets: Tensor
    max_len: int
    scale: float  # multiplies the sum over keys
    alpha: float = 1.0  # multiplies q . k
    causal: bool = True
    dropout: float = 0.0  # probability that a weight is dropped; 0 outside training
    seed: Tensor | None = None  # (1,) int64, required if dropout > 0: the key of the mask generator
    deterministic: bool = False  # every sum is computed in the same order in every run
    position_table: Tensor | None = None  # contiguous (1 or heads, entries), read at position_reach + (j - i), clipped
    time_table: Tensor | None = None  # (1 or heads, NUM_TIME_BUCKETS) contiguous; requires times
    times: Tensor | None = None  # (total_tokens,) int64 or int32 seconds: of keys, and by default of queries
    next_times: Tensor | None = None  # like times: the time of each query, if not that of its own event

    @property
    def batch(self) -> int:
        """Number of sequences, empty ones included."""
        return len(self.offsets) - 1

    @property
    def search_steps(self) -> int:
        """Bisection steps that find a token's sequence in the offsets: the constexpr STEPS of `sequence_bounds`."""
        return self.batch.bit_length()

    @property
    def query_times(self) -> Tensor | None:
        """(total_tokens,): the time of each query."""
        return self.times if self.next_times is None else self.next_times

    @property
    def position_reach(self) -> int:
        """Column of distance j - i = 0 in the position table; 0 without a table."""
        table = self.position_table
        if table is None:
            return 0
        return table.shape[1] - 1 if self.causal else (table.shape[1] - 1) // 2

    @property
    def kept_levels(self) -> int:
        """How many of the philox.LEVELS values of a dropout draw keep the weight."""
        return kept_levels(self.dropout)

    @cached_property
    def last_seconds(self) -> Tensor:
        """(NUM_TIME_BUCKETS,) in the dtype of times, on their device: the longest time of each bucket."""
        if self.times is None:
            raise ValueError("a time table needs times; pass times=")
        return last_seconds(self.times.dtype, self.times.device)

    def num_distances(self) -> int:
        """Number of distances j - i in sequences of max_len tokens; both signs if not causal."""
        return num_distances(self.max_len, self.causal)


def fast_math(dtype: torch.dtype) -> bool:
    """Whether the kernels may use the GPU's approximate tanh and log2: only in bfloat16, which rounds more coarsely."""
    return dtype == torch.bfloat16


def rows_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself if the elements of a head are adjacent in memory, as the kernels require; else a copy."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def head_stride(table: Tensor | None) -> int:
    """Elements between the rows of two heads in a bias table; 0 where all heads share a row or there is no table."""
    return table.stride(0) if table is not None and table.shape[0] > 1 else 0
