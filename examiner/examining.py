"""The lock of a running examiner: `vault/examining/SESSION.lock`. Whoever holds it examines the session.

The process that starts the examiner takes the lock and passes it on. The lock is therefore held from before the start
until the examiner has ended, also if it is killed. Nobody without access to the vault can pretend to be an examiner.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ..data.errors import SealError
from ..data.locks import PASSED, is_locked, take_lock
from ..training.environment import worker_environment
from .vault import OWNER_ONLY, OWNER_ONLY_DIRECTORY, Vault, other_owner_error

TAKE_SECONDS = 1.0  # whoever asks whether an examiner runs holds the lock for an instant
POLL_SECONDS = 0.01


def in_progress(home: Path, session: str) -> bool:
    """Whether an examiner of this session is running, even if its server has died."""
    return bool(is_locked(_path(Vault(home), session)))


@contextlib.contextmanager
def lock_to_pass(vault: Vault, session: str) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """The environment of an examiner and the descriptor of its lock, which it inherits if it is started in this block.

    Raises SealError if another examiner of the session is running.
    """
    vault.create_directory()
    path = _path(vault, session)
    try:
        path.parent.mkdir(exist_ok=True, mode=OWNER_ONLY_DIRECTORY)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, OWNER_ONLY)
    except PermissionError:
        raise other_owner_error(path.parent) from None
    try:
        if not _taken(descriptor):
            raise SealError(f"another process examines session {session} at this moment")
        yield {**worker_environment(os.environ), PASSED: str(descriptor)}, (descriptor,)
    finally:
        os.close(descriptor)


def _path(vault: Vault, session: str) -> Path:
    vault.revealed_path(session)  # raises SealError for an invalid session id
    return vault.directory / "examining" / f"{session}.lock"


def _taken(descriptor: int) -> bool:
    end = time.monotonic() + TAKE_SECONDS
    with contextlib.suppress(OSError):  # a file system without locks: a running examiner is not seen
        while not take_lock(descriptor):
            if time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS)
    return True
