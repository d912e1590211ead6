"""The Triton kernels of the losses in Triton's interpreter on the CPU; test_kernels_losses_triton.py runs this file.

Triton uses the interpreter only if TRITON_INTERPRET is set before it is imported, so that these tests need a separate
process. Every output and gradient is compared with float64 autograd of the reference.
"""

import itertools
import os

os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virtualmle.kernels.jagged.padded_width import padded_width
from virtualmle.kernels.losses import linear_cross_entropy as linear_module
from virtualmle.kernels.losses import linear_cross_entropy_triton as linear_triton
from virtualmle.kernels.losses import reference
from virtualmle.kernels.losses import sampled_softmax as sampled_module
from virtualmle.kernels.losses import sampled_softmax_triton as sampled_triton
from virtualmle.kernels.losses.arguments import PRECISIONS, SampledInputs, SampledTerms
from virtualmle.kernels.losses.linear_cross_entropy import linear_cross_entropy
from virtualmle.kernels.losses.sampled_softmax import sampled_softmax_loss

torch.set_num_threads(1)
TOLERANCE = 1e-5  # of the norm, in float32
GPU_PROGRAMS = 5  # target of a launch in these tests: few, but more than one part

LINEAR = [
    pytest.param((1, 2, 8), id="one-position-two-items"),
    pytest.param((67, 70, 25), id="just-past-a-tile-each-way-odd-width"),
    pytest.param((3, 200, 16), id="few-positions-so-the-catalogue-is-split"),
    pytest.param((150, 5, 32), id="few-items-so-the-positions-are-split"),
    pytest.param((5, 130, 64), id="usual-width"),
    pytest.param((2, 33, 256), id="widest"),
]
SAMPLED = [
    pytest.param((1, 2, 8, 1), id="one-of-everything-two-items"),
    pytest.param((35, 30, 25, 66), id="just-past-a-tile-each-way-odd-width-many-collisions"),
    pytest.param((3, 500, 64, 5), id="mostly-different-items"),
    pytest.param((2, 9, 128, 3), id="wide"),
]
VARIANTS = [
    pytest.param({}, False, id="dot"),
    pytest.param({"cosine": True, "temperature": 0.1, "label_smoothing": 0.2}, True, id="cosine-smoothed-logq"),
    pytest.param({"label_smoothing": 0.2}, False, id="smoothed"),
    pytest.param({"cosine": True, "temperature": 0.5}, False, id="cosine"),
    pytest.param({"temperature": 2.0}, True, id="logq"),
]


@pytest.fixture(autouse=True)
def ops_use_triton_on_the_cpu_and_new_memory_is_nan(monkeypatch):
    for module in (linear_module, sampled_module):
        monkeypatch.setattr(module, "uses_triton", lambda states: True)
    for module in (linear_triton, sampled_triton):
        monkeypatch.setattr(module, "wanted_programs", lambda states: GPU_PROGRAMS)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)  # torch.empty then holds NaN
    yield
    torch.use_deterministic_algorithms(False)


def linear_inputs(shape, dtype=torch.float32, seed=0):
    count, num_items, width = shape
    generator = torch.Generator().manual_seed(seed)
    states, table = (
        torch.randn(rows, width, generator=generator).to(dtype).requires_grad_() for rows in (count, num_items)
    )
    return states, table, torch.randint(num_items, (count,), generator=generator)


def sampled_inputs(shape, shared, with_logq, dtype=torch.float32, seed=0):
    count, num_items, width, drawn = shape
    states, table, targets = linear_inputs((count, num_items, width), dtype, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    negatives = torch.randint(num_items, (drawn,) if shared else (count, drawn), generator=generator)
    log_q = torch.randn(num_items, generator=generator).log_softmax(0) if with_logq else None
    return (states, table, targets, negatives), log_q


def wide(tensors):
    return [t.detach().double().requires_grad_() if t.is_floating_point() else t for t in tensors]


def assert_close(ours, wanted, leaves, exact_leaves, tolerance=TOLERANCE):
    """The loss and both gradients: the norm of the error relative to the norm of the exact result."""
    pairs = [(ours, wanted)]
    pairs += zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(wanted, exact_leaves), strict=True)
    for one, exact in pairs:
        assert one.shape == exact.shape and one.isfinite().all()
        cancelled = 1e-6 * (exact.norm() < 1e-2)  # if terms of size one cancel, only rounding errors remain
        assert (one.double() - exact).norm() <= tolerance * exact.norm() + cancelled


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("shape", LINEAR)
def test_cross_entropy_equals_the_reference(shape, smoothing):
    inputs = linear_inputs(shape)
    exact = wide(inputs)
    ours, wanted = linear_cross_entropy(*inputs, smoothing), reference.linear_cross_entropy(*exact, smoothing)
    assert_close(ours, wanted, inputs[:2], exact[:2])


