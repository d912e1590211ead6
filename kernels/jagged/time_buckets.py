"""The bucket of the time between two events, with the formula of HSTU's research code and integer thresholds.

    bucket(d) = min(trunc(ln(max(|d|, 1)) / 0.301), 127)      d in seconds

A float32 logarithm puts some d next to an edge into the wrong bucket, and which d depends on the device. A table of the
smallest d of every bucket gives equal buckets everywhere. Unlike in the research code, d is by default the time between
two past events: the time of the next event is unknown when recommendations are computed.

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
    """Seconds, int64 of any shape and sign, to buckets, int64 in 0 .. NUM_TIME_BUCKETS - 1."""
    return torch.bucketize(seconds.abs(), _thresholds_on(seconds.device), right=True)


@cache
def _thresholds_on(device: torch.device) -> Tensor:
    """Copied to each device once, because a copy from the host cannot be captured in a CUDA graph."""
    return _thresholds().to(device)


@cache
def last_seconds(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(NUM_TIME_BUCKETS,): the longest time of each bucket, in int64 or int32, clamped to the maximum of dtype.

    The CUDA kernels read it: a time is beyond bucket b if `seconds > last_seconds[b]`.
    """
    largest = torch.iinfo(dtype).max
    edges = torch.cat((_thresholds() - 1, torch.tensor([largest])))
    return edges.clamp(max=largest).to(device, dtype)


@cache
def _thresholds() -> Tensor:
    """(NUM_TIME_BUCKETS - 1,) int64: the shortest time in bucket 1, 2, …"""
    getcontext().prec = 50
    exact = [(LOG_STEP * bucket).exp() for bucket in range(1, NUM_TIME_BUCKETS)]
    return torch.tensor([int(edge) + 1 for edge in exact])  # e to a nonzero rational power is never an integer
