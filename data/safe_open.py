"""Opening files of a home without following symbolic links below a root directory.

A link in a home could make a reader take other data for a dataset, a trial or a key, and a writer write elsewhere.
Every step below the root is opened from the descriptor of the directory above it with O_NOFOLLOW, so that a link that
appears between check and use is refused too. The root itself may be reached over links: a whole home may be moved and
linked. Not covered: hard links, which are ordinary files.
"""

import errno
import os
import stat
from hashlib import file_digest
from io import BufferedReader
from pathlib import Path

from .errors import HomeError, VirtualMLEError

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_FROM_DIRECTORY = os.open in os.supports_dir_fd and bool(_NOFOLLOW)


def open_beneath(root: Path, *parts: str, error: type[VirtualMLEError] = HomeError) -> BufferedReader:
    """Open root/part/…/part to read; its `name` is that path.

    Raises `error` if one of the parts is a symbolic link, or not a single name, and OSError if the file cannot be
    opened.
    """
    path = root.joinpath(*parts)
    if any(part in ("", ".", "..") or os.sep in part for part in parts):
        raise error(f"{str(path)!r} is not below {str(root)!r}; name a file in it")
    if not _FROM_DIRECTORY:  # a system without openat: the check and the opening are two steps
        refuse_links(root, *parts, error=error)
        return path.open("rb")

    def opener(_: str, flags: int) -> int:
        return _descend(root, parts, flags)

    try:
        return open(path, "rb", opener=opener)
    except OSError as failure:
        if failure.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):  # EMLINK: FreeBSD's answer to O_NOFOLLOW
            refuse_links(root, *parts, error=error)
        raise


def read_beneath(root: Path, *parts: str, error: type[VirtualMLEError] = HomeError) -> bytes:
    """The content of a file, as `open_beneath` opens it."""
    with open_beneath(root, *parts, error=error) as file:
        return file.read()


def sha256_beneath(root: Path, *parts: str, error: type[VirtualMLEError] = HomeError) -> str:
    """The SHA-256 of a file, as `open_beneath` opens it, in hexadecimal."""
    with open_beneath(root, *parts, error=error) as file:
        return file_digest(file, "sha256").hexdigest()


def refuse_links(root: Path, *parts: str, error: type[VirtualMLEError] = HomeError) -> Path:
    """root/part/…/part, which need not exist. Raises `error` if one of the parts is a symbolic link."""
    path = root
    for part in parts:
        path = path / part
        try:
            is_link = stat.S_ISLNK(path.lstat().st_mode)
        except OSError:
            break
        if is_link:
            raise error(
                f"{str(path)!r} is a symbolic link, and links inside a home are not followed; put the files themselves "
                "there, or move the whole home to where the space is and name it with --home"
            )
    return root.joinpath(*parts)


def split_beneath(path: Path, depth: int) -> tuple[Path, tuple[str, ...]]:
    """The root of `path` for `open_beneath`, with its last `depth` names as the parts."""
    absolute = Path(os.path.abspath(path))
    names = absolute.parts[1:]
    cut = max(0, len(names) - depth)
    return Path(absolute.anchor, *names[:cut]), names[cut:]


def _descend(root: Path, parts: tuple[str, ...], flags: int) -> int:
    """The descriptor of the file; every directory on the way is opened from the one above."""
    current = os.open(root, os.O_RDONLY | _DIRECTORY)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | _DIRECTORY | _NOFOLLOW, dir_fd=current)
            os.close(current)
            current = below
        return os.open(parts[-1], flags | _NOFOLLOW, dir_fd=current)
    finally:
        os.close(current)
