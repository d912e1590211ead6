"""A check that a requested CUDA device can be used, in a separate process and before any trial runs."""

import os
import subprocess
import sys

from ..data.errors import MachineError
from ..training.environment import worker_environment

PROBE = """
import sys, torch
if not torch.cuda.is_available():
    sys.exit("torch finds no CUDA device")
torch.zeros(1, device=sys.argv[1])
"""
PROBE_SECONDS = 120.0  # a first import of torch from a cold network disk takes a minute


def check_device(device: str) -> None:
    """Raise MachineError if `device` names a CUDA device that torch cannot use; other devices are not checked.

    A child process imports torch, which takes a few seconds, so that this process does not.
    """
    if not device.startswith("cuda"):
        return
    command = [sys.executable, "-P", "-c", PROBE, device]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=PROBE_SECONDS,
            env=worker_environment(os.environ), check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return  # a slow disk says nothing about the device; the first trial checks it again
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MachineError(
            f"device={device!r} cannot be used here: {last}; `virtualmle doctor` shows the devices that torch finds, "
            "and --device cpu trains without a GPU"
        )
