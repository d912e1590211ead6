"""The limits of the device, measured in the same run: matrix products, copies, and kernels that do nothing."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from timing import captured, interleaved
from torch.profiler import ProfilerActivity, profile

GEMM_SIZE = 8192
COPY_BYTES = 2**31  # bytes read; as many are written
EMPTY_KERNELS = 100


@dataclass(frozen=True)
class Ceilings:
    """The limits of one device."""

    gemm_tflops: float  # bf16, random data, because zeros are faster
    copy_tbs: float  # terabytes per second, reads and writes together
    empty_launch_us: float  # one empty kernel in a CUDA graph of 100


def measure_ceilings(device: torch.device) -> Ceilings:
    """Measure all ceilings, in turns."""
    left, right = (torch.randn(GEMM_SIZE, GEMM_SIZE, device=device).bfloat16() for _ in range(2))
    source = torch.randn(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    actions = {
        "gemm": [lambda: torch.mm(left, right)],
        "copy": [lambda: target.copy_(source)],
        "empty": [captured(empty_kernels())],
    }
    times = interleaved(actions, device, rounds=5, turn_ms=50)
    return Ceilings(
        2 * GEMM_SIZE**3 / times["gemm"].median / 1e9,
        2 * COPY_BYTES / times["copy"].median / 1e9,
        times["empty"].median * 1e3 / EMPTY_KERNELS,
    )


def empty_kernels() -> Callable[[], object]:
    """A function that launches a hundred empty kernels, with one block for each multiprocessor of an H100."""
    import triton  # noqa: PLC0415 (available on Linux only)

    @triton.jit
    def empty():
        pass

    def run() -> None:
        for _ in range(EMPTY_KERNELS):
            empty[(132, 1, 1)](num_warps=4)

    return run


def count_launches(action: Callable[[], object]) -> int:
    """The number of kernels, copies and fills in one call of `action`, from a trace of the profiler."""
    action()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        action()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return launches_in(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])


def launches_in(events: Sequence[dict[str, object]]) -> int:
    """The number of kernels, copies and fills among the events of a Chrome trace."""
    return sum(event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") for event in events)


def floor_ms(step: Callable[[], object], traffic_bytes: int, flops: int, ceilings: Ceilings) -> float:
    """Lower bound on a step's time: as many empty launches plus one move of all bytes, or, if longer, the products."""
    launches = count_launches(step) * ceilings.empty_launch_us / 1e3
    traffic = traffic_bytes / ceilings.copy_tbs / 1e9
    return max(launches + traffic, flops / ceilings.gemm_tflops / 1e9)
