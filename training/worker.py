"""The process that runs trials: `python -P -m virtualmle.training.worker DIRECTORY [INBOX SECONDS]`.

`spec.py` lists the files in DIRECTORY, and `pipeline.py` does the work of a trial. The process writes exactly
one result.json per trial, unless it is killed: finished, or failed with a sentence that gives the cause. SIGTERM ends
the process immediately, without a result.

The launcher writes the key of the session to standard input, with which the process signs its files (`signature.py`).

With an inbox the process waits for up to SECONDS after a finished trial, with torch and the dataset loaded, and runs
the next trial that is offered in the inbox (`inbox.py`). It exits after a failed trial, and if the inbox is deleted.

Where the kernel allows it, the process can open little else than these files (`confinement.py`).
"""

import gc
import os

# torch reads this variable when it loads OpenMP. Threads that spin at every barrier make an epoch seven times slower
# on a machine whose other core is busy; threads that sleep have no measurable cost on an idle machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import sys

if __name__ == "__main__":
    from .worker_start import start

    start(sys.argv[1:])  # before torch is imported, see there

import errno
import signal
import threading
import traceback
from pathlib import Path

import torch

from ..data.errors import MachineError, VirtualMLEError
from ..data.mac import KEY_BYTES
from .inbox import take_order
from .inputs import check_unchanged
from .pipeline import run
from .spec import LOG, RESULT, read_spec
from .trial import Trial

MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)
"""System errors that would hit any trial here: no disk space, a read-only or failing disk, too many open files."""


def main(directory: Path, inbox: Path | None = None, seconds: float = 0.0, key: bytes | None = None) -> int:
    """Run the trial in `directory`, then the trials from `inbox`; returns the exit code, 0 if the last one finished.

    key: of the session, with which all these trials are signed; None = they are not signed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a parent may have changed it, and cancelling must end the process
    if (directory / RESULT).exists():
        sys.exit(f"{str(directory)!r} already contains {RESULT}; start a new trial")
    while _run_one(directory, key):
        gc.collect()
        next_directory = take_order(inbox, seconds) if inbox else None
        if next_directory is None:
            return 0
        directory = next_directory
        _log_to(directory / LOG)
    return 1


def _run_one(directory: Path, key: bytes | None) -> bool:
    """Run the trial in `directory`; returns whether it finished."""
    trial = Trial(directory, key)
    cause, machine_fault = None, False
    try:
        spec = read_spec(directory)
        trial.begin(spec)
        trial.limit(spec.wall_seconds)
        run(trial, spec)
        check_unchanged(Path(spec.dataset_dir))
    except VirtualMLEError as error:
        cause, machine_fault = str(error), isinstance(error, MachineError)
    except Exception as error:  # outermost handler: the log gets the traceback, the agent one sentence
        traceback.print_exc()
        machine_fault = isinstance(error, OSError) and error.errno in MACHINE_ERRORS
        kind = "the machine failed" if machine_fault else "internal error"
        cause = _memory_cause(error) or f"{kind}: {type(error).__name__}: {error}"
    if not trial.finish(cause, machine_fault=machine_fault):
        threading.Event().wait(60)  # the watchdog writes the result and then ends the process
    return cause is None


def key_from_launcher() -> bytes | None:
    """The session's key, which the launcher has written to standard input; None if it gave none."""
    given = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read(KEY_BYTES)
    return given if len(given) == KEY_BYTES else None


def _memory_cause(error: Exception) -> str | None:
    """A cause if memory ran out, else None; torch's CPU allocator raises a plain RuntimeError for it."""
    exhausted = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
    return "out of memory; lower batch_size, num_negatives, hidden_dim or max_len" if exhausted else None


def _log_to(path: Path) -> None:
    """Redirect standard output and standard error of this process to `path`."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    inbox, seconds = (Path(arguments[1]), float(arguments[2])) if len(arguments) > 1 else (None, 0.0)
    sys.exit(main(Path(arguments[0]), inbox, seconds, key_from_launcher()))
