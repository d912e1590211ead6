"""A lock on a file, so that a session or a comparison has one process at a time; a killed holder releases it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..data.errors import SessionError
from ..data.locks import take_lock

POLL_SECONDS = 0.05


@contextmanager
def locked(path: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock on `path` within the block. Raises SessionError if another process keeps it for `wait_seconds`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + wait_seconds
        while not take_lock(file.fileno()):
            if time.monotonic() >= deadline:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise SessionError(f"{path.parent} is in use by process {holder}; wait for it, or choose another --out")
            time.sleep(POLL_SECONDS)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
