"""How many trials this machine runs at a time, and what each of them gets: a device and a number of threads.

A session has numbered places, 0 to `parallel` - 1; a running trial occupies one. On GPUs there is one place per GPU. On
CPUs, cores limit the places, and so does memory, by the largest peak that earlier trials on the dataset have reached.
"""

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

HEADROOM = 1.25
"""Memory to reserve for a trial, over the largest peak measured so far: its model may be a larger one."""
PROBE = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
PROBE_SECONDS = 120.0  # a first import of torch from a cold network disk takes a minute
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of the drivers of NVIDIA, WSL and AMD
CGROUP = Path("/sys/fs/cgroup")
CGROUP_MEMORY = (  # limit and usage, in version 2 and in version 1
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def most_places(device: str, threads: int) -> int:
    """The places of a session that takes as many as this machine has: one per GPU, or as many trials as cores allow.

    threads: of one trial on a CPU; 0 = one.
    """
    return num_gpus(device) or max(1, num_cores() // max(1, threads))


def fitting(most: int, peak_bytes: int | None, memory_bytes: int) -> int:
    """How many of `most` places fit into `memory_bytes`; one as long as the peak of a trial's memory is not known."""
    if peak_bytes is None:
        return 1
    return max(1, min(most, int(memory_bytes / (HEADROOM * peak_bytes))))


def threads_of(threads: int, places: int, cores: int) -> int:
    """The torch threads of a trial: `threads` if a person has chosen them, else an equal share of the cores.

    0, torch's own choice, for a session of one place.
    """
    return threads or (0 if places == 1 else max(1, cores // places))


def device_of(device: str, place: int, gpus: int) -> str:
    """The device of a place: several GPUs are dealt out in turn; `device` is returned unless it leaves the choice."""
    return f"cuda:{place % gpus}" if gpus > 1 and device in ("auto", "cuda") else device


def num_cores() -> int:
    """The cores that this process may use, by its affinity and the quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _number(CGROUP / "cpu.max")
    period = _number(CGROUP / "cpu.max", place=1)
    return max(1, min(allowed, round(quota / period))) if quota and period else allowed


@functools.cache
def num_gpus(device: str) -> int:
    """The GPUs that `device` leaves to choose from: none for a CPU, one if it names one, else those that torch finds.

    A child process imports torch, so that this process does not; asked once per process.
    """
    if device.startswith("cpu") or (sys.platform == "linux" and not any(map(os.path.exists, GPU_FILES))):
        return 0
    if device.startswith("cuda:"):
        return 1
    command = [sys.executable, "-P", "-c", PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return 0
    return int(done.stdout) if done.returncode == 0 else 0


def free_bytes() -> int:
    """The memory that further processes may use now, in this container."""
    available = psutil.virtual_memory().available
    for limit, usage in CGROUP_MEMORY:
        allowed, used = _number(CGROUP / limit), _number(CGROUP / usage)
        if allowed is not None and used is not None:
            available = min(available, max(0, allowed - used))
    return available


def held_bytes(pids: Iterable[int]) -> int:
    """The resident memory of the processes that still run among `pids`."""
    total = 0
    for pid in set(pids):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += psutil.Process(pid).memory_info().rss
    return total


def _number(path: Path, place: int = 0) -> int | None:
    """The number at a place of the line in a file of the kernel; None without the file, or if there is no limit."""
    try:
        return int(path.read_text(encoding="ascii").split()[place])
    except (OSError, ValueError, IndexError):
        return None
