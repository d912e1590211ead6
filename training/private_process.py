"""What a process of this package does first, so that what it knows and writes stays with it. Does not import torch."""

import ctypes
import os
import sys

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None  # type: ignore[assignment]

OPEN_FILES = 4096  # a worker with CUDA and Triton uses some hundreds
_PR_SET_DUMPABLE = 4


def start_privately() -> None:
    """Write files that no other user can read, leave no core dump, and limit the number of open files.

    The address space is not limited, because CUDA reserves more than the machine has.
    """
    os.umask(0o077)
    forbid_core_dumps()
    if resource is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def forbid_core_dumps() -> None:
    """Leave no core dump of this process, nor of those that it starts."""
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def forbid_inspection() -> bool:
    """Keep other processes of this user from reading the memory of this one; returns whether the system does so.

    For processes that hold a key or a token. Debuggers and profilers can then attach as root only. Linux only.
    """
    if not sys.platform.startswith("linux"):
        return False
    return int(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)) == 0
