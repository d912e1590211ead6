"""Who runs a trial: the lease on disk, and whether its holder still lives.

A process is known by its pid *and* its start time, because pids are used again. A zombie counts as dead. Every
process may ask, so a restarted server finds the workers of the one before it.
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

LEASE = "lease.json"

START_TOLERANCE_SECONDS = 5.0  # start times are derived from the wall clock, which may be set while a worker runs
WALL_SLACK_SECONDS = 30.0  # the worker's own watchdog acts first: it starts only after torch is imported
TERM_SECONDS = 3.0  # from SIGTERM to SIGKILL: enough to write a last line, short enough to wait for
KILL_SECONDS = 5.0  # for SIGKILL to act; a process stuck inside a driver may outlast it
POLL_SECONDS = 0.05  # between two looks at a dying process

WORKER_OPTIONS = ["-P", "-m"]  # how a worker's command line begins after the interpreter

_children: dict[str, "subprocess.Popen[bytes]"] = {}  # by directory: workers started here, to be reaped here


class Lease(BaseModel):
    """The process that runs a trial; times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    pid: int = Field(gt=0)  # to signal group 0 would be to signal our own
    created: float  # start time of the process
    started: float = 0.0  # when it took this trial; 0 = when it was created
    deadline: float  # beyond it the process is killed

    @property
    def since(self) -> float:
        """When this trial began."""
        return self.started or self.created


def lease_of(process: psutil.Process, wall_seconds: float) -> Lease:
    """The lease that `process` holds on a trial of at most `wall_seconds`."""
    created = process.create_time()
    return Lease(pid=process.pid, created=created, deadline=created + wall_seconds + WALL_SLACK_SECONDS)


def read_lease(directory: Path) -> Lease | None:
    """The lease on a trial, or None where there is none (or only one that cannot be read)."""
    try:
        return Lease.model_validate_json((directory / LEASE).read_bytes())
    except (OSError, ValidationError):
        return None


def adopt_child(directory: Path, child: "subprocess.Popen[bytes]") -> None:
    """Keep the handle of a worker started by this process, so that it can be reaped."""
    reap_children()
    _children[str(directory.resolve())] = child


def share_child(pid: int, directory: Path) -> None:
    """A worker started by this process is given the trial in another directory: its exit code is known there too."""
    for child in list(_children.values()):
        if child.pid == pid:
            _children[str(directory.resolve())] = child


def reap_children() -> None:
    """Collect the exit codes of our own workers: an uncollected one stays a zombie as long as we live."""
    for child in list(_children.values()):
        child.poll()


def exit_code(directory: Path) -> int | None:
    """The exit code of an ended worker that this process started (-9 = SIGKILL), else None: not ours to know."""
    child = _children.get(str(directory.resolve()))
    return child.wait(timeout=KILL_SECONDS) if child else None  # at once; poll() may say None beside another thread


def is_held(lease: Lease) -> bool:
    """Whether the process named by the lease is still running."""
    reap_children()
    try:
        process = psutil.Process(lease.pid)
        same = abs(process.create_time() - lease.created) <= START_TOLERANCE_SECONDS
        return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def find_worker(directory: Path) -> psutil.Process | None:
    """The worker started for this directory: its launcher may have died before it wrote the lease."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command[1:3] == WORKER_OPTIONS and command[4:5] == [str(directory.resolve())]:
            return process
    return None


def end_group(lease: Lease) -> bool:
    """End the holder of the lease and whatever it started; returns whether it is gone.

    SIGTERM, then SIGKILL after TERM_SECONDS. The worker leads its own process group, so nothing of ours is in it.
    """
    if not is_held(lease):
        return True
    _signal_group(lease.pid, signal.SIGTERM)
    _wait_until_gone(lease, TERM_SECONDS)
    _signal_group(lease.pid, signal.SIGKILL)
    return _wait_until_gone(lease, KILL_SECONDS)


def _wait_until_gone(lease: Lease, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while is_held(lease):
        if time.monotonic() > end:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is empty, or (macOS) all zombies
        os.killpg(pid, number)
