"""The process that runs trials: `python -P -m virtualmle.training.worker DIRECTORY [INBOX SECONDS]`.

The files are those of `spec.py`; `pipeline.py` is what a trial does. Whatever happens short of a kill, the directory
ends with one result.json: finished, or failed with a sentence that says why. SIGTERM ends the process at once and
leaves none.

With an inbox the process stays for SECONDS after a trial that finished, torch and the dataset loaded, and takes the
next trial that is offered there (`inbox.py`). It leaves after a failure, and when the inbox is gone.
"""

import gc
import os

# Read when torch loads OpenMP. Threads that spin at every barrier make an epoch seven times slower on a machine whose
# other core is busy; threads that sleep cost nothing measurable on an idle one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import errno
import signal
import sys
import threading
import traceback
from pathlib import Path

import torch

from ..data.errors import MachineError, VirtualMLEError
from .inbox import take_order
from .pipeline import run
from .spec import LOG, RESULT, read_spec
from .trial import Trial

MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)
"""Errors of the system that every trial here would meet: no disk space, a read-only or failing disk, no files left."""


def main(directory: Path, inbox: Path | None = None, seconds: float = 0.0) -> int:
    """Run the trial in `directory`, then those that come into `inbox`; exit status 0 if the last one finished."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the parent had set: a cancelled trial is gone at once
    if (directory / RESULT).exists():
        sys.exit(f"{str(directory)!r} has a {RESULT} already; start a new trial")
    while _run_one(directory):
        gc.collect()
        following = take_order(inbox, seconds) if inbox else None
        if following is None:
            return 0
        directory = following
        _log_to(directory / LOG)
    return 1


def _run_one(directory: Path) -> bool:
    """Run the trial in `directory`; whether it finished."""
    trial = Trial(directory)
    cause, machine_fault = None, False
    try:
        spec = read_spec(directory)
        trial.limit(spec.wall_seconds)
        run(trial, spec)
    except VirtualMLEError as error:
        cause, machine_fault = str(error), isinstance(error, MachineError)
    except Exception as error:  # the outermost handler: the traceback goes to the log, the sentence to the agent
        traceback.print_exc()
        machine_fault = isinstance(error, OSError) and error.errno in MACHINE_ERRORS
        kind = "the machine failed" if machine_fault else "internal error"
        cause = _memory_cause(error) or f"{kind}: {type(error).__name__}: {error}"
    if not trial.finish(cause, machine_fault=machine_fault):
        threading.Event().wait(60)  # the watchdog is writing the result, and then ends the process
    return cause is None


def _memory_cause(error: Exception) -> str | None:
    """A sentence if `error` says that memory ran out; torch's CPU allocator says it by a bare RuntimeError."""
    exhausted = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
    return "out of memory; lower batch_size, num_negatives, hidden_dim or max_len" if exhausted else None


def _log_to(path: Path) -> None:
    """Send what this process prints to another file from now on."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main(Path(given[0]), *((Path(given[1]), float(given[2])) if len(given) > 1 else ())))
