"""What this device can do at most, measured in the same run: matrix products, copies, and launches of nothing."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from .timing import Timing, captured, interleaved

GEMM_SIZE = 8192
COPY_BYTES = 2**31  # read, and as much written


@dataclass(frozen=True)
class Ceilings:
    """Of one device."""

    gemm_tflops: float  # bf16, random data: zeros are faster
    copy_tbs: float  # terabytes a second, read and written
    empty_launch_us: float  # one empty kernel of a CUDA graph of 100


@dataclass(frozen=True)
class Launch:
    """A kernel that a step launched."""

    name: str
    grid: tuple[int, ...]
    threads: int


def measure_ceilings(device: torch.device) -> Ceilings:
    left, right = (torch.randn(GEMM_SIZE, GEMM_SIZE, device=device).bfloat16() for _ in range(2))
    source = torch.randn(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    empty = empty_graph([Launch("empty", (132, 1, 1), 128)] * 100)
    found = interleaved(
        {
            "gemm": [lambda: torch.mm(left, right)],
            "copy": [lambda: target.copy_(source)],
            "empty": [empty],
        },
        device,
        rounds=5,
        turn_ms=50,
    )
    return Ceilings(
        2 * GEMM_SIZE**3 / found["gemm"].median / 1e9,
        2 * COPY_BYTES / found["copy"].median / 1e9,
        found["empty"].median * 1e3 / 100,
    )


def launches(action: Callable[[], object]) -> list[Launch]:
    """What one call launches, copies and fills included, by the profiler's own record."""
    action()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        action()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return from_trace(events)


def from_trace(events: Sequence[dict[str, object]]) -> list[Launch]:
    """The kernels, copies and fills among the events of a trace; the latter two count as one small kernel each."""
    found = []
    for event in events:
        details = event.get("args")
        if event.get("cat") == "kernel" and isinstance(details, dict):
            threads = 1
            for size in details["block"]:
                threads *= size
            found.append(Launch(str(event["name"]), tuple(details["grid"]), threads))
        elif event.get("cat") in ("gpu_memcpy", "gpu_memset"):
            found.append(Launch(str(event["name"]), (1, 1, 1), 32))
    return found


def empty_graph(wanted: Sequence[Launch]) -> Callable[[], object]:
    """A CUDA graph of as many kernels of the same grids that do nothing: C8."""
    from .empty_kernel import empty  # noqa: PLC0415 (needs Triton, which only Linux has)

    def run() -> None:
        for launch in wanted:
            empty[launch.grid](num_warps=warps(launch.threads))

    return captured(run)


def warps(threads: int) -> int:
    """The power of two that Triton takes."""
    return 1 << max(0, min(5, (threads - 1).bit_length() - 5))


def floor_of(step: Callable[[], object], traffic_bytes: int, ceilings: Ceilings, device: torch.device) -> Timing:
    """Milliseconds below which a step of as many launches cannot come: nothing is computed, all bytes move once."""
    empty = interleaved({"empty": [empty_graph(launches(step))]}, device, rounds=5, turn_ms=20)["empty"]
    moving = traffic_bytes / ceilings.copy_tbs / 1e9
    return Timing(empty.median + moving, empty.low + moving, empty.high + moving, empty.rounds)
