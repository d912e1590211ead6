"""Warm workers: a process that has finished its trial waits a while for the next one of the same session.

Starting Python and torch costs seconds, a small trial trains for as long. What lies in a session's inbox directory:

    worker.json          the process that waits, or will when its trial is over (written by whoever started it)
    order-t004.json      the next trial: its lease, and its directory

The order *is* the lease: the worker takes it by renaming it into the trial's directory. One atomic step claims the
trial and says who runs it, so a killed launcher or worker leaves either an order that nobody took or a trial with a
lease. Nothing here starts a process.
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
CLAIM_SECONDS = 1.0  # a waiting worker polls every few milliseconds; one that does not answer is stuck
POLL_SECONDS = 0.003


class Order(Lease):
    """A lease that is on offer."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    directory: str  # of the trial


class Registration(BaseModel):
    """The warm process of a session."""

    model_config = ConfigDict(frozen=True)

    pid: int
    created: float


def register(inbox: Path, lease: Lease) -> None:
    """Say that the holder of `lease` will take further trials from `inbox`."""
    write_model(inbox / WORKER_FILE, Registration(pid=lease.pid, created=lease.created))


def clear(inbox: Path) -> None:
    """An empty inbox, for a worker about to be started; an earlier one that still lives finds no order there."""
    shutil.rmtree(inbox, ignore_errors=True)
    inbox.mkdir(parents=True)


def hand_over(spec: TrialSpec, directory: Path, inbox: Path) -> bool:
    """Offer the trial in `directory` to the warm worker; whether it took it. One that does not answer is ended."""
    worker = _waiting(inbox)
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
    except OSError:  # the worker has just left and somebody cleared its inbox
        return False
    if _claimed(directory, order):
        return True
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, path.with_suffix(".withdrawn"))  # of two renames one wins
        end_group(order)
        return False
    return True


def retire(inbox: Path) -> None:
    """End the session's warm worker, if it waits; a worker without an inbox would leave by itself."""
    worker = _waiting(inbox)
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


def _waiting(inbox: Path) -> Lease | None:
    try:
        found = Registration.model_validate_json((inbox / WORKER_FILE).read_bytes())
        lease = Lease(pid=found.pid, created=found.created, deadline=0.0)
    except (OSError, ValidationError):
        return None
    return lease if is_held(lease) else None
