"""What the bridge does for one trial, in a thread: place it, start it, copy what changes, and release the node."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data.atomic import write_bytes
from ..data.errors import VirtualMLEError
from ..training.signature import SPEC_SIGNATURE, check_spec
from ..training.spec import END, LOG, PROGRESS, RESULT, STATE, engine_version, read_spec, write_model
from ..training.trial_lock import LOCK
from .launcher import INPUTS, STOP, write_stop
from .lease import LEASE
from .ray_data import Datasets, dataset_id_in, sizes_to_send
from .ray_launcher import PLACED, RAY, Placement, read_placement, read_submission
from .ray_node import Look, Mark, Place, Question, TrialOnNode

LOOK_SECONDS = 0.25  # between two looks at a running trial
STATE_SHARE = 0.05  # of a trial's time, in which its training state may travel; the first one travels at once
PLACE_SECONDS = 120.0  # for the cluster to get a node that is large enough, before the trial counts as impossible
DEATH_SECONDS = 20.0  # from the death of an actor until the cluster knows whether its node has died, too
STOP_SECONDS = 15.0  # for a node to end a worker and delete its files, before its actor is killed
MESSAGE_CHARACTERS = 300  # of what Ray says
RETRY_SECONDS = 1.0  # after a call to a node that does not answer for a moment
NOT_SENT = {LEASE, LOCK, STOP, END, LOG, PROGRESS, RAY, PLACED, SPEC_SIGNATURE, *INPUTS}
"""Files of an earlier trial that no worker reads."""


class Crash(Exception):
    """The trial ends as a crash, with this cause; lost: it can run again on another node."""

    def __init__(self, cause: str, *, lost: bool = False, machine_fault: bool = True) -> None:
        super().__init__(cause)
        self.lost = lost
        self.machine_fault = machine_fault


class Cancelled(Exception):
    """Somebody has written stop.json."""


class Attendant:
    """Attends to the trial in `directory`, whose actor an earlier bridge may have started."""

    def __init__(self, ray: Any, directory: Path, datasets: Datasets, key: bytes | None = None) -> None:
        self._ray = ray
        self._key = key
        self._directory = directory
        self._datasets = datasets
        self._spec = read_spec(directory)
        self._dataset = Path(self._spec.dataset_dir)
        self._submission = read_submission(directory)
        self._placement = read_placement(directory) or Placement()
        self._marks: dict[str, Mark] = {}
        self._state_due = 0.0
        self._actor: Any = None
        self._end_passed_on = False

    def attend(self) -> None:
        """Run the trial to its end, and then release its node. Raises whatever the connection to the cluster raises."""
        try:
            self._run()
        except Crash as crash:
            self._crash(crash)
        except (OSError, VirtualMLEError) as error:  # files of this machine
            self._crash(Crash(str(error)))
        except Cancelled:
            pass
        self._release()

    def _run(self) -> None:
        if (self._directory / RESULT).exists():  # the bridge that has written it died before the release
            self._actor = self._existing_actor()
            return
        self._actor = self._existing_actor() or self._new_actor()
        if not self._placement.started:
            self._start(self._ask(lambda: self._actor.place.remote(self._question())))
        while self._copy_changes():
            time.sleep(LOOK_SECONDS)

    def _existing_actor(self) -> Any:
        try:
            return self._ray.get_actor(self._submission.name)
        except ValueError:  # there is none of this name
            return None

    def _new_actor(self) -> Any:
        if self._placement.node:
            raise Crash(
                f"the Ray cluster at {self._submission.address} no longer knows the trial, which ran on "
                f"{self._placement.host}: the node or the whole cluster was stopped",
                lost=True,
            )
        if (self._directory / STOP).exists():
            raise Cancelled
        name = self._submission.name
        actor = self._ray.remote(TrialOnNode).options(
            name=name,
            get_if_exists=True,  # it exists if an earlier bridge has created it
            lifetime="detached",  # it outlives the bridge
            num_cpus=self._submission.num_cpus,
            num_gpus=self._num_gpus(),
            max_restarts=0,  # a restarted actor would know nothing of the trial
            scheduling_strategy="SPREAD",
        )
        return actor.remote(name)

    def _num_gpus(self) -> int:
        if self._submission.gpu is None:
            return int(self._ray.cluster_resources().get("GPU", 0) >= 1)
        return int(self._submission.gpu)

    def _question(self) -> Question:
        witness = self._directory / RAY
        path = str(witness) if self._submission.shared_files else ""
        return Question(path, witness.read_bytes(), dataset_id_in(self._dataset), sizes_to_send(self._dataset))

    def _start(self, place: Place) -> None:
        """Send what the node lacks, and start the trial there."""
        self._placement = Placement(node=place.node, host=place.host, in_place=place.in_place)
        if place.engine != engine_version():
            raise Crash(f"{place.host} has {place.engine}, and this machine {engine_version()}: install equal versions")
        dataset_id = "" if place.in_place else dataset_id_in(self._dataset)
        lacking = not place.in_place and not place.has_dataset
        sent = self._datasets.reference(self._dataset, dataset_id) if lacking else None
        source = None if place.in_place else self._source()
        models = [] if place.in_place else self._models()
        if self._key is not None:
            check_spec(self._directory, self._key, self._spec)
        inputs = {path.name: path.read_bytes() for path in self._directory.iterdir() if path.name in INPUTS}
        self._write_placement()
        self._ask(lambda: self._actor.start.remote(self._spec, inputs, dataset_id, sent, source, models, self._key))
        self._write_placement(started=time.time())

    def _source(self) -> dict[str, bytes] | None:
        """The files of the trial that this one re-scores or resumes."""
        earlier = self._spec.rescore_from or self._spec.resume_from
        if not earlier:
            return None
        files = [path for path in Path(earlier).iterdir() if path.is_file() and not path.name.startswith(".")]
        return {path.name: path.read_bytes() for path in files if path.name not in NOT_SENT}

    def _models(self) -> list[dict[str, bytes]]:
        """The files of each member of an ensemble, or of each teacher, that the worker reads."""
        found = []
        for model in (*self._spec.members, *self._spec.teachers):
            paths = [Path(model.directory) / name for name in model.files]
            found.append({path.name: path.read_bytes() for path in paths if path.exists()})
        return found

    def _copy_changes(self) -> bool:
        """Bring the trial's directory up to date, its result last; returns whether the trial goes on."""
        self._pass_on_end()
        log, asked = self._directory / LOG, time.monotonic()
        offset = log.stat().st_size if log.exists() else 0
        look: Look = self._ask(lambda: self._actor.look.remote(self._marks, offset, asked >= self._state_due))
        with log.open("ab") as file:
            file.write(look.log)
        for name in look.files.keys() - {RESULT}:
            write_bytes(self._directory / name, look.files[name])
        self._marks |= {name: look.marks[name] for name in look.files}
        if STATE in look.files:
            self._state_due = time.monotonic() + (time.monotonic() - asked) / STATE_SHARE
        if look.state.status == "running":
            return True
        if STATE not in look.marks:
            (self._directory / STATE).unlink(missing_ok=True)
        self._write_placement(seconds=look.state.seconds)
        if RESULT not in look.files:
            raise Crash(look.state.cause or "the trial left no result", machine_fault=look.state.machine_fault)
        if not (self._directory / STOP).exists():
            write_bytes(self._directory / RESULT, look.files[RESULT])
        return False

    def _pass_on_end(self) -> None:
        """Tell the node once that the trial is to end with its best weights, if somebody has asked for it."""
        if not self._end_passed_on and (self._directory / END).exists():
            self._ask(self._actor.end_early.remote)
            self._end_passed_on = True

    def _ask(self, request: Callable[[], Any]) -> Any:
        """The answer of the actor. Raises Crash if there will be none, and Cancelled if it is no longer wanted."""
        errors, asked = self._ray.exceptions, time.monotonic()
        call = request()
        while True:
            if (self._directory / STOP).exists():
                raise Cancelled
            if not self._ray.wait([call], timeout=LOOK_SECONDS)[0]:
                self._check_resources(time.monotonic() - asked)
                continue
            try:
                return self._ray.get(call)
            except errors.ActorUnavailableError:
                time.sleep(RETRY_SECONDS)
                call = request()
            except errors.RayActorError as error:
                raise self._death(" ".join(str(error).split())) from None
            except errors.RayTaskError as error:
                raise Crash(f"{self._placement.host or 'a node'} could not run the trial: {error.cause!r}") from None

    def _check_resources(self, waited: float) -> None:
        """Raise Crash if no node is large enough for a trial that has waited for one for long."""
        if self._placement.node or waited < PLACE_SECONDS:
            return
        cpus, gpus = self._submission.num_cpus, self._num_gpus()
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            raise Crash(
                f"no node of the Ray cluster at {self._submission.address} has {cpus} CPUs and {gpus} GPUs; "
                "start one, or choose --threads and --device that fit"
            )

    def _death(self, message: str) -> Crash:
        """Why the actor died: of its node, of memory, or by itself, as far as the cluster knows after a while."""
        host, end = self._placement.host or "a node", time.monotonic() + DEATH_SECONDS
        while "out of memory" not in message.replace("_", " ").lower():
            if "node has died" in message or self._node_is_dead():
                return Crash(f"the node {host} was lost while it ran the trial", lost=True)
            if time.monotonic() > end:
                return Crash(f"the trial's process in Ray died on {host}: {message[:MESSAGE_CHARACTERS]}", lost=True)
            time.sleep(LOOK_SECONDS)
        return Crash(f"{host} ran out of memory; lower batch_size, num_negatives, hidden_dim or max_len",
                     machine_fault=False)  # fmt: skip

    def _node_is_dead(self) -> bool:
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        return bool(self._placement.node) and self._placement.node not in alive

    def _crash(self, crash: Crash) -> None:
        if not any((self._directory / name).exists() for name in (STOP, RESULT)):
            write_stop(self._directory, "crashed", str(crash), machine_fault=crash.machine_fault, lost=crash.lost)

    def _release(self) -> None:
        """End the worker if it still runs, delete the trial's files on the node, and give its resources back."""
        if self._actor is not None:
            if self._placement.node:
                self._ray.wait([self._actor.stop.remote()], timeout=STOP_SECONDS)
            self._ray.kill(self._actor)
        started = self._placement.started
        seconds = self._placement.seconds
        self._write_placement(
            seconds=seconds if seconds is not None else time.time() - started if started else 0.0, released=True
        )

    def _write_placement(self, **changes: Any) -> None:
        self._placement = self._placement.model_copy(update=changes)
        write_model(self._directory / PLACED, self._placement)
