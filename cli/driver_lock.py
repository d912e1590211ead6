"""One driver per session: an advisory lock that `tune` and `sessions resume` hold while they drive a session.

The lock is `flock` on a file in the session's directory, so the system releases it when its holder ends, however it
ends. MCP clients do not take it: the tools themselves refuse what two of them must not do at once.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..data.errors import SessionError

try:
    import fcntl
except ImportError:  # not a POSIX system: there is no such lock, and two drivers are not told apart
    fcntl = None  # type: ignore[assignment]

LOCK = "driver.lock"


class DriverLock:
    """The lock on the session that this process drives; `acquire` once its id is known."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file: IO[str] | None = None

    def acquire(self, session: str) -> None:
        """Take the lock, or keep it. Raises SessionError, naming its process, where another run drives `session`."""
        if self._file is not None or fcntl is None:
            return
        path = self._home / ".virtualmle" / "sessions" / session / LOCK
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise SessionError(
                f"session {session} is being driven by another run (process {holder}); watch it with "
                f"`virtualmle sessions show {session}`, or open another session with `virtualmle tune ... --new`"
            ) from None
        except OSError:  # a file system without locks: two drivers are not told apart there
            file.close()
            return
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Give the lock back."""
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
