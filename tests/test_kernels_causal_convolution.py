"""The jagged causal convolution against a plain loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from virtualmle.kernels.jagged.causal_convolution import causal_convolution
from virtualmle.kernels.jagged.packing import PackingPlan

torch.set_num_threads(1)


def plain(x, taps, lengths):
    rows, first = [], 0
    for length in lengths:
        for t in range(length):
            rows.append(sum((taps[s] * x[first + t - s] for s in range(min(len(taps), t + 1))), x[0] * 0))
        first += length
    return torch.stack(rows) if rows else x


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 9), max_size=7), st.integers(1, 12), st.integers(1, 4))
def test_values_and_gradients_equal_the_plain_sum(lengths, num_taps, width):
    generator = torch.Generator().manual_seed(len(lengths))
    plan = PackingPlan.build(torch.tensor([0, *lengths]).cumsum(0))
    x, taps, weight = (
        torch.randn(n, width, dtype=torch.float64, generator=generator) for n in (sum(lengths), num_taps, sum(lengths))
    )
    results = []
    for function in (lambda a, b: causal_convolution(a, b, plan), lambda a, b: plain(a, b, lengths)):
        leaves = x.clone().requires_grad_(), taps.clone().requires_grad_()
        out = function(*leaves)
        ((out * weight).sum() + 0 * leaves[1].sum()).backward()
        results.append((out.detach(), leaves[0].grad, leaves[1].grad))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lengths", [[4], [1, 1, 1], [6, 0, 2]])
def test_the_convolution_passes_gradcheck(lengths):
    plan = PackingPlan.build(torch.tensor([0, *lengths]).cumsum(0))
    x = torch.randn(sum(lengths), 2, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: causal_convolution(a, b, plan), (x, taps))