@pytest.mark.parametrize(("terms", "with_logq"), VARIANTS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("shape", SAMPLED)
def test_sampled_softmax_equals_the_reference(shape, shared, terms, with_logq):
    if not shared and shape[0] > 8:
        shape = (7, *shape[1:])  # one program per position is slow here, and positions are independent
    inputs, log_q = sampled_inputs(shape, shared, with_logq)
    exact = wide(inputs)
    ours = sampled_softmax_loss(*inputs, log_q=log_q, **terms)
    wanted = reference.sampled_softmax_loss(*exact, log_q=log_q, **terms)
    assert_close(ours, wanted, inputs[:2], exact[:2])


def test_half_precision_stays_near_the_reference():
    inputs = linear_inputs((20, 70, 16), torch.float16)
    exact = wide(inputs)
    assert_close(
        linear_cross_entropy(*inputs, 0.1), reference.linear_cross_entropy(*exact, 0.1), inputs[:2], exact[:2], 3e-3
    )
    inputs, _ = sampled_inputs((20, 70, 16, 9), True, False, torch.float16)
    exact = wide(inputs)
    ours, wanted = (
        loss(*tensors, cosine=True, temperature=0.2)
        for loss, tensors in ((sampled_softmax_loss, inputs), (reference.sampled_softmax_loss, exact))
    )
    assert_close(ours, wanted, inputs[:2], exact[:2], 3e-3)


RANDOM = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@RANDOM
@given(st.integers(1, 70), st.integers(2, 90), st.integers(1, 40), st.sampled_from([0.0, 0.3]), st.integers(0, 99))
def test_cross_entropy_equals_the_reference_at_random_sizes(count, num_items, width, smoothing, seed):
    inputs = linear_inputs((count, num_items, width), seed=seed)
    exact = wide(inputs)
    ours, wanted = linear_cross_entropy(*inputs, smoothing), reference.linear_cross_entropy(*exact, smoothing)
    assert_close(ours, wanted, inputs[:2], exact[:2])


@RANDOM
@given(st.integers(1, 5), st.integers(2, 9), st.integers(1, 40), st.integers(1, 7), st.booleans(), st.booleans())
def test_sampled_softmax_equals_the_reference_at_random_sizes(count, num_items, width, drawn, shared, cosine):
    inputs, log_q = sampled_inputs((count, num_items, width, drawn), shared, cosine, seed=width)
    exact = wide(inputs)
    ours, wanted = (
        loss(*tensors, log_q=log_q, cosine=cosine, label_smoothing=0.1)
        for loss, tensors in ((sampled_softmax_loss, inputs), (reference.sampled_softmax_loss, exact))
    )
    assert_close(ours, wanted, inputs[:2], exact[:2])


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_a_zero_vector_and_a_target_that_is_every_negative_give_finite_gradients(shared):
    (states, table, targets, _), _ = sampled_inputs((3, 4, 8, 2), shared, False)
    with torch.no_grad():
        states[1], table[2] = 0, 0
    negatives = targets[:1].expand(2) if shared else targets[:, None].expand(3, 2)
    exact = wide((states, table))
    ours = sampled_softmax_loss(states, table, targets, negatives, cosine=True, label_smoothing=0.2)
    wanted = reference.sampled_softmax_loss(*exact, targets, negatives, cosine=True, label_smoothing=0.2)
    assert ours.item() == pytest.approx(wanted.item(), abs=1e-6)
    found = torch.autograd.grad(ours, (states, table)), torch.autograd.grad(wanted, exact), (states, table)
    for one, other, leaf in zip(*found, strict=True):
        usual = leaf.norm(dim=1) > 0  # the gradient of a zero vector, and its rounding error, are divided by NORM_EPS
        assert one.isfinite().all()
        torch.testing.assert_close(one[usual], other.float()[usual], rtol=1e-4, atol=1e-6)


def test_extreme_scores_give_finite_losses_and_gradients():
    states = torch.full((2, 1), 1e18, requires_grad=True)
    table = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    loss = linear_cross_entropy(states, table, torch.tensor([0, 1]))
    assert all(tensor.isfinite().all() for tensor in (loss, *torch.autograd.grad(loss, (states, table))))


def test_a_nan_in_the_inputs_gives_a_nan_loss():
    states, table, targets = linear_inputs((4, 6, 3))
    with torch.no_grad():
        states[2, 1] = torch.nan
    assert linear_cross_entropy(states, table, targets).isnan()
    assert sampled_softmax_loss(states, table, targets, targets[:2]).isnan()


def test_the_loss_of_no_positions_is_nan_and_its_gradients_are_zero():
    states, table, targets = linear_inputs((0, 6, 3))
    for loss in (
        linear_cross_entropy(states, table, targets),
        sampled_softmax_loss(states, table, targets, torch.tensor([1, 2])),
        sampled_softmax_loss(states, table, targets, torch.zeros(0, 2, dtype=torch.int64)),
    ):
        assert loss.isnan()
        grad_states, grad_table = torch.autograd.grad(loss, (states, table))
        assert grad_states.shape == (0, 3) and not grad_table.any()


def test_strided_inputs_give_the_same_result():
    inputs = linear_inputs((4, 9, 8))
    strided = [torch.stack((t.detach(), t.detach() * 0), -1)[..., 0].requires_grad_() for t in inputs[:2]]
    assert not strided[0].is_contiguous()
    assert torch.equal(linear_cross_entropy(*inputs), linear_cross_entropy(*strided, inputs[2]))
    negatives = torch.arange(6).view(2, 3).T[:, :1].expand(3, 4).T  # (4, 3), neither stride 1
    ours, wanted = (sampled_softmax_loss(*i[:2], inputs[2], n) for i, n in
                    ((strided, negatives), (inputs, negatives.contiguous())))  # fmt: skip
    assert torch.equal(ours, wanted)


def test_the_ops_pass_opcheck():
    """Schema, autograd registration and fake tensors, on the code path of CUDA tensors."""
    states, table, targets = linear_inputs((3, 5, 4))
    torch.library.opcheck(
        torch.ops.virtualmle.linear_cross_entropy.default, (states, table, targets, 0.1, "ieee"),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip
    for negatives in (torch.tensor([1, 2]), torch.tensor([[1, 2], [0, 0], [4, 4]])):
        torch.library.opcheck(
            torch.ops.virtualmle.sampled_softmax.default,
            (states, table, targets, negatives, None, 1.0, True, 0.1, "ieee"),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )


def test_precision_and_dtype_choose_the_tiles_and_every_width_has_some():
    """The interpreter ignores the precision, so the test checks the choice of tiles."""
    states = torch.zeros(1, 8)
    cases = itertools.product((torch.float32, torch.float16), PRECISIONS)
    kinds = {linear_triton.kind_of_product(states.to(dtype), precision) for dtype, precision in cases}
    assert kinds == {"tf32", "ieee", "half"}
    widths = {padded_width(width) for width in range(1, 257)}
    for tiles in (linear_triton.TILES, sampled_triton.TILES):
        assert all(set(sizes) == widths for sizes in tiles.values())


def test_split_evenly_gives_parts_of_full_tiles_that_cover_the_length():
    for length in (1, 63, 64, 65, 1000):
        for programs in (1, 5, 264):
            parts, each = linear_triton.split_evenly(length, 64, 2, programs)
            assert each % 64 == 0 and (parts - 1) * each < length <= parts * each
            assert parts <= max(1, programs // 2)


def test_the_forward_pass_returns_the_documented_shapes():
    (states, table, targets, negatives), log_q = sampled_inputs((2, 5, 4, 3), True, True)
    inputs = SampledInputs(states.detach(), table.detach(), targets, negatives, log_q)
    losses, grad_states, statistics, scores = sampled_triton.forward(inputs, SampledTerms(programs=1))
    assert losses.shape == (2,) and grad_states.shape == (2, 4)
    assert statistics.shape == (3, 2) and scores.shape == (2, 1)
