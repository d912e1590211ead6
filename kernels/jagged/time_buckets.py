"""The bucket of the time between two events, as HSTU's research code has it, by whole-number thresholds.

    bucket(d) = min(trunc(ln(max(|d|, 1)) / 0.301), 127)      d in seconds

In float32 the logarithm lands on the wrong side of some edges, differently on each device; a table of the smallest d
of every bucket means the same everywhere. Unlike the research code, d is the time between two events that both have
happened: when the next one will is not known at the moment a list is made.

Prepared datasets store Unix seconds before 2050, or an order below 1e8 (`data/time_units.py`). CUDA kernels count from
the first event of a sequence in int32, which saturates at 2**31 - 1 seconds (68 years): the same bucket, 71, as the
longest distance that a dataset can have (77 years), so that CPU and GPU agree.
"""

from decimal import Decimal, getcontext
from functools import cache

import torch
from torch import Tensor

NUM_TIME_BUCKETS = 128
LOG_STEP = Decimal("0.301")


def time_buckets(seconds: Tensor) -> Tensor:
    """int64 of any shape, either sign, to int64 in 0 .. NUM_TIME_BUCKETS - 1."""
    return torch.bucketize(seconds.abs(), _thresholds_on(seconds.device), right=True)


@cache
def _thresholds_on(device: torch.device) -> Tensor:
    """Sent to each device once: a copy from the host cannot be captured."""
    return _thresholds().to(device)


@cache
def last_seconds(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(NUM_TIME_BUCKETS,): the longest time of each bucket, in int64 or int32; what dtype cannot hold is its maximum.

    The CUDA kernels read it: `seconds > last_seconds[b]` says that a time is past bucket b.
    """
    most = torch.iinfo(dtype).max
    edges = torch.cat((_thresholds() - 1, torch.tensor([most])))
    return edges.clamp(max=most).to(device, dtype)


@cache
def _thresholds() -> Tensor:
    """(NUM_TIME_BUCKETS - 1,) int64: the smallest distance in bucket 1, 2, …"""
    getcontext().prec = 50
    exact = [(LOG_STEP * bucket).exp() for bucket in range(1, NUM_TIME_BUCKETS)]
    return torch.tensor([int(edge) + 1 for edge in exact])  # e to a rational power is never whole
