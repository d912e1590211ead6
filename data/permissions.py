"""Who may read what a process writes: what is in a home is for its owner only, and a user's own files as the user set.

A process that works on a home calls `keep_private` at its start, so that every file and directory is created without
permissions for others. Outputs that a command writes elsewhere (an export, a table, a trace) are created within
`as_the_user_set`. The umask belongs to the whole process: in that time another thread creates files that others may
read, which the mode of their directory, 0700, still keeps from them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OTHERS = 0o077  # the permission bits of the group and of all other users
OWNER_ONLY_DIRECTORY = 0o700

_users_umask: list[int] = []  # the umask before `keep_private`; empty if that was not called


def keep_private(users_umask: int | None = None) -> None:
    """Create files for the owner only from now on; users_umask: that of the process that started this one."""
    before = os.umask(OTHERS)
    if not _users_umask:
        _users_umask.append(before if users_umask is None else users_umask)


def users_umask() -> int | None:
    """The umask that the user had set, for `keep_private` in a child process; None if this one did not call it."""
    return _users_umask[0] if _users_umask else None


@contextmanager
def as_the_user_set() -> Iterator[None]:
    """Files are created with the user's umask inside, for outputs outside the home."""
    if not _users_umask:
        yield
        return
    before = os.umask(_users_umask[0])
    try:
        yield
    finally:
        os.umask(before)


def make_private(directory: Path) -> Path:
    """Create `directory` and its parents if they are missing, and take all permissions on it from other users.

    Raises OSError if it cannot be created. A directory of another owner stays as it is.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY_DIRECTORY)
    found = directory.stat()
    if os.name == "posix" and found.st_mode & OTHERS and found.st_uid == os.getuid():
        directory.chmod(OWNER_ONLY_DIRECTORY)
    return directory
