"""The hidden directory in which an export is written before it gets its name; what a killed process left is removed.

A writer holds a lock on its directory, which the system releases when the process ends, however it ends. A directory
whose lock is free is therefore a leftover. On a file system without locks, nothing is removed.
"""

import contextlib
import os
import secrets
import shutil
from pathlib import Path

from ..data.locks import take_lock


def make_temporary(directory: Path) -> tuple[Path, int]:
    """A new hidden directory beside `directory`, and the descriptor that holds its lock until it is closed.

    Leftovers of interrupted writers of the same `directory` are removed first. Raises OSError.
    """
    prefix = f".{directory.name}.export-"
    for found in directory.parent.iterdir():
        if found.name.startswith(prefix):
            _remove_leftover(found)
    temporary = directory.with_name(prefix + secrets.token_hex(4))
    temporary.mkdir()
    lock = os.open(temporary, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a file system without locks
        take_lock(lock)
    return temporary, lock


def _remove_leftover(found: Path) -> None:
    try:
        lock = os.open(found, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # a link, or removed by another process meanwhile
        return
    with contextlib.suppress(OSError):
        if take_lock(lock):  # its writer has ended
            shutil.rmtree(found, ignore_errors=True)
    os.close(lock)
