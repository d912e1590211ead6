"""The Ray launcher, as the server sees it: files in the trial's directory, and one bridge process per session.

The server never connects to Ray, because Ray ends a process that loses its cluster. A bridge (`ray_bridge.py`) does: it
runs on this machine, outlives the server, and keeps the trial's directory up to date. Two files are added:

    ray.json       written by `submit`: the address of the cluster, the name of the trial there, its resources
    placed.json    written by the bridge: the node that runs the trial, since when, and whether the bridge is done

The bridge writes all other files as a local worker would, result.json last, and stop.json if the trial crashed. It
holds a lock for its lifetime; whoever looks at a running trial and finds the lock free starts the next bridge, which
finds the trials of its predecessor by their names.
"""

import contextlib
import hashlib
import importlib.util
import math
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ..data.errors import ConfigError, MachineError, TrialError
from ..data.locks import take_lock
from ..training.environment import holds_secret, worker_environment
from ..training.signature import sign_spec
from ..training.spec import SPEC, TrialSpec, write_model
from .key_pipe import key_pipe
from .launcher import (
    TrialState,
    check_unused,
    progress_of,
    read_stop,
    result_of,
    write_stop,
)
from .lease import WORKER_OPTIONS, adopt_child

RAY, PLACED = "ray.json", "placed.json"
BRIDGE = "virtualmle.trials.ray_bridge"
BRIDGE_LOCK, BRIDGE_LOG = "bridge.lock", "log.txt"
CANCEL_SECONDS = 10.0  # for the bridge to end a trial that is cancelled; it ends it later if the cluster is slow
RESTART_SECONDS = 3.0  # between two starts of a bridge, so that one that cannot live does not fill the machine
POLL_SECONDS = 0.05


class Submission(BaseModel):
    """What the cluster is asked for: the content of ray.json."""

    model_config = ConfigDict(frozen=True)

    address: str
    name: str  # of the detached actor that runs the trial
    num_cpus: int
    gpu: bool | None  # None = if the cluster has any
    shared_files: bool  # whether a node that sees this directory may read datasets and earlier trials in place
    submitted_at: float  # seconds since the epoch


class Placement(BaseModel):
    """Where the trial runs: the content of placed.json; times are those of this machine, in seconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    node: str = ""  # Ray's id of the node; empty = no node has the trial yet
    host: str = ""
    in_place: bool = False  # whether the node reads the files of this machine through a shared file system
    started: float = 0.0
    seconds: float | None = None  # of the trial, once it is over
    released: bool = False  # whether the bridge is done with it


def is_on_ray(directory: Path) -> bool:
    """Whether the trial in `directory` was submitted to a Ray cluster."""
    return (directory / RAY).exists()


def read_submission(directory: Path) -> Submission:
    """What `submit` has written. Raises TrialError if it is missing or damaged."""
    try:
        return Submission.model_validate_json((directory / RAY).read_bytes())
    except (OSError, ValidationError) as error:
        raise TrialError(f"{directory / RAY} cannot be read ({type(error).__name__}); start a new trial") from None


def read_placement(directory: Path) -> Placement | None:
    """Where the trial runs; None if no node has it yet, or if the file is damaged."""
    try:
        return Placement.model_validate_json((directory / PLACED).read_bytes())
    except (OSError, ValidationError):
        return None


def check_ray(address: str, device: str) -> None:
    """Raise ConfigError if Ray is not installed, or if the address or the device does not name what trials can use."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--launcher ray needs Ray, which is not installed: pip install 'virtualmle[ray]'")
    if address == "local":
        raise ConfigError("--address local would start a cluster; give the address of a running one, or leave it out")
    if device.startswith("cuda:"):
        raise ConfigError(f"device={device!r} names a device of one machine; with --launcher ray use cuda, cpu or auto")


