"""What a worker does before it imports numpy or torch, which start threads and open files. Does not import them."""

from collections.abc import Sequence
from pathlib import Path

from .confinement import confine_worker
from .private_process import start_privately
from .trial_lock import OWN_LOCK


def start(arguments: Sequence[str], *, tcp: bool = False) -> None:
    """Start a worker with this command line: keep the trial's lock, write privately, and give up rights.

    arguments: DIRECTORY [INBOX SECONDS]. tcp: whether it may use TCP.
    """
    OWN_LOCK.keep()  # first, so that a launcher that was killed leaves a worker that can be found
    start_privately()
    confine_worker(Path(arguments[0]), Path(arguments[1]) if len(arguments) > 1 else None, tcp=tcp)
