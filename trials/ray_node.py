"""A trial on a node of a Ray cluster: the actor that holds the trial's resources, and what it and the bridge exchange.

The actor runs the same worker as the local launcher does, in directories of its own on the node:

    TEMPORARY/virtualmle-ray-UID/NODE/data/DATASET/    train and validation arrays, kept for later trials
    TEMPORARY/virtualmle-ray-UID/NODE/trials/NAME/     the files of the trial; deleted when it is over

The bridge sends nothing but the arrays, the spec, the trial's inputs and the files of an earlier trial. The sealed test
split, its key and the vault are not among them. Ray itself is imported only inside a Ray process.
"""

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import psutil

from ..data.atomic import write_bytes
from ..data.errors import MachineError
from ..training.bound_worker import PARENT
from ..training.signature import SPEC_SIGNATURE, STATE_SIGNATURE
from ..training.spec import END, LOG, SPEC, STATE, TrialSpec, engine_version, write_model
from ..training.trial_lock import LOCK
from .launcher import INPUTS, STOP, TrialState, ask_to_end, cancel, launch, poll
from .lease import LEASE, Lease, is_held, lease_of

WORKER = "virtualmle.training.bound_worker"
KEPT_HERE = {SPEC, SPEC_SIGNATURE, LEASE, LOCK, STOP, END, LOG, *INPUTS}
"""What does not return as a file: this machine's own files, what came from the head, and the log, sent in pieces."""

WITH_STATE = {STATE, STATE_SIGNATURE}  # a signature that is one state newer still covers the state

UNUSED_SECONDS = 14 * 24 * 3600.0  # since the last trial of a node, after which its datasets are deleted

Mark = tuple[int, int]  # modification time in nanoseconds, and size, of a file
Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Question:
    """What the bridge wants to know of a node."""

    witness: str  # path of a file on the head; empty = the node shall not read the head's files in place
    content: bytes  # of that file
    dataset_id: str
    sizes: Mapping[str, int]  # of the dataset's files


@dataclass(frozen=True)
class Place:
    """What an actor says of its node."""

    node: str  # Ray's id of the node
    host: str
    engine: str
    in_place: bool  # the node reads the head's files through a shared file system
    has_dataset: bool  # an earlier trial has left the dataset here


@dataclass(frozen=True)
class Look:
    """The state of a trial on its node, and what has changed since the last look."""

    state: TrialState
    log: bytes  # what was added
    marks: Mapping[str, Mark]  # of the files that go back to the head
    files: Files  # those of them that have changed


