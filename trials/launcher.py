"""A trial as an operating-system process: start it, look at it, stop it.

Everything known about a trial lies in its directory (training/spec.py lists the worker's files), so any process may
ask, also one that starts after the launching server was killed. Added here:

    lease.json   pid, start time and deadline of the worker
    stop.json    who stopped it and why: cancelled, over its time, or never started

A worker outlives its server: nothing here ties the one to the other.
"""

import contextlib
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from ..data.errors import MachineError, TrialError
from ..training.spec import (
    LOG,
    PROGRESS,
    RESULT,
    SPEC,
    TrialProgress,
    TrialResult,
    TrialSpec,
    read_progress,
    read_result,
    read_spec,
    write_model,
)
from .lease import (
    LEASE,
    TERM_SECONDS,
    WALL_SLACK_SECONDS,
    WORKER_OPTIONS,
    Lease,
    adopt_child,
    end_group,
    exit_code,
    find_worker,
    is_held,
    lease_of,
    read_lease,
)
from .log_tail import ending, last_lines
from .warm import clear, hand_over, register

WORKER = "virtualmle.training.worker"
STOP = "stop.json"

LEAST_FREE_BYTES = 2**20  # with less on its disk, a worker can hardly write a result
START_GRACE_SECONDS = 30.0  # between the order for a trial and its lease lie milliseconds, more on a loaded machine


class TrialState(BaseModel):
    """Where a trial stands. `result` is there when the worker wrote one; `cause` when it crashed."""

    model_config = ConfigDict(frozen=True)

    status: Literal["running", "finished", "crashed", "cancelled"]
    progress: TrialProgress = TrialProgress()
    result: TrialResult | None = None
    cause: str | None = None
    machine_fault: bool = False  # of a crash: the machine is at fault, not the configuration
    seconds: float = 0.0  # wall seconds of the process so far, or until its last sign of life


class Stop(BaseModel):
    """Why a trial was ended from outside."""

    status: Literal["crashed", "cancelled"]
    cause: str
    at: float  # seconds since the epoch
    machine_fault: bool = False


def launch(
    spec: TrialSpec,
    directory: Path,
    *,
    module: str = WORKER,
    inbox: Path | None = None,
    keep_warm: float = 0.0,
    cwd: Path | None = None,
) -> None:
    """Have `spec` run in `directory`, by the warm worker of `inbox` or a new process; returns at once.

    With an inbox a new process stays for `keep_warm` seconds after its trial, for the next one (`warm.py`). `cwd`: the
    working directory of a new process, by default the trial's own; this process's may have been deleted. Raises
    TrialError where the directory already holds a trial, MachineError where it cannot be written or no process can be
    started.
    """
    if directory.is_dir() and any(directory.iterdir()):  # any file of an earlier trial would pass for one of this
        raise TrialError(f"{directory} already holds a trial; a handle is never used again: ask for a new trial")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_model(directory / SPEC, spec)
        if inbox is None or not hand_over(spec, directory.resolve(), inbox):
            _start(spec, directory.resolve(), module, inbox, keep_warm, cwd or directory.resolve())
        elif (directory / STOP).exists():  # cancelled while the worker took it
            cancel(directory)
    except OSError as error:
        with contextlib.suppress(OSError):
            cause = f"the worker could not be started ({error.strerror})"
            _write_stop(directory, "crashed", cause, machine_fault=True)
        raise MachineError(
            f"trial {spec.trial} could not be started in {directory} ({error.strerror}); free disk or memory and retry"
        ) from None


def poll(directory: Path, *, asked_at: float | None = None) -> TrialState:
    """Where the trial in `directory` stands, from its files and the process table.

    asked_at: when the trial was ordered, in seconds since the epoch; it gives a trial whose directory does not exist
    yet its time to start. A worker that has outlived its deadline is killed here. Raises nothing for a trial in any
    state: what cannot be read counts as a crash, with its cause.
    """
    lease = _lease(directory)
    alive = lease is not None and is_held(lease)  # before the result: a worker writes it, then ends
    try:
        result = _result(directory)
    except ValueError:
        seconds = _seconds(directory, lease)
        return TrialState(status="crashed", cause="the trial's result.json is damaged", seconds=seconds)
    if result is not None and result.status == "finished":
        seconds = _seconds(directory, lease) or result.wall_seconds
        return TrialState(status="finished", progress=_progress(directory), result=result, seconds=seconds)
    stop = _read_stop(directory)
    if lease is not None and alive and result is None:
        return _look_at_running(directory, lease, stop)
    if stop is not None:
        return TrialState(status=stop.status, progress=_progress(directory), cause=stop.cause,
                          machine_fault=stop.machine_fault, seconds=_seconds(directory, lease, stop))
    if result is not None:
        return TrialState(status="crashed", progress=_progress(directory), result=result,
                          cause=result.cause or "the worker gave no cause", machine_fault=result.machine_fault,
                          seconds=result.wall_seconds)
    return _ended_without_result(directory, lease, asked_at)


def cancel(directory: Path) -> TrialState:
    """Stop the trial and return its final state; a trial that is over already stays what it is.

    The order is on disk before the signal is sent, so that whoever looks next sees a cancelled trial, not a crash.
    """
    state = poll(directory)
    if state.status != "running":
        return state
    _write_stop(directory, "cancelled", "cancelled on request")
    lease = _lease(directory)
    if lease is not None:
        end_group(lease)
    return poll(directory)


