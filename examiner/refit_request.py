"""Requests for a refit: the interface between the command `export --refit` and the process that trains on test events.

Does not import torch. The process (`refit.py`) gets the request on its standard input, reports progress on its standard
output, and writes the export only after this module has told it to, with the sessions that are open at that moment. If
the command is killed, the process therefore ends without an export.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict

from ..data.errors import SealError
from ..training.environment import worker_environment

MODULE = "virtualmle.examiner.refit"
END_SECONDS = 20.0  # that an interrupted process has to delete its temporary files


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OpenSession(_Message):
    """A session whose test set nobody may know anything of yet."""

    session: str
    dataset_dir: str


class MemberToRefit(_Message):
    """The directory of a finished trial, and the name that the export gives to its model."""

    name: str  # SESSION/HANDLE
    directory: str


class RefitRequest(_Message):
    """What to train, and where to write it."""

    home: str
    session: str
    dataset_dir: str
    members: list[MemberToRefit]
    scoring: dict[str, Any]  # the complete configuration of the exported trial
    card: str
    destination: str
    overwrite: bool
    device: str  # as in a trial's specification
    threads: int
    key_file: str | None = None  # with the private key, in operator mode
    umask: int | None = None  # that of the user, for the export


class Publish(_Message):
    """The permission to write the export."""

    open_sessions: list[OpenSession]


class RefitProgress(_Message):
    """A line of the process: training, waiting for the permission to write, written, or refused."""

    stage: Literal["training", "trained", "written", "error"]
    done: int = 0  # epochs, of all members together
    total: int = 0
    error: str = ""


def refit(
    request: RefitRequest,
    open_sessions: Callable[[], list[OpenSession]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Train on all events and write the export; `progress(done, total)` is called with epochs.

    `open_sessions` is called before the seal is opened and again before the export is written. Raises SealError if one
    of them has a test event among the events of this dataset, or if the process fails; nothing is written then. An
    interruption ends the process and writes nothing.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=request.home,
        env=worker_environment(os.environ),
        start_new_session=os.name == "posix",
    )
    errors: deque[str] = deque(maxlen=1)  # in memory, because a message could hold an event
    assert process.stderr is not None
    drain = threading.Thread(target=errors.extend, args=(process.stderr,), daemon=True)
    drain.start()
    with process:
        try:
            is_written = _converse(process, request, open_sessions, progress)
        finally:
            _end(process)
            drain.join()
    if not is_written:
        raise SealError(
            f"the refit ended with code {process.returncode} ({''.join(errors).strip() or 'no message'}) and wrote "
            "nothing; the session is unchanged, so call export --refit again"
        )


def _converse(
    process: subprocess.Popen[str],
    request: RefitRequest,
    open_sessions: Callable[[], list[OpenSession]],
    progress: Callable[[int, int], None],
) -> bool:
    """Send the request and the permissions, and follow the process to its end; returns whether it has written."""
    assert process.stdin is not None
    assert process.stdout is not None
    _send(process.stdin, request)
    _send(process.stdin, Publish(open_sessions=open_sessions()))
    stage = ""
    for line in _lines(process.stdout):
        stage = line.stage
        if stage == "error":
            raise SealError(line.error)
        if stage == "training":
            progress(line.done, line.total)
        if stage == "trained":
            _send(process.stdin, Publish(open_sessions=open_sessions()))
    return stage == "written"


def _send(pipe: IO[str], message: BaseModel) -> None:
    with contextlib.suppress(BrokenPipeError):  # the process has ended: its output says why
        pipe.write(message.model_dump_json() + "\n")
        pipe.flush()


def _lines(pipe: IO[str]) -> Iterator[RefitProgress]:
    """The messages of the process; other output, e.g. a library's warning, is passed over."""
    for line in pipe:
        with contextlib.suppress(ValueError):
            yield RefitProgress(**json.loads(line))


def _end(process: subprocess.Popen[str]) -> None:
    """End the process if it still runs: first by asking, so that it deletes its temporary files."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
