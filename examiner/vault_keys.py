"""Secret keys of the vault that are created once, on first use: 32 random bytes each, readable by the owner only."""

import contextlib
import os
from pathlib import Path

from ..data.atomic import write_bytes
from ..data.errors import HomeError
from ..data.seal import KEY_BYTES
from .vault import OWNER_ONLY, file_exists, other_owner_error, read_key

AUDIT_KEY, RECEIPT_KEY = "audit_key", "receipt_key"


def new_key() -> bytes:
    """32 random bytes."""
    return os.urandom(KEY_BYTES)


def store_once(path: Path, key: bytes) -> bytes:
    """Write a key unless another process has stored one; returns the key in the file. Raises HomeError, SealError."""
    try:
        with contextlib.suppress(FileExistsError):
            write_bytes(path, key, OWNER_ONLY, replace=False)
    except PermissionError:
        raise other_owner_error(path.parent) from None
    except OSError as error:
        raise HomeError(f"{str(path)!r} cannot be written ({error.strerror}); free some disk space") from None
    return read_key(path)


def stored_key(path: Path) -> bytes | None:
    """The key in a file, or None if there is none. Raises SealError for a file that is not a key."""
    return read_key(path) if file_exists(path) else None
