"""A worker that ends with the process that started it: `python -P -m virtualmle.training.bound_worker DIRECTORY`.

A worker outlives its server on purpose. One that runs for a Ray task must not outlive it, because Ray gives the cores
of a task that has ended to the next one.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from .worker_start import start

PARENT = "VIRTUALMLE_PARENT"  # process id of the parent, in the environment: it may be gone before this module is read
POLL_SECONDS = 0.2


def end_with(parent: int) -> None:
    """Kill the process group of this process as soon as `parent` is no longer its parent."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    start(sys.argv[1:], tcp=True)  # first, because it restricts this thread and those that are started later
    threading.Thread(target=end_with, args=(int(os.environ[PARENT]),), daemon=True).start()
    from .worker import key_from_launcher, main  # imports torch, which takes seconds: the parent is watched before

    sys.exit(main(Path(sys.argv[1]), key=key_from_launcher()))
