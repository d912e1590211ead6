"""The lease on a trial: which process runs it, whether that process is alive, and how to end it.

The process that holds the lock of a trial is its worker (training/trial_lock.py). The lease says which process that is,
so that it can be sent a signal: by its pid *and* its start time, because the system reuses pids. A zombie counts as
dead. Any process can read a lease, so a restarted server finds the workers of its predecessor.
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..training.trial_lock import holder, is_worked_on

LEASE = "lease.json"

START_TOLERANCE_SECONDS = 5.0  # start times derive from the wall clock, which may be adjusted while a worker runs
WALL_SLACK_SECONDS = 30.0  # the worker's watchdog must act first, and starts only after the import of torch
TERM_SECONDS = 3.0  # from SIGTERM to SIGKILL: long enough for a last log line, short enough to wait for
KILL_SECONDS = 5.0  # for SIGKILL to take effect; a process stuck in a driver may take longer
POLL_SECONDS = 0.05  # between two checks of an ending process

WORKER_OPTIONS = ["-P", "-m"]  # the first arguments of a worker's command line, after the interpreter

_children: dict[str, "subprocess.Popen[bytes]"] = {}  # workers that this process started and must reap, by directory


class Lease(BaseModel):
    """The process that runs a trial; times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    pid: int = Field(gt=0)  # a signal to group 0 would reach our own process group
    created: float  # start time of the process
    started: float = 0.0  # when it claimed this trial; 0 = same as `created`
    deadline: float  # the process is killed after this time

    @property
    def since(self) -> float:
        """When this trial started."""
        return self.started or self.created


def lease_of(process: psutil.Process, wall_seconds: float) -> Lease:
    """The lease of a new `process` on a trial of at most `wall_seconds`."""
    created = process.create_time()
    return Lease(pid=process.pid, created=created, deadline=created + wall_seconds + WALL_SLACK_SECONDS)


def read_lease(directory: Path) -> Lease | None:
    """The lease on a trial, or None if there is none or it cannot be read."""
    try:
        return Lease.model_validate_json((directory / LEASE).read_bytes())
    except (OSError, ValidationError):
        return None


def adopt_child(directory: Path, child: "subprocess.Popen[bytes]") -> None:
    """Keep the handle of a worker started by this process, so that it can be reaped."""
    reap_children()
    key = str(directory.resolve())
    if (earlier := _children.get(key)) and earlier.returncode is None:  # was killed, and is not gone yet
        _children[f"{key}:{earlier.pid}"] = earlier
    _children[key] = child


def share_child(pid: int, directory: Path) -> None:
    """Register a worker of this process for another trial directory, so that its exit code is known there too."""
    for child in list(_children.values()):
        if child.pid == pid:
            _children[str(directory.resolve())] = child


def reap_children() -> None:
    """Collect the exit codes of ended workers of this process; without this they would remain zombies."""
    for child in list(_children.values()):
        child.poll()


def exit_code(directory: Path) -> int | None:
    """The exit code of an ended worker (-9 = SIGKILL); None if another process started it, or if it ends too slowly.

    A process that ends releases its lock before the memory of its GPU, which may take seconds.
    """
    child = _children.get(str(directory.resolve()))
    with contextlib.suppress(subprocess.TimeoutExpired):
        return child.wait(timeout=KILL_SECONDS) if child else None  # poll() may give None if another thread polls
    return None


def is_held(lease: Lease) -> bool:
    """Whether the process that the lease names is still running."""
    reap_children()
    try:
        process = psutil.Process(lease.pid)
        same = abs(process.create_time() - lease.created) <= START_TOLERANCE_SECONDS
        return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def is_working(directory: Path, lease: Lease) -> bool:
    """Whether the worker of the trial in `directory` is running: whether a process holds the trial's lock.

    A trial without a lock (of an earlier version, or on a file system without locks) is worked on by the process that
    its lease names.
    """
    reap_children()
    locked = is_worked_on(directory)
    return is_held(lease) if locked is None else locked


def find_worker(directory: Path) -> psutil.Process | None:
    """The process that holds the lock of this trial, in case its launcher died before it wrote the lease."""
    pid = holder(directory) if is_worked_on(directory) else None
    try:
        return psutil.Process(pid) if pid else None
    except psutil.NoSuchProcess:
        return None


def end_group(lease: Lease) -> bool:
    """End the holder of the lease and its child processes; returns whether the holder is gone.

    Sends SIGTERM, then SIGKILL after TERM_SECONDS. The worker leads a process group of its own, so the signals reach no
    other process.
    """
    if not is_held(lease):
        return True
    _signal_group(lease.pid, signal.SIGTERM)
    _wait_until_gone(lease, TERM_SECONDS)
    _signal_group(lease.pid, signal.SIGKILL)
    return _wait_until_gone(lease, KILL_SECONDS)


def end_worker(directory: Path, lease: Lease) -> bool:
    """End the worker of the trial in `directory` as `end_group` does, and wait until the trial's lock is free.

    A process counts as ended when its main thread has ended; its other threads may hold the lock a moment longer.
    """
    if not end_group(lease):
        return False
    end = time.monotonic() + KILL_SECONDS
    while is_worked_on(directory):
        if time.monotonic() > end:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _wait_until_gone(lease: Lease, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while is_held(lease):
        if time.monotonic() > end:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is empty or, on macOS, all zombies
        os.killpg(pid, number)
