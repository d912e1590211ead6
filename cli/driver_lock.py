"""An advisory lock that `tune` and `sessions resume` hold while they run a session, so that only one of them does.

The lock is `flock` on a file in the directory of the session, so the system releases it even if its holder is killed.
MCP clients do not take it: the tools refuse conflicting calls of several clients.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..data.errors import SessionError
from ..data.locks import take_lock

LOCK = "driver.lock"


class DriverLock:
    """The lock on the session that this process runs; call `acquire` when the id of the session is known."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file: IO[str] | None = None

    def acquire(self, session: str) -> None:
        """Take the lock unless it is held already. Raises SessionError with the process id if another run holds it."""
        if self._file is not None:
            return
        path = self._home / ".virtualmle" / "sessions" / session / LOCK
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        try:
            taken = take_lock(file.fileno())
        except OSError:  # a file system without locks: a second run is not detected
            file.close()
            return
        if not taken:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise SessionError(
                f"session {session} is in use by another run (process {holder}); watch it with "
                f"`virtualmle sessions show {session}`, or open another session with `virtualmle tune ... --new`"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Release the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None


@contextlib.contextmanager
def driver_lock(home: Path) -> Iterator[DriverLock]:
    """A lock that is released at the end of the block."""
    lock = DriverLock(home)
    try:
        yield lock
    finally:
        lock.release()
