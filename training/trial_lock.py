"""The lock on a trial: whoever holds it runs the trial. Does not import torch.

worker.lock in the trial's directory contains the process id of its holder. The launcher takes the lock of a new worker
and passes it on when it starts the process. A warm worker takes the lock of each trial before it claims it. The system
releases the lock when the process ends, also if it is killed.

The file appears with its lock held, because it is locked under another name first: nobody can find a trial whose worker
lives and has no lock.
"""

import contextlib
import os
import tempfile
from pathlib import Path

from ..data.locks import is_locked, keep_passed_lock, take_lock

LOCK = "worker.lock"


def take(directory: Path) -> int | None:
    """Create the lock of the trial in `directory`, held by the descriptor that is returned.

    None on a file system without locks, where a worker is recognised by its process id and start time only. Raises
    OSError if the file cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=f".{LOCK}.")
    try:
        take_lock(descriptor)
    except OSError:
        os.close(descriptor)
        os.unlink(temporary)
        return None
    os.rename(temporary, directory / LOCK)
    return descriptor


def is_worked_on(directory: Path) -> bool | None:
    """Whether a process holds the lock of the trial in `directory`; None if the trial has no lock."""
    return is_locked(directory / LOCK)


def holder(directory: Path) -> int | None:
    """The process id in the lock of a trial; None if there is none, or if its worker has not yet written it."""
    with contextlib.suppress(OSError, ValueError):
        return int((directory / LOCK).read_bytes())
    return None


class OwnLock:
    """The lock of the trial that this process runs."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def keep(self) -> None:
        """Keep the lock that the launcher passed on, if it did, and write the id of this process into it."""
        self._hold(keep_passed_lock())

    def claim(self, directory: Path) -> None:
        """Take the lock of the trial in `directory`. Raises OSError if it cannot be written."""
        self._hold(take(directory))

    def release(self) -> None:
        """Release the lock: its trial is over, or was withdrawn."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _hold(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        if descriptor is not None:
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


OWN_LOCK = OwnLock()