class TrialOnNode:
    """The actor of one trial. Every call may be repeated, because a bridge may die before it reads the answer."""

    def __init__(self, name: str) -> None:
        self._node = _node_directory()
        self._own = self._node / "trials" / name.replace("/", "-")
        self._trial = self._own / "trial"
        os.environ[PARENT] = str(os.getpid())

    def place(self, question: Question) -> Place:
        """Where this actor runs, and what need not be sent to it."""
        witness = Path(question.witness or os.devnull)
        data = self._data(question.dataset_id)
        return Place(
            node=_node_id(),
            host=socket.gethostname(),
            engine=engine_version(),
            in_place=witness.is_file() and witness.read_bytes() == question.content,
            has_dataset=all(_size(data / name) == size for name, size in question.sizes.items()),
        )

    def start(
        self,
        spec: TrialSpec,
        inputs: Files,
        dataset_id: str,
        dataset: Mapping[str, npt.NDArray[Any]] | None,
        source: Files | None,
        models: Sequence[Files] = (),
        key: bytes | None = None,
    ) -> None:
        """Start the trial, unless it was started already.

        dataset_id: empty if the trial reads the head's files in place. dataset: the bytes of the dataset's files, None
        if this node has them. source: the files of the trial that `spec` re-scores or resumes.
        models: those of each member of an ensemble, or of each teacher. key: of the session; it stays in the memory of
        this process and of the worker's.
        """
        if (self._trial / SPEC).exists():
            return
        _prune(self._node)
        if dataset is not None:
            _store(self._data(dataset_id), {name: content.tobytes() for name, content in dataset.items()})
        if source is not None:
            _store(self._own / "source", source)
        for number, files in enumerate(models):
            _store(self._model(number), files)
        _store(self._trial, inputs)
        write_model(self._own / LEASE, lease_of(psutil.Process(), spec.wall_seconds))
        launch(self._localised(spec, dataset_id), self._trial, module=WORKER, key=key)

    def look(self, known: Mapping[str, Mark], log_offset: int, with_state: bool) -> Look:
        """The state of the trial, the files that differ from `known`, and the log from `log_offset` on.

        with_state: whether the training state, the one large file of a running trial, is wanted now. Of a trial that is
        over, all files are.
        """
        state = poll(self._trial)  # before the files, so that those of a trial that is over are complete
        log = (_read(self._trial / LOG) or b"")[log_offset:]
        marks = {path.name: _mark(path) for path in _files(self._trial) if path.name not in KEPT_HERE}
        over = state.status != "running"
        changed = [name for name in marks if marks[name] != known.get(name)]
        wanted = [name for name in changed if over or with_state or name not in WITH_STATE]
        wanted.sort(key=lambda name: name != STATE)  # first, so that the files written before it are not older
        found = {name: _read(self._trial / name) for name in wanted}
        return Look(state, log, marks, {name: content for name, content in found.items() if content is not None})

    def end_early(self) -> None:
        """Ask the worker to end its training with its best weights."""
        ask_to_end(self._trial)

    def stop(self) -> None:
        """End the worker if it still runs, and delete the trial's files on this node."""
        if self._trial.is_dir():
            cancel(self._trial)
        shutil.rmtree(self._own, ignore_errors=True)

    def _localised(self, spec: TrialSpec, dataset_id: str) -> TrialSpec:
        """The spec with the directories of this node."""
        if not dataset_id:
            return spec
        source = str(self._own / "source")
        changes = {name: source for name in ("rescore_from", "resume_from") if getattr(spec, name)}
        named = [*spec.members, *spec.teachers]
        here = [model.model_copy(update={"directory": str(self._model(n))}) for n, model in enumerate(named)]
        split = len(spec.members)
        models = {"members": here[:split], "teachers": here[split:]}
        return spec.model_copy(update={"dataset_dir": str(self._data(dataset_id)), **models, **changes})

    def _model(self, number: int) -> Path:
        return self._own / f"model-{number}"

    def _data(self, dataset_id: str) -> Path:
        return self._node / "data" / dataset_id


def _node_id() -> str:
    import ray  # noqa: PLC0415 - optional, and this runs in a Ray process only

    return str(ray.get_runtime_context().get_node_id())


def _node_directory() -> Path:
    """The directory of this node; two nodes on one machine have two. Raises MachineError if another user made it."""
    root = Path(tempfile.gettempdir()) / f"virtualmle-ray-{os.getuid()}"
    root.mkdir(exist_ok=True, mode=0o700)
    if root.stat().st_uid != os.getuid():
        raise MachineError(f"{root} on {socket.gethostname()} belongs to another user; remove it")
    return root / _node_id()[:16]


def _store(directory: Path, files: Files) -> None:
    """Write `files` to `directory`. Several trials may store the same dataset at once, so each file is replaced."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, content in files.items():
        write_bytes(directory / name, content)


def _prune(node: Path) -> None:
    """Delete the files of trials whose actor was killed, and what the nodes of earlier clusters have left."""
    node.mkdir(parents=True, exist_ok=True)
    os.utime(node)
    for other in node.parent.iterdir():
        if other.stat().st_mtime < time.time() - UNUSED_SECONDS:
            shutil.rmtree(other, ignore_errors=True)
    for own in (node / "trials").glob("*"):
        try:
            lease = Lease.model_validate_json((own / LEASE).read_bytes())
        except (OSError, ValueError):  # it is being written, or deleted
            continue
        if not is_held(lease):
            shutil.rmtree(own, ignore_errors=True)


def _files(directory: Path) -> list[Path]:
    """The files of a trial without the temporary ones of atomic writes."""
    return [path for path in directory.iterdir() if path.is_file() and not path.name.startswith(".")]


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # the worker has just deleted it
        return None


def _mark(path: Path) -> Mark:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, -1)
    return (status.st_mtime_ns, status.st_size)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
