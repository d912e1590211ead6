"""A lock on an open file, which the system releases when its holder closes the file, also if it is killed.

A process can hold a lock for its whole life without a moment in which nobody has it: its parent takes the lock and
passes the descriptor on. Such a process is recognised by the lock that it holds, which nobody else can have, and not by
its command line, which anybody can imitate.
"""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: it has no such lock, so a second holder is not detected
    fcntl = None  # type: ignore[assignment]

PASSED = "VIRTUALMLE_LOCK"  # in the environment of a child: the number of the descriptor that holds a lock


def take_lock(descriptor: int) -> bool:
    """Take the lock on an open file; returns False if another process has it. OSError if the file system has none."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock on `path`; None if there is no such file, or no lock that could be asked for."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two processes may ask at once
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def keep_passed_lock() -> int | None:
    """Keep the lock that the parent of this process passed on; returns its descriptor, None without such a lock.

    Processes that this one starts do not inherit the lock.
    """
    number = os.environ.pop(PASSED, None)
    if number is None:
        return None
    os.set_inheritable(int(number), False)
    return int(number)
