"""The worker's side of a session's inbox: takes the next trial that is offered to this process.

`trials/warm.py` is the other side and says what lies in the directory.
"""

import contextlib
import json
import os
import time
from pathlib import Path

from .spec import LEASE_FILE, ORDER_PATTERN

POLL_SECONDS = 0.01  # neither the delay nor the load of looking this often is noticeable


def take_order(inbox: Path, seconds: float) -> Path | None:
    """The directory of a trial whose order was taken; None when none comes in `seconds`, or the inbox is gone."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and inbox.is_dir():
        for order in inbox.glob(ORDER_PATTERN):
            offered = json.loads(order.read_bytes())
            directory = Path(offered["directory"])
            if offered["pid"] != os.getpid():
                continue
            with contextlib.suppress(FileNotFoundError):  # withdrawn meanwhile
                os.rename(order, directory / LEASE_FILE)
                return directory
        time.sleep(POLL_SECONDS)
    return None
