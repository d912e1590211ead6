"""The hash by which a file is recognised again."""

import hashlib
import os
import time
from pathlib import Path

from .atomic import write_bytes

SETTLED_SECONDS = 0.1  # file systems stamp changes with a clock that ticks every few milliseconds
MOST_STORED = 4096

_Mark = tuple[int, int, int, int, int]
_stored: dict[str, tuple[_Mark, str]] = {}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal; raises OSError if the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_hashed(path: Path, content: bytes) -> str:
    """Replace the file `path` by `content` atomically, and return the SHA-256 of `content`."""
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def stored_sha256(path: Path) -> str:
    """As `sha256_of`, but a file that this process has hashed before is read again only if it has changed since.

    A change is seen by inode, size and both times; that of the last change of the inode cannot be set back. A file that
    was changed a moment ago is not stored, because a second change in the same tick of the clock would not be seen.
    """
    mark = _mark(path)
    known = _stored.get(str(path))
    if known and known[0] == mark:
        return known[1]
    digest = sha256_of(path)
    if mark == _mark(path) and time.time() - max(mark[3:]) / 1e9 > SETTLED_SECONDS:
        if len(_stored) >= MOST_STORED:
            _stored.clear()
        _stored[str(path)] = (mark, digest)
    return digest


def _mark(path: Path) -> _Mark:
    status = os.stat(path)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