def _start(
    spec: TrialSpec, directory: Path, module: str, inbox: Path | None, keep_warm: float, cwd: Path
) -> None:
    stay: list[str] = []
    if inbox is not None and keep_warm > 0:
        clear(inbox)
        stay = [str(inbox.resolve()), f"{keep_warm:g}"]
    with (directory / LOG).open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, *WORKER_OPTIONS, module, str(directory), *stay],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(),
            cwd=cwd,
            start_new_session=True,  # a closed terminal or a killed server does not take the worker along
        )
    lease = lease_of(psutil.Process(child.pid), spec.wall_seconds)
    adopt_child(directory, child)
    write_model(directory / LEASE, lease)
    if inbox is not None and stay:
        register(inbox, lease)
    if (directory / STOP).exists():  # cancelled before there was a process to cancel
        end_group(lease)


def _environment() -> dict[str, str]:
    """The environment of a worker: ours, whose import path holds elsewhere too, and with file names in UTF-8."""
    given = os.environ.get("PYTHONPATH", "")
    with contextlib.suppress(FileNotFoundError):  # our working directory is gone: relative entries lead nowhere anyway
        given = os.pathsep.join(os.path.abspath(entry) for entry in given.split(os.pathsep) if entry)
    path = {"PYTHONPATH": given} if given else {}
    return {**os.environ, **path, "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}


def _lease(directory: Path) -> Lease | None:
    lease = read_lease(directory)
    if lease is not None or not (directory / SPEC).exists():
        return lease
    worker = find_worker(directory)
    try:
        lease = lease_of(worker, read_spec(directory).wall_seconds) if worker else None
    except (psutil.NoSuchProcess, TrialError):
        return None
    if lease is not None:
        with contextlib.suppress(OSError):  # a full disk: the process can be found again next time
            write_model(directory / LEASE, lease)
    return lease


def _look_at_running(directory: Path, lease: Lease, stop: Stop | None) -> TrialState:
    now = time.time()
    late = stop is None and now > lease.deadline
    if late:
        limit = lease.deadline - lease.since
        _write_stop(directory, "crashed", f"killed: still running {limit:.0f} s after its start; ask for fewer epochs")
    forgotten = stop is not None and now > stop.at + 2 * TERM_SECONDS  # whoever ordered the stop died too early
    if (late or forgotten) and end_group(lease):
        return poll(directory)
    return TrialState(status="running", progress=_progress(directory), seconds=now - lease.since)


def _write_stop(
    directory: Path, status: Literal["crashed", "cancelled"], cause: str, *, machine_fault: bool = False
) -> None:
    write_model(directory / STOP, Stop(status=status, cause=cause, at=time.time(), machine_fault=machine_fault))


def _ended_without_result(directory: Path, lease: Lease | None, asked_at: float | None) -> TrialState:
    if lease is None:
        return _never_started(directory, asked_at)
    began = (directory / PROGRESS).exists()  # the first thing that a worker writes, before it reads any data
    full = _disk_is_full(directory)
    what = "worker ended without a result" if began else "the worker ended before it could read its trial"
    cause = f"{what}{ending(exit_code(directory), began=began)}{last_lines(directory / LOG)}"
    return TrialState(
        status="crashed",
        progress=_progress(directory),
        cause=f"the disk is full; {cause}" if full else cause,
        machine_fault=full or not began,
        seconds=_seconds(directory, lease),
    )


def _disk_is_full(directory: Path) -> bool:
    return shutil.disk_usage(directory).free < LEAST_FREE_BYTES


def _never_started(directory: Path, asked_at: float | None) -> TrialState:
    known = (_modified(directory / SPEC), _modified(directory), asked_at)
    since = next((moment for moment in known if moment is not None), None)
    if since is not None and time.time() - since < START_GRACE_SECONDS:
        return TrialState(status="running")
    return TrialState(status="crashed", cause="the worker was never started; run the same trial again")


def _result(directory: Path) -> TrialResult | None:
    """The result, if there is one; ValueError where it is damaged or claims to be finished without a figure."""
    result = read_result(directory)
    if result is not None and result.status == "finished":
        figures = [*result.metrics.values(), result.metrics.get("ndcg@10", math.nan)]
        if not all(map(math.isfinite, figures)):
            raise ValueError("a finished trial has finite metrics")
    return result


def _progress(directory: Path) -> TrialProgress:
    try:
        return read_progress(directory)
    except ValidationError:  # a damaged file says nothing about the trial itself
        return TrialProgress()


def _read_stop(directory: Path) -> Stop | None:
    path = directory / STOP
    try:
        return Stop.model_validate_json(path.read_bytes()) if path.exists() else None
    except ValidationError:
        return Stop(status="crashed", cause="ended from outside; its stop.json is damaged", at=path.stat().st_mtime)


def _seconds(directory: Path, lease: Lease | None = None, stop: Stop | None = None) -> float:
    if lease is None:
        return 0.0
    end = stop.at if stop else max(_modified(directory / name) or 0.0 for name in (LOG, PROGRESS, RESULT))
    return min(max(0.0, end - lease.since), _longest(directory, lease))


def _longest(directory: Path, lease: Lease) -> float:
    """What a trial can last at most: a lease with an absurd start must not spend the session's budget."""
    try:
        return read_spec(directory).wall_seconds + WALL_SLACK_SECONDS
    except TrialError:
        return max(0.0, lease.deadline - lease.since)


def _modified(path: Path) -> float | None:
    return path.stat().st_mtime if path.exists() else None
