"""The long HSTU kernels: against float64 in Triton's interpreter, and on a GPU if there is one."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from virtualmle.kernels.hstu import reference
from virtualmle.kernels.hstu.attention_call import AttentionCall
from virtualmle.kernels.hstu.long_tables import clipped_columns

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (its wheels are for Linux on x86-64)"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_triton
def test_every_output_and_gradient_agrees_with_the_float64_reference_in_the_interpreter() -> None:
    """In a separate process, because TRITON_INTERPRET must be set before the kernels' modules are imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parent / ".typing")}
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(HERE / "interpreted_hstu_long.py")],
        capture_output=True, text=True, check=False, env=environment, cwd=HERE.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.parametrize("first", [-9, -2, 0, 3])
@pytest.mark.parametrize("entries", [2, 5, 12])
def test_gradients_of_distances_outside_a_table_are_added_to_its_ends(first: int, entries: int) -> None:
    columns = torch.randn(2, 10)
    inside = (first + torch.arange(10)).clamp(0, entries - 1)
    expected = torch.zeros(2, entries).index_add(1, inside, columns)
    torch.testing.assert_close(clipped_columns(columns, first, entries), expected)


def gpu_case(dtype: torch.dtype, dim: int, deterministic: bool) -> tuple[AttentionCall, list[Tensor]]:
    """Lengths up to 1000 around tile boundaries, N(0, 1) inputs, both tables; alpha keeps the scores near 1."""
    torch.manual_seed(0)
    offsets = torch.tensor([0, 1000, 1000, 1001, 1130, 1257]).cuda().int()
    times = torch.randint(0, 5000, (1257,)).cumsum(0).cuda()
    call = AttentionCall(
        offsets, 1000, 1 / 1000, alpha=dim**-0.5, deterministic=deterministic,
        position_table=torch.randn(1, 1000).cuda().to(dtype), time_table=torch.randn(1, 128).cuda().to(dtype),
        times=times,
    )  # fmt: skip
    return call, [torch.randn(1257, 2, dim).cuda().to(dtype) for _ in range(4)]


def by_autograd(call: AttentionCall, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients of the reference, computed in dtype."""
    grad, *inputs = (tensor.to(dtype) for tensor in tensors)
    tables = [table for table in (call.position_table, call.time_table) if table is not None]
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (*inputs, *tables)]
    q, k, v, position_table, time_table = leaves
    out = reference.hstu_attention(
        q, k, v, offsets=call.offsets, scale=call.scale, alpha=call.alpha, position_table=position_table,
        time_table=time_table, times=call.times, causal=call.causal,
    )  # fmt: skip
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def by_kernels(call: AttentionCall, tensors: list[Tensor]) -> list[Tensor]:
    """Output and gradients of the long kernels."""
    from virtualmle.kernels.hstu.long_backward_triton import long_backward  # noqa: PLC0415 (triton is optional)
    from virtualmle.kernels.hstu.long_forward_triton import long_forward  # noqa: PLC0415

    grad, q, k, v = tensors
    return [long_forward(q, k, v, call), *(x for x in long_backward(grad, q, k, v, call) if x is not None)]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("deterministic", [False, True], ids=["atomics", "deterministic"])
@pytest.mark.parametrize("dim", [25, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_on_a_gpu_errors_stay_near_those_of_torch_in_the_same_dtype(
    dtype: torch.dtype, dim: int, deterministic: bool
) -> None:
    call, tensors = gpu_case(dtype, dim, deterministic)
    exact = by_autograd(call, tensors, torch.float64)
    for number, (ours, torchs, true) in enumerate(
        zip(by_kernels(call, tensors), by_autograd(call, tensors, dtype), exact, strict=True)
    ):
        bound = (2 if number == 0 else 5) * (torchs.double() - true).norm()  # 2 for the output, 5 for the gradients
        assert (ours.double() - true).norm() <= bound


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_deterministic_runs_are_bit_identical() -> None:
    call, tensors = gpu_case(torch.bfloat16, 64, True)
    first = by_kernels(call, tensors)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, by_kernels(call, tensors), strict=True))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_on_a_gpu_a_captured_graph_gives_the_eager_results(dropout: float) -> None:
    call, tensors = gpu_case(torch.bfloat16, 64, True)
    call = replace(call, dropout=dropout, seed=torch.tensor([7]).cuda())
    expected = by_kernels(call, tensors)
    replayed = captured(lambda: by_kernels(call, tensors))
    assert all(torch.equal(a, b) for a, b in zip(expected, replayed, strict=True))


def captured(work: Callable[[], list[Tensor]]) -> list[Tensor]:
    """The outputs of a CUDA graph of `work` after they were overwritten and the graph was replayed."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work()
    for output in outputs:
        output.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    return outputs