@dataclass(frozen=True)
class RayLauncher:
    """Runs trials as tasks of the Ray cluster at `address`, which only `submit` needs.

    shared_files: whether nodes with the same file system read datasets and earlier trials in place; without, and on
    all other nodes, they are sent. key: of the session, as `launch` takes it; it travels through pipes and in the
    calls of the cluster, and no node writes it to its disk.
    """

    address: str = "auto"
    shared_files: bool = True
    key: bytes | None = field(default=None, repr=False)

    def submit(self, spec: TrialSpec, directory: Path) -> None:
        """Hand the trial to the bridge. One thread is used if the spec leaves their number open."""
        check_unused(directory)
        spec = spec.model_copy(update={"threads": max(1, spec.threads)})
        submission = Submission(
            address=self.address,
            name=f"{spec.session}/{spec.trial}/{secrets.token_hex(8)}",
            num_cpus=spec.threads,
            gpu=None if spec.device == "auto" else spec.device.startswith("cuda"),
            shared_files=self.shared_files,
            submitted_at=time.time(),
        )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_model(directory / SPEC, spec)
            if self.key is not None:
                sign_spec(directory, self.key, spec)
            write_model(directory / RAY, submission)
            _ensure_bridge(directory, submission.address, self.key)
        except OSError as error:
            cause = f"the trial could not be handed to Ray ({error.strerror})"
            with contextlib.suppress(OSError):
                write_stop(directory, "crashed", cause, machine_fault=True)
            raise MachineError(f"trial {spec.trial}: {cause}; free disk or memory and retry") from None

    def look(self, directory: Path, *, asked_at: float | None = None) -> TrialState:
        """The state of the trial, from its files; starts a bridge if the trial is running and has none."""
        state = _state(directory)
        if state.status == "running":
            try:
                _ensure_bridge(directory, read_submission(directory).address, self.key)
            except TrialError as error:
                return TrialState(status="crashed", cause=str(error), seconds=state.seconds)
        return state

    def cancel(self, directory: Path) -> TrialState:
        """Ask the bridge to end the trial, and wait for it for up to CANCEL_SECONDS.

        A result that arrives before the bridge reads the request counts, so that the state is final when this returns.
        """
        if self.look(directory).status != "running":
            return _state(directory)
        write_stop(directory, "cancelled", "cancelled on request")
        end = time.monotonic() + CANCEL_SECONDS
        while not _released(directory) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        return _state(directory)


def bridge_directory(session: Path, address: str) -> Path:
    """The directory of the bridge from the session's directory to the cluster at `address`."""
    return session / "ray" / hashlib.blake2b(address.encode(), digest_size=4).hexdigest()


def _state(directory: Path) -> TrialState:
    placement = read_placement(directory)
    seconds = _seconds(placement)
    progress = progress_of(directory)
    try:
        result = result_of(directory)
    except ValueError:
        return TrialState(status="crashed", cause="the trial's result.json is damaged", seconds=seconds)
    if result is not None and result.status != "failed":
        return TrialState(status=result.status, progress=progress, result=result, seconds=seconds)
    if stop := read_stop(directory):
        return TrialState(progress=progress, seconds=seconds, **stop.model_dump(exclude={"at"}))
    if result is not None:
        return TrialState(status="crashed", progress=progress, result=result, seconds=seconds,
                          cause=result.cause or "the worker gave no cause", machine_fault=result.machine_fault)
    return TrialState(status="running", progress=progress, seconds=seconds)


def _seconds(placement: Placement | None) -> float:
    if placement is None or not placement.started:
        return 0.0
    return time.time() - placement.started if placement.seconds is None else placement.seconds


def _released(directory: Path) -> bool:
    placement = read_placement(directory)
    return placement is not None and placement.released


def _ensure_bridge(directory: Path, address: str, key: bytes | None) -> None:
    """Start a bridge for the session of `directory` unless one runs; it inherits the lock from this process."""
    folder = bridge_directory(directory.resolve().parent, address)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / BRIDGE_LOCK).open("a+") as lock:
        if not take_lock(lock.fileno()) or _age(folder / BRIDGE_LOG) < RESTART_SECONDS:
            return
        with (folder / BRIDGE_LOG).open("wb") as log, key_pipe(key) as given:
            child = subprocess.Popen(
                [sys.executable, *WORKER_OPTIONS, BRIDGE, str(folder), address, str(lock.fileno())],
                stdin=given,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=bridge_environment(os.environ),
                cwd=folder,
                pass_fds=(lock.fileno(),),
                start_new_session=True,  # the bridge survives a closed terminal and a killed server
            )
    adopt_child(folder, child)


def bridge_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a bridge: Ray's own variables, and all others except tokens, keys and passwords."""
    passed = {name: value for name, value in environ.items() if name.startswith("RAY_") or not holds_secret(name)}
    return {**passed, **worker_environment(environ)}


def _age(path: Path) -> float:
    """Seconds since `path` was changed; infinity if it does not exist."""
    return time.time() - path.stat().st_mtime if path.exists() else math.inf
