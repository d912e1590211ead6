"""Atomic file writes: a reader sees the complete old or the complete new file, even after a kill or a power cut."""

import ctypes
import json
import os
import secrets
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes, mode: int = 0o666, *, replace: bool = True) -> None:
    """Replace the file `path` by `content`: write a temporary file beside it, sync it, and rename it over `path`.

    mode: permissions of the file, of which the umask takes some. With `replace=False`, raises FileExistsError if `path`
    exists.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CLOSE_ON_EXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # atomic as well, and fails if `path` exists
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, mode: int = 0o666) -> None:
    """Replace the file `path` by `value` as JSON. Raises ValueError for NaN and infinities."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode(), mode)


def exchange(one: Path, other: Path) -> None:
    """Exchange two directories of one file system, atomically on Linux. Raises OSError if that fails.

    Other systems need three renames, between which `other` does not exist for a moment.
    """
    if _exchange_at_once(one, other):
        return
    aside = other.with_name(f".{other.name}.{os.getpid()}")
    os.rename(other, aside)
    try:
        os.rename(one, other)
    except OSError:
        os.rename(aside, other)
        raise
    os.rename(aside, one)


def _exchange_at_once(one: Path, other: Path) -> bool:
    """Call Linux's renameat2(RENAME_EXCHANGE); returns False if the system or the file system lacks it."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return int(call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)) == 0


_CLOSE_ON_EXEC = getattr(os, "O_CLOEXEC", 0)
_AT_FDCWD = -100  # relative paths start at the working directory
_RENAME_EXCHANGE = 2
