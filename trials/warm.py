"""Warm workers: after its trial a worker waits for a limited time for the next trial of the same session.

Starting Python and torch takes seconds, about as long as a small trial trains. A session's inbox directory contains:

    worker.json          written by the launcher: the process that waits, or will wait after its current trial
    order-t004.json      the next trial: its lease, and its directory

The order *is* the lease: the worker claims it by renaming the file into the trial's directory. This one atomic step
claims the trial and records who runs it. If a launcher or worker is killed, either the order remains unclaimed or the
trial has a lease. Nothing here starts a process.
"""

import contextlib
import os
import shutil
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ..training.spec import ORDER_PATTERN, TrialSpec, write_model
from .lease import LEASE, WALL_SLACK_SECONDS, Lease, end_group, is_held, share_child

WORKER_FILE = "worker.json"
CLAIM_SECONDS = 1.0  # a waiting worker polls every few milliseconds; one that does not claim in time is stuck
POLL_SECONDS = 0.003


class Order(Lease):
    """A lease that is offered to a warm worker."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    directory: str  # of the trial


class Registration(BaseModel):
    """The warm worker of a session: the content of worker.json."""

    model_config = ConfigDict(frozen=True)

    pid: int
    created: float


def register(inbox: Path, lease: Lease) -> None:
    """Record that the holder of `lease` will claim further trials from `inbox`."""
    write_model(inbox / WORKER_FILE, Registration(pid=lease.pid, created=lease.created))


def clear(inbox: Path) -> None:
    """Replace the inbox by an empty one for a new worker; an earlier worker that is still alive gets no orders."""
    shutil.rmtree(inbox, ignore_errors=True)
    inbox.mkdir(parents=True)


def hand_over(spec: TrialSpec, directory: Path, inbox: Path) -> bool:
    """Offer a trial to the warm worker; returns whether it claimed the trial. A worker that did not is then ended."""
    worker = worker_of(inbox)
    if worker is None:
        return False
    now = time.time()
    order = Order(
        pid=worker.pid,
        created=worker.created,
        started=now,
        deadline=now + spec.wall_seconds + WALL_SLACK_SECONDS,
        directory=str(directory),
    )
    path = inbox / ORDER_PATTERN.replace("*", spec.trial)
    share_child(worker.pid, directory)
    try:
        write_model(path, order)
    except OSError:  # the worker has just exited and another process cleared its inbox
        return False
    if _claimed(directory, order):
        return True
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, path.with_suffix(".withdrawn"))  # of this rename and the worker's, only one succeeds
        end_group(order)
        return False
    return True


def retire(inbox: Path) -> None:
    """Delete the inbox and end the session's warm worker, which would also exit without an inbox."""
    worker = worker_of(inbox)
    shutil.rmtree(inbox, ignore_errors=True)
    if worker is not None:
        end_group(worker)


def _claimed(directory: Path, order: Order) -> bool:
    end = time.monotonic() + CLAIM_SECONDS
    while time.monotonic() < end and is_held(order):
        if (directory / LEASE).exists():
            return True
        time.sleep(POLL_SECONDS)
    return (directory / LEASE).exists()


def worker_of(inbox: Path) -> Lease | None:
    """The process that claims the trials of this inbox, if it is alive, as a lease without a deadline."""
    try:
        found = Registration.model_validate_json((inbox / WORKER_FILE).read_bytes())
        lease = Lease(pid=found.pid, created=found.created, deadline=0.0)
    except (OSError, ValidationError):
        return None
    return lease if is_held(lease) else None
