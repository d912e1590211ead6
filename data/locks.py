"""A lock on an open file, which the system releases when its holder closes the file, also if it is killed."""

try:
    import fcntl
except ImportError:  # not a POSIX system: it has no such lock, so a second holder is not detected
    fcntl = None  # type: ignore[assignment]


def take_lock(descriptor: int) -> bool:
    """Take the lock on an open file; returns False if another process has it. OSError if the file system has none."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
