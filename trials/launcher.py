"""A trial as an operating-system process: launch, poll and cancel.

The state of a trial is in its directory (training/spec.py lists the worker's files), so any process can poll it, even
one that starts after the launching server was killed. This module adds two files:

    lease.json   pid, start time and deadline of the worker
    stop.json    why the trial was stopped: cancelled, past its deadline, or not started

A worker does not depend on its server and outlives it.
"""

import contextlib
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from ..data.errors import MachineError, TrialError
from ..data.locks import PASSED
from ..training.environment import worker_environment
from ..training.signature import sign_spec
from ..training.spec import (
    END,
    INCUMBENT_RANKS,
    LOG,
    PROGRESS,
    RACE,
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
from ..training.trial_lock import take
from .key_pipe import key_pipe
from .lease import (
    LEASE,
    TERM_SECONDS,
    WALL_SLACK_SECONDS,
    WORKER_OPTIONS,
    Lease,
    adopt_child,
    end_group,
    end_worker,
    exit_code,
    find_worker,
    is_working,
    lease_of,
    read_lease,
)
from .log_tail import describe_exit, last_lines
from .warm import clear, hand_over, register

WORKER = "virtualmle.training.worker"
STOP = "stop.json"
INPUTS = {RACE, INCUMBENT_RANKS}  # what a trial may be given besides its spec, before it is started

MIN_FREE_BYTES = 2**20  # a crash with less free disk space is attributed to the full disk
START_GRACE_SECONDS = 30.0  # from the request for a trial to its lease: usually milliseconds, longer under load


class TrialState(BaseModel):
    """The state of a trial. `result` is set if the worker wrote one, `cause` if the trial crashed or was cancelled.

    A stopped trial is over: racing has ended it, and its training state is kept.
    """

    model_config = ConfigDict(frozen=True)

    status: Literal["running", "finished", "stopped", "crashed", "cancelled"]
    progress: TrialProgress = TrialProgress()
    result: TrialResult | None = None
    cause: str | None = None
    machine_fault: bool = False  # of a crash: the machine is the cause, not the configuration
    lost: bool = False  # of a machine fault: the node is gone, so the same trial can run again on another one
    seconds: float = 0.0  # wall-clock seconds so far, or until the last change of its files


class Stop(BaseModel):
    """Why another process stopped the trial: the content of stop.json."""

    status: Literal["crashed", "cancelled"]
    cause: str
    at: float  # seconds since the epoch
    machine_fault: bool = False
    lost: bool = False


class EndRequest(BaseModel):
    """The content of end.json."""

    at: float  # seconds since the epoch


def launch(
    spec: TrialSpec,
    directory: Path,
    *,
    module: str = WORKER,
    inbox: Path | None = None,
    keep_warm: float = 0.0,
    cwd: Path | None = None,
    key: bytes | None = None,
) -> None:
    """Run `spec` in `directory`, in the warm worker of `inbox` or in a new process; returns immediately.

    With an inbox, a new process waits for up to `keep_warm` seconds after its trial for the next one (`warm.py`).
    `cwd`: the working directory of a new process, by default that of the trial, because this process's own may have
    been deleted. key: of the session, with which spec and results are signed (training/signature.py); None = neither.
    TrialError if the directory already holds a trial, MachineError if it cannot be written or no process can be
    started.
    """
    check_unused(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_model(directory / SPEC, spec)
        if key is not None:
            sign_spec(directory, key, spec)
        if inbox is None or not hand_over(spec, directory.resolve(), inbox):
            _start(spec, directory.resolve(), module, inbox, keep_warm, cwd or directory.resolve(), key)
        elif (directory / STOP).exists():  # cancelled while the worker claimed the trial
            cancel(directory)
    except OSError as error:
        with contextlib.suppress(OSError):
            cause = f"the worker could not be started ({error.strerror})"
            write_stop(directory, "crashed", cause, machine_fault=True)
        raise MachineError(
            f"trial {spec.trial} could not be started in {directory} ({error.strerror}); free disk or memory and retry"
        ) from None


def check_unused(directory: Path) -> None:
    """Raise TrialError if `directory` has files of a trial, which would count as files of the next one."""
    if directory.is_dir() and any(path.name not in INPUTS | {END} for path in directory.iterdir()):
        raise TrialError(f"{directory} already holds a trial; a handle is never reused: start a new trial")


def poll(directory: Path, *, asked_at: float | None = None) -> TrialState:
    """The state of the trial in `directory`, from its files and the process table.

    asked_at: when the trial was requested, in seconds since the epoch; a trial whose directory does not exist yet
    counts as running for START_GRACE_SECONDS from then. A worker past its deadline is killed here. Raises no error for
    missing or damaged files: the trial then counts as crashed, with a cause.
    """
    lease = _lease(directory)
    # Checked before the result: a worker writes its result, then exits
    alive = lease is not None and is_working(directory, lease)
    try:
        result = result_of(directory)
    except ValueError:
        seconds = _seconds(directory, lease)
        return TrialState(status="crashed", cause="the trial's result.json is damaged", seconds=seconds)
    if result is not None and result.status != "failed":
        seconds = _seconds(directory, lease) or result.wall_seconds
        return TrialState(status=result.status, progress=progress_of(directory), result=result, seconds=seconds)
    stop = read_stop(directory)
    if lease is not None and alive and result is None:
        return _check_running(directory, lease, stop)
    if stop is not None:
        return TrialState(status=stop.status, progress=progress_of(directory), cause=stop.cause,
                          machine_fault=stop.machine_fault, lost=stop.lost, seconds=_seconds(directory, lease, stop))
    if result is not None:
        return TrialState(status="crashed", progress=progress_of(directory), result=result,
                          cause=result.cause or "the worker gave no cause", machine_fault=result.machine_fault,
                          seconds=result.wall_seconds)
    return _ended_without_result(directory, lease, asked_at)


def ended_at(directory: Path) -> float:
    """When a trial that is over ended, in seconds since the epoch, by the last change of its files; 0 without any."""
    written = [moment for name in (RESULT, STOP) if (moment := _modified(directory / name)) is not None]
    return min(written) if written else max(_modified(directory / name) or 0.0 for name in (SPEC, LOG, PROGRESS))


def cancel(directory: Path) -> TrialState:
    """Stop the trial and return its final state; a trial that is already over does not change.

    stop.json is written before the signal is sent, so that the next poll reports a cancelled trial, not a crash.
    """
    state = poll(directory)
    if state.status != "running":
        return state
    write_stop(directory, "cancelled", "cancelled on request")
    lease = _lease(directory)
    if lease is not None:
        end_worker(directory, lease)
    return poll(directory)


def ask_to_end(directory: Path) -> None:
    """Ask that the trial ends after its next evaluated epoch, with its best weights, as a finished trial.

    The request stays in the trial's directory, so it needs neither this process nor a connection to the worker; it may
    be repeated, and it may come before the worker has started. A trial that trains nothing ends as it would have.
    MachineError if the request cannot be written.
    """
    request = EndRequest(at=time.time())
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_model(directory / END, request)
    except OSError as error:
        raise MachineError(f"{directory} cannot be written ({error.strerror}); free disk space and retry") from None


def _start(
    spec: TrialSpec,
    directory: Path,
    module: str,
    inbox: Path | None,
    keep_warm: float,
    cwd: Path,
    key: bytes | None,
) -> None:
    warm_arguments: list[str] = []
    if inbox is not None and keep_warm > 0:
        clear(inbox)
        warm_arguments = [str(inbox.resolve()), f"{keep_warm:g}"]
    with (
        (directory / LOG).open("ab") as log,
        lock_to_pass(directory) as (environment, descriptors),
        key_pipe(key) as given,
    ):
        child = subprocess.Popen(
            [sys.executable, *WORKER_OPTIONS, module, str(directory), *warm_arguments],
            stdin=given,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=descriptors,
            cwd=cwd,
            start_new_session=True,  # the worker survives a closed terminal and a killed server
        )
    lease = lease_of(psutil.Process(child.pid), spec.wall_seconds)
    adopt_child(directory, child)
    write_model(directory / LEASE, lease)
    if inbox is not None and warm_arguments:
        register(inbox, lease)
    if (directory / STOP).exists():  # cancelled before there was a process to cancel
        end_group(lease)


@contextlib.contextmanager
def lock_to_pass(directory: Path) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """The environment of a worker and the descriptor of its lock, which it inherits if it is started in this block."""
    environment = worker_environment(os.environ)
    descriptor = take(directory)
    if descriptor is None:
        yield environment, ()
        return
    try:
        yield {**environment, PASSED: str(descriptor)}, (descriptor,)
    finally:
        os.close(descriptor)


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
        with contextlib.suppress(OSError):  # disk full: the next poll finds the process again
            write_model(directory / LEASE, lease)
    return lease


def _check_running(directory: Path, lease: Lease, stop: Stop | None) -> TrialState:
    now = time.time()
    overdue = stop is None and now > lease.deadline
    if overdue:
        limit = lease.deadline - lease.since
        write_stop(directory, "crashed", f"killed: still running {limit:.0f} s after its start; use fewer epochs")
    incomplete = stop is not None and now > stop.at + 2 * TERM_SECONDS  # the process that stopped the trial died first
    if (overdue or incomplete) and end_worker(directory, lease):
        return poll(directory)
    return TrialState(status="running", progress=progress_of(directory), seconds=now - lease.since)


def write_stop(
    directory: Path,
    status: Literal["crashed", "cancelled"],
    cause: str,
    *,
    machine_fault: bool = False,
    lost: bool = False,
) -> None:
    """Record that, and why, the trial was stopped."""
    stop = Stop(status=status, cause=cause, at=time.time(), machine_fault=machine_fault, lost=lost)
    write_model(directory / STOP, stop)


def _ended_without_result(directory: Path, lease: Lease | None, asked_at: float | None) -> TrialState:
    if lease is None:
        return _never_started(directory, asked_at)
    began = (directory / PROGRESS).exists()  # a worker writes this file first, before it reads any data
    full = _disk_is_full(directory)
    event = "worker ended without a result" if began else "the worker ended before it could read its trial"
    cause = f"{event}{describe_exit(exit_code(directory), began=began)}{last_lines(directory / LOG)}"
    return TrialState(
        status="crashed",
        progress=progress_of(directory),
        cause=f"the disk is full; {cause}" if full else cause,
        machine_fault=full or not began,
        seconds=_seconds(directory, lease),
    )


def _disk_is_full(directory: Path) -> bool:
    return shutil.disk_usage(directory).free < MIN_FREE_BYTES


def _never_started(directory: Path, asked_at: float | None) -> TrialState:
    moments = (_modified(directory / SPEC), _modified(directory), asked_at)
    since = next((moment for moment in moments if moment is not None), None)
    if since is not None and time.time() - since < START_GRACE_SECONDS:
        return TrialState(status="running")
    return TrialState(status="crashed", cause="the worker was never started; run the same trial again")


def result_of(directory: Path) -> TrialResult | None:
    """The result, if there is one; ValueError if it is damaged, or finished without finite metrics."""
    result = read_result(directory)
    if result is not None and result.status == "finished":
        metrics = [*result.metrics.values(), result.metrics.get("ndcg@10", math.nan)]
        if not all(map(math.isfinite, metrics)):
            raise ValueError("a finished trial must have finite metrics")
    return result


def progress_of(directory: Path) -> TrialProgress:
    """The progress of the trial in `directory`."""
    try:
        return read_progress(directory)
    except ValidationError:  # damaged progress does not make the trial a crash
        return TrialProgress()


def read_stop(directory: Path) -> Stop | None:
    """Why the trial was stopped; None if it was not."""
    path = directory / STOP
    try:
        return Stop.model_validate_json(path.read_bytes()) if path.exists() else None
    except ValidationError:
        return Stop(status="crashed", cause="the trial was stopped; its stop.json is damaged", at=path.stat().st_mtime)


def _seconds(directory: Path, lease: Lease | None = None, stop: Stop | None = None) -> float:
    if lease is None:
        return 0.0
    end = stop.at if stop else max(_modified(directory / name) or 0.0 for name in (LOG, PROGRESS, RESULT))
    return min(max(0.0, end - lease.since), _max_seconds(directory, lease))


def _max_seconds(directory: Path, lease: Lease) -> float:
    """Upper bound on a trial's seconds: a wrong start time in a lease must not use up the session's budget."""
    try:
        return read_spec(directory).wall_seconds + WALL_SLACK_SECONDS
    except TrialError:
        return max(0.0, lease.deadline - lease.since)


def _modified(path: Path) -> float | None:
    return path.stat().st_mtime if path.exists() else None
