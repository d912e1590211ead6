"""The worker's side of a session's inbox: claims the next trial that is offered to this process.

`trials/warm.py` is the launcher's side and describes the files in the directory.
"""

import contextlib
import json
import os
import time
from pathlib import Path

from .confinement import can_read_inputs
from .spec import LEASE_FILE, ORDER_PATTERN
from .trial_lock import OWN_LOCK

POLL_SECONDS = 0.01  # neither the delay nor the load of polling at this rate is noticeable


def take_order(inbox: Path, seconds: float) -> Path | None:
    """Claim an order and return its trial's directory; None after `seconds` without one, or if the inbox is gone."""
    OWN_LOCK.release()  # the trial before is over
    end = time.monotonic() + seconds
    while time.monotonic() < end and inbox.is_dir():
        for order in inbox.glob(ORDER_PATTERN):
            content = json.loads(order.read_bytes())
            directory = Path(content["directory"])
            if content["pid"] != os.getpid():
                continue
            if not can_read_inputs(directory):  # they have been replaced: a new process may open them
                return None
            OWN_LOCK.claim(directory)  # first: a trial with a lease and no lock would count as dead
            with contextlib.suppress(FileNotFoundError):  # the launcher has withdrawn the order
                os.rename(order, directory / LEASE_FILE)
                return directory
            OWN_LOCK.release()
        time.sleep(POLL_SECONDS)
    return None
