"""The loss over the whole catalogue with products of bfloat16, against float64 autograd of its formula.

Operands and results of the products are rounded to three digits. A gradient is the difference of an expectation and the
contribution of the targets; its error is measured relative to the norm of that contribution, because the difference may
be as small as zero. The tolerance of the loss is absolute.
"""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from virtualmle.kernels.losses import linear_cross_entropy_bfloat16 as module
from virtualmle.kernels.losses import reference
from virtualmle.kernels.losses.arguments import LossArgumentError
from virtualmle.kernels.losses.linear_cross_entropy import in_blocks, linear_cross_entropy
from virtualmle.kernels.losses.linear_cross_entropy_bfloat16 import MAX_BOUND, MAX_GAP, in_bfloat16, is_available

torch.set_num_threads(1)
pytestmark = pytest.mark.skipif(not is_available(), reason="torch multiplies no bfloat16 on this CPU: it lacks AVX-512")
LOSS, GRADIENT = 1e-2, 1e-2

SHAPES = [
    pytest.param((1, 1, 1), id="one-of-everything"),
    pytest.param((5, 64, 3), id="one-block"),
    pytest.param((130, 1, 7), id="one-item"),
    pytest.param((100, 301, 64), id="blocks-of-unequal-size"),
    pytest.param((33, 70, 33), id="odd-width"),
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_LOGITS", 1)
    monkeypatch.setattr(module, "MIN_BLOCK_ROWS", 64)


def inputs(shape, scale=1.0):
    """States and table of float32, and targets; for scale 1 the logits have a standard deviation of 1."""
    count, num_items, width = shape
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(count, width, generator=generator) * scale
    table = torch.randn(num_items, width, generator=generator) / math.sqrt(width)
    targets = torch.randint(num_items, (count,), generator=generator)
    return states.requires_grad_(), table.requires_grad_(), targets


def both(states, table, targets, smoothing=0.0):
    """Loss and gradients in bfloat16 and exactly, and the norms of the targets' contributions to the gradients."""
    found = linear_cross_entropy(states, table, targets, smoothing, precision="bf16")
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in (states, table)]
    exact = reference.linear_cross_entropy(*exact_inputs, targets, smoothing)
    norms = [tensor.detach().norm() / len(states) for tensor in (table[targets], states)]
    found, exact = ((value, *torch.autograd.grad(value, leaves)) for value, leaves in (
        (found, (states, table)), (exact, exact_inputs)))  # fmt: skip
    return found, exact, norms


def assert_close(found, exact, norms, loss=LOSS, gradient=GRADIENT):
    assert all(tensor.dtype == torch.float32 for tensor in found)
    assert found[0].item() == pytest.approx(exact[0].item(), abs=loss)
    for one, other, norm in zip(found[1:], exact[1:], norms, strict=True):
        assert (one - other).norm() <= gradient * norm


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["usual-scores", "large-scores"])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients_equal_the_formula(shape, scale, smoothing):
    states, table, targets = inputs(shape, scale)
    assert in_bfloat16(states.detach(), table.detach(), targets, 1.0) is not None, "float32 would prove nothing"
    assert_close(*both(states, table, targets, smoothing))


def test_a_catalogue_of_real_size_is_accurate_to_three_digits():
    assert_close(*both(*inputs((200, 12_101, 32))), loss=1e-3, gradient=1e-3)


@pytest.mark.parametrize("largest", [MAX_BOUND - MAX_GAP, MAX_BOUND - 1], ids=["far-below-the-bound", "at-the-bound"])
def test_scores_at_the_limits_are_accurate(largest):
    bound, num_items = MAX_BOUND - 1, 500
    table = torch.zeros(num_items, 2)
    table[0, 1], table[1:, 0] = 1.0, torch.linspace(-0.1, largest / bound, num_items - 1).bfloat16()
    states = torch.tensor([[bound, 0.0], [bound, 0.0]], requires_grad=True)
    targets = torch.tensor([num_items - 1, num_items - 1])
    assert in_bfloat16(states.detach(), table, targets, 1.0) is not None
    assert_close(*both(states, table.requires_grad_(), targets), loss=0.05)


@pytest.mark.parametrize("change", [
    pytest.param(lambda states: states * 100, id="too-large"),
    pytest.param(lambda states: states * 1e18, id="overflow"),
    pytest.param(lambda states: states * math.nan, id="nan"),
    pytest.param(lambda states: states[:0], id="no-positions"),
])  # fmt: skip
def test_a_step_that_needs_float32_is_computed_in_float32(change):
    states, table, targets = (tensor.detach() for tensor in inputs((70, 90, 16)))
    states = change(states)
    targets = targets[: len(states)]
    assert in_bfloat16(states, table, targets, 0.9) is None
    in_float32, found = (in_blocks(states, table, targets, 0.1, precision) for precision in ("ieee", "bf16"))
    for one, other in zip(in_float32, found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_one_state_far_from_all_items_needs_float32():
    table = torch.eye(8, 4).detach()
    states = torch.full((3, 4), 0.1)
    states[1] = -MAX_GAP  # its bound is twice MAX_GAP, and its largest logit, with the zero rows, is 0
    assert in_bfloat16(states, table, torch.zeros(3, dtype=torch.int64), 1.0) is None
    states[1] = -MAX_GAP / 4
    assert in_bfloat16(states, table, torch.zeros(3, dtype=torch.int64), 1.0) is not None


@pytest.mark.parametrize("threads", [1, 2])
def test_equal_inputs_give_equal_bits(threads):
    runs = []
    try:
        torch.set_num_threads(threads)
        for _ in range(2):
            states, table, targets = inputs((150, 300, 32))
            runs.append(both(states, table, targets, 0.1)[0])
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one, other) for run in runs[1:] for one, other in zip(runs[0], run, strict=True))


def test_exponentials_leave_the_first_product_in_bfloat16_and_no_logit_is_stored_in_float32():
    states, table, targets = (tensor.detach() for tensor in inputs((640, 500, 32)))
    with Results() as results:
        in_blocks(states, table, targets, 0.1, "bf16")
    blocks = [tensor for name, tensor in results.found if tensor.numel() >= 64 * 500]
    assert [name for name, _ in results.found].count("mkldnn::_linear_pointwise") == 640 // 64 == len(blocks)
    assert {tensor.dtype for tensor in blocks} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_refused(dtype):
    states, table, targets = inputs((4, 6, 3))
    with pytest.raises(LossArgumentError, match="float32"):
        linear_cross_entropy(states.to(dtype), table.to(dtype), targets, precision="bf16")


class Results(TorchDispatchMode):
    """Records the name and the tensor that each operation returns, without its values."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.found.append((func.name(), torch.empty_like(result, device="meta")))
        return result
