"""Time buckets against exact arithmetic at every edge."""

from fractions import Fraction

import mpmath
import pytest
import torch

from virtualmle.kernels.jagged.time_buckets import NUM_TIME_BUCKETS, time_buckets


def exact_bucket(seconds):
    with mpmath.workdps(60):
        return min(int(mpmath.log(max(abs(seconds), 1)) / mpmath.mpf("0.301")), NUM_TIME_BUCKETS - 1)


def test_buckets_agree_with_exact_arithmetic_at_every_edge():
    with mpmath.workdps(60):
        edges = [int(mpmath.exp(mpmath.mpf("0.301") * bucket)) for bucket in range(NUM_TIME_BUCKETS + 3)]
    near = sorted({edge + step for edge in edges for step in (-1, 0, 1, 2) if edge + step >= 0})
    assert time_buckets(torch.tensor(near)).tolist() == [exact_bucket(seconds) for seconds in near]


@pytest.mark.parametrize(("seconds", "bucket"), [(0, 0), (1, 0), (86_400, 37), (-86_400, 37), (2**62, 127)])
def test_known_distances(seconds, bucket):
    assert time_buckets(torch.tensor([[seconds]])).tolist() == [[bucket]]
    assert Fraction(bucket) == exact_bucket(seconds)
