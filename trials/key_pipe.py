"""The standard input of a worker or a bridge, which holds the key of its session: 32 bytes in a pipe.

A key on the command line or in the environment could be read by other processes, and one in a file would stay there.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def key_pipe(key: bytes | None) -> Iterator[int]:
    """The standard input for `subprocess.Popen`: a pipe that holds `key` already; None = nothing to read."""
    if key is None:
        yield subprocess.DEVNULL
        return
    readable, writable = os.pipe()  # neither is inherited, except by the process whose standard input it becomes
    try:
        os.write(writable, key)
        os.close(writable)
        yield readable
    finally:
        os.close(readable)
