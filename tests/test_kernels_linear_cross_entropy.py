"""The loss over the whole catalogue against float64 autograd of its formula, at edge-case sizes and scores."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from virtualmle.kernels.losses import linear_cross_entropy as module
from virtualmle.kernels.losses.linear_cross_entropy import linear_cross_entropy

torch.set_num_threads(1)

SHAPES = [
    pytest.param((1, 1, 1), id="one-of-everything"),
    pytest.param((5, 64, 3), id="one-block"),
    pytest.param((130, 1, 7), id="one-item"),
    pytest.param((65, 300, 64), id="a-block-and-one-row"),
]
SCALES = [pytest.param(1.0, id="without-shift"), pytest.param(300.0, id="with-shift")]


def inputs(shape, scale=1.0, dtype=torch.float64):
    """States, table and targets. With scale 1 the norms bound all logits far below SAFE_LOGIT; with 300 not."""
    count, num_items, width = shape
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(count, width, dtype=torch.float64, generator=generator) * scale
    table = torch.randn(num_items, width, dtype=torch.float64, generator=generator) / width
    targets = torch.randint(num_items, (count,), generator=generator)
    return states.to(dtype).requires_grad_(), table.to(dtype).requires_grad_(), targets


def plain(states, table, targets, smoothing):
    scores = states @ table.T
    log_shares = scores - scores.logsumexp(1, keepdim=True)
    wanted = torch.full_like(scores, smoothing / len(table))
    wanted[range(len(targets)), targets] += 1 - smoothing
    return -(wanted * log_shares).sum(1).mean()


def gradients(loss, *leaves):
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients_equal_the_formula(shape, scale, smoothing, monkeypatch):
    monkeypatch.setitem(module.BLOCK_LOGITS, "cpu", 1)
    states, table, targets = inputs(shape, scale)
    ours, wanted = linear_cross_entropy(states, table, targets, smoothing), plain(states, table, targets, smoothing)
    torch.testing.assert_close(ours, wanted)
    for one, other in zip(gradients(ours, states, table), gradients(wanted, states, table), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_single_precision_is_accurate_to_six_digits(scale):
    shape = (200, 1500, 32)
    states, table, targets = inputs(shape, scale, torch.float32)
    exact_states, exact_table = (tensor.detach().double().requires_grad_() for tensor in (states, table))
    ours, wanted = linear_cross_entropy(states, table, targets), plain(exact_states, exact_table, targets, 0.0)
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-6)
    exact = gradients(wanted, exact_states, exact_table)
    for one, other in zip(gradients(ours, states, table), exact, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()  # logits near 300 carry errors of 1e-5


def test_the_bound_separates_rows_that_need_a_shift():
    states, table, _ = inputs((3, 5, 4))
    assert module._is_safe(states, table)
    assert not module._is_safe(states * 1e4, table)
    assert not module._is_safe(states * math.nan, table)


@pytest.mark.parametrize("size", [1e4, -1e4, 1e18])
def test_extreme_scores_give_finite_losses_and_gradients(size):
    states = torch.full((2, 1), size, requires_grad=True)
    table = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    loss = linear_cross_entropy(states, table, torch.tensor([0, 1]))
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients(loss, states, table))


def test_scores_at_the_bound_need_no_shift_in_single_precision():
    num_items, score = 100_000, 0.999 * module.SAFE_LOGIT
    table = torch.full((num_items, 1), -1.0)
    table[7] = 1.0
    states = torch.tensor([[score], [-score], [score]], requires_grad=True)
    targets = torch.tensor([7, 3, 3])  # nearly certain, one of many equals, nearly impossible
    loss = linear_cross_entropy(states, table.requires_grad_(), targets)
    expected = (0 + math.log(num_items - 1) + 2 * score) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert all(gradient.isfinite().all() for gradient in gradients(loss, states, table))


def test_a_nan_in_the_inputs_gives_a_nan_loss():
    states, table, targets = inputs((4, 6, 3))
    with torch.no_grad():
        states[2, 1] = math.nan
    assert linear_cross_entropy(states, table, targets).isnan()


def test_the_loss_of_no_positions_is_nan():
    states, table, targets = inputs((0, 6, 3))
    loss = linear_cross_entropy(states, table, targets)
    assert loss.isnan() and gradients(loss, states, table)[0].shape == (0, 3)


def test_the_gradient_includes_the_operations_on_the_loss():
    states, table, targets = inputs((9, 12, 4))
    once = gradients(linear_cross_entropy(states, table, targets), states, table)
    thrice = gradients(3 * linear_cross_entropy(states, table, targets) + states.sum(), states, table)
    torch.testing.assert_close(thrice[0], 3 * once[0] + 1)
    torch.testing.assert_close(thrice[1], 3 * once[1])


def test_a_second_derivative_raises_an_error():
    states, table, targets = inputs((4, 6, 3))
    weighted = linear_cross_entropy(states, table, targets) * torch.ones((), dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(weighted, states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_equal_inputs_give_equal_bits(monkeypatch):
    monkeypatch.setitem(module.BLOCK_LOGITS, "cpu", 1)
    runs = []
    for _ in range(2):
        states, table, targets = inputs((150, 700, 16), dtype=torch.float32)
        loss = linear_cross_entropy(states, table, targets, 0.1)
        runs.append((loss, *gradients(loss, states, table)))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_at_most_one_block_of_logits_is_in_memory(monkeypatch):
    monkeypatch.setitem(module.BLOCK_LOGITS, "cpu", 1)
    states, table, targets = inputs((640, 500, 4))
    with LargestResult() as largest:
        module.in_blocks(states.detach(), table.detach(), targets, 0.1)
    assert largest.numel == module.MIN_BLOCK_ROWS * 500


class LargestResult(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result
