"""The losses in Triton: in the interpreter, in a separate process, and on a CUDA device if there is one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from virtualmle.kernels.losses import reference
from virtualmle.kernels.losses.linear_cross_entropy import linear_cross_entropy
from virtualmle.kernels.losses.sampled_softmax import sampled_softmax_loss

HERE = Path(__file__).parent
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
VARIANTS = ["full", "shared", "own"]


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (its wheels are for Linux on x86-64)"
)
def test_the_kernels_equal_the_reference_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parent / ".typing")}
    environment.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton < 3.10 warns about its default
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_losses.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=HERE.parent)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def case(variant, dtype, count=500, num_items=3000, width=64, drawn=100):
    """A loss as a function of (states, table) on the GPU, its reference, and the two leaves."""
    generator = torch.Generator("cuda").manual_seed(0)
    draw = {"generator": generator, "device": "cuda"}
    leaves = [torch.randn(rows, width, **draw).to(dtype).requires_grad_() for rows in (count, num_items)]
    targets = torch.randint(num_items, (count,), **draw)
    negatives = torch.randint(num_items, (drawn,) if variant == "shared" else (count, drawn), **draw)
    if variant == "full":
        return (
            lambda s, w: linear_cross_entropy(s, w, targets, 0.1),
            lambda s, w: reference.linear_cross_entropy(s, w, targets, 0.1),
            leaves,
        )
    terms = {"cosine": True, "temperature": 0.2, "label_smoothing": 0.1}
    return (
        lambda s, w: sampled_softmax_loss(s, w, targets, negatives, **terms),
        lambda s, w: reference.sampled_softmax_loss(s, w, targets, negatives, **terms),
        leaves,
    )


def value_and_gradients(loss, leaves):
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_on_the_gpu_is_accurate_to_five_digits(variant):
    ours, plain, leaves = case(variant, torch.float32)
    exact = value_and_gradients(plain, [leaf.detach().double().requires_grad_() for leaf in leaves])
    for one, right in zip(value_and_gradients(ours, leaves), exact, strict=True):
        assert error(one, right) < 1e-5


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_is_not_much_worse_than_plain_torch_in_the_same_dtype(variant, dtype):
    ours, plain, leaves = case(variant, dtype)
    exact = value_and_gradients(plain, [leaf.detach().double().requires_grad_() for leaf in leaves])
    found, usual = value_and_gradients(ours, leaves), value_and_gradients(plain, leaves)
    for one, other, right, allowed in zip(found, usual, exact, (2, 5, 5), strict=True):
        assert error(one, right) <= allowed * error(other, right) + 1e-6


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_inputs_give_equal_bits_on_the_gpu(variant):
    ours, _, leaves = case(variant, torch.bfloat16)
    first = value_and_gradients(ours, leaves)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, value_and_gradients(ours, leaves), strict=True))


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_captured_cuda_graph_of_a_loss_replays_on_new_inputs(variant):
    ours, _, leaves = case(variant, torch.float32)
    value_and_gradients(ours, leaves)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = value_and_gradients(ours, leaves)
    with torch.no_grad():
        leaves[0].mul_(0.5)
    graph.replay()
    for one, other in zip(captured, value_and_gradients(ours, leaves), strict=True):
        assert torch.equal(one, other)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_besides_inputs_and_gradients_does_not_grow_with_the_catalogue(variant):
    extra_memory = []
    for num_items in (20_000, 400_000):
        ours, _, leaves = case(variant, torch.float32, num_items=num_items)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        value_and_gradients(ours, leaves)
        gradients = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
        extra_memory.append(torch.cuda.max_memory_allocated() - before - gradients)
    assert extra_memory[1] <= extra_memory[0] + (4 << 20)


@needs_gpu
@pytest.mark.gpu
def test_rows_beyond_two_to_the_31_elements_are_addressed_correctly():
    table = torch.zeros((1 << 31) // 64 + 100, 64, dtype=torch.float16, device="cuda")
    last = len(table) - 1
    table[last] = 1
    table.requires_grad_()
    states = torch.ones(4, 64, dtype=torch.float16, device="cuda", requires_grad=True)
    targets = torch.full((4,), last, device="cuda")
    for loss in (
        sampled_softmax_loss(states, table, targets, torch.arange(8, device="cuda")),
        linear_cross_entropy(states, table, targets),
    ):
        assert loss.item() < 1e-6
