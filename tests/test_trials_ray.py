"""The Ray launcher against a real cluster of two nodes on this machine, which do not use the common file system."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from mcp import Client
from mcp.types import Implementation

from tests.quick_home import quick_home
from tests.waiting import until
from virtualmle.agents.engineer import Engineer
from virtualmle.agents.events import Event, TrialStarted
from virtualmle.agents.loop import run_agent
from virtualmle.data.prepared import ARRAYS, SEALED
from virtualmle.memory.store import Memory
from virtualmle.models.config import make_config
from virtualmle.server.app import build_server
from virtualmle.tools.workspace import Settings
from virtualmle.training.epoch_ranks import write_race
from virtualmle.training.racing import KnownCurve, RaceContext
from virtualmle.training.signature import check_trial, state_is_signed
from virtualmle.training.spec import (
    CHECKPOINT,
    LOG,
    RANKS,
    STATE,
    USERS,
    NamedModel,
    TrialSpec,
    read_result,
    read_spec,
)
from virtualmle.training.state_outline import read_curve
from virtualmle.trials.launcher import TrialState, ask_to_end, poll
from virtualmle.trials.launching import LocalLauncher, launcher_of
from virtualmle.trials.ray_launcher import RayLauncher, is_on_ray, read_placement

from .ray_cluster import add_node, bridges, kill_node, node_id, two_nodes

pytest.importorskip("ray", reason="needs Ray: pip install 'virtualmle[ray]'")

KEY = bytes(range(32))  # of the session
RESULTS = (RANKS, USERS, CHECKPOINT)
LONG = 1000  # epochs: minutes, so that a trial never ends by itself
SLOW = {"batch_size": 8, "hidden_dim": 64, "num_blocks": 3}  # a tenth of a second per epoch


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_dataset_dir: Path) -> Iterator["World"]:
    """A cluster, the directory of a session, and the place where nodes keep their files."""
    root = tmp_path_factory.mktemp("ray")
    (root / "node-files").mkdir()
    with two_nodes(root / "node-files") as cluster:
        yield World(root, cluster, tiny_dataset_dir)
        for pid in bridges(root / "sessions"):
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def trained(world: "World") -> Path:
    """A trial of 12 epochs that the local launcher has run."""
    return world.run_locally(12)


class World:
    """What the tests share."""

    def __init__(self, root: Path, cluster: Any, dataset: Path) -> None:
        self.root = root
        self.cluster = cluster
        self.dataset = dataset
        self.node_files = root / "node-files"
        self.ray = RayLauncher(cluster.address, shared_files=False, key=KEY)
        self.submitted: list[Path] = []
        self._number = 0

    def directory(self) -> Path:
        """The directory of a new trial."""
        self._number += 1
        return self.root / "sessions" / "tiny-sasrec-1" / f"t{self._number:03d}"

    def spec(self, directory: Path, epochs: int, **changes: Any) -> TrialSpec:
        """A trial of a small model."""
        knobs = {**SLOW, "epochs": epochs, "patience": epochs, **changes.pop("knobs", {})}
        config = make_config("sasrec", **knobs)
        return TrialSpec(
            session="tiny-sasrec-1", trial=directory.name, dataset_dir=str(self.dataset), config=config.model_dump(),
            seed=1, threads=1, **{"wall_seconds": 600.0, **changes},
        )  # fmt: skip

    def submit(self, epochs: int, **changes: Any) -> Path:
        """Submit a trial to the cluster."""
        directory = self.directory()
        self.ray.submit(self.spec(directory, epochs, **changes), directory)
        self.submitted.append(directory)
        return directory

    def submit_to_both(self, epochs: int) -> list[Path]:
        """Submit two trials, once both nodes are free, and wait until each node has one."""
        until(lambda: all(place.released for place in map(read_placement, self.submitted) if place))
        trials = [self.submit(epochs), self.submit(epochs)]
        until(lambda: all(map(read_placement, trials)))
        assert len({node_of(self, directory).node_id for directory in trials}) == 2
        return trials

    def run_locally(self, epochs: int, **changes: Any) -> Path:
        """Run a trial to its end in a process of this machine."""
        directory = self.directory()
        LocalLauncher(key=KEY).submit(self.spec(directory, epochs, **changes), directory)
        until(lambda: poll(directory).status != "running")
        return directory


def look(directory: Path) -> TrialState:
    """What a restarted server would see."""
    return launcher_of(directory, KEY).look(directory)


def settle(directory: Path) -> TrialState:
    until(lambda: look(directory).status != "running")
    return look(directory)


def has_trained(directory: Path, epochs: int = 2) -> bool:
    state = look(directory)
    assert state.status == "running", state.cause
    return state.progress.epoch >= epochs


def same_results(one: Path, other: Path) -> bool:
    """Whether two trials have written equal bytes, and equal curves apart from the seconds."""
    curves = [[(r.epoch, r.loss, r.ndcg10) for r in read_result(d).curve] for d in (one, other)]  # type: ignore[union-attr]
    return curves[0] == curves[1] and all((one / n).read_bytes() == (other / n).read_bytes() for n in RESULTS)


def workers(directory: Path) -> list[psutil.Process]:
    """The worker processes of a trial on any node."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if "bound_worker" in command and f"-{directory.name}-" in command:
            found.append(process)
    return found


def node_of(world: World, directory: Path) -> Any:
    """The node on which a trial runs."""
    placement = read_placement(directory)
    assert placement is not None
    return next(node for node in world.cluster.list_all_nodes() if node_id(node) == placement.node)


def test_trials_on_two_nodes_equal_local_ones_and_see_nothing_but_train_and_validation_events(
    world: World, trained: Path
) -> None:
    trials = world.submit_to_both(12)
    until(lambda: any(look(directory).progress.epoch for directory in trials))  # one may end before the other begins
    assert not any(place.in_place for place in map(read_placement, trials) if place)

    seen = [path for path in world.node_files.rglob("*") if path.is_file()]
    data = {path.name for path in seen if "data" in path.parts}
    assert data == {"manifest.json", *(f"{name}.npy" for name in ARRAYS)} and (world.dataset / SEALED).exists()
    secret = (world.dataset / SEALED).read_bytes()
    for path in seen:
        if path.exists() and not path.name.startswith("."):
            content = path.read_bytes()
            assert secret not in content and str(world.dataset).encode() not in content, path
            assert KEY not in content and KEY.hex().encode() not in content, path

    states = [settle(directory) for directory in trials]
    assert [state.status for state in states] == ["finished", "finished"]
    assert all(0 < state.seconds < 600 for state in states)
    for directory in trials:
        assert same_results(directory, trained)
        check_trial(directory, KEY, "tiny-sasrec-1", directory.name, names=(CHECKPOINT, RANKS))
        assert state_is_signed(directory / STATE, KEY, "tiny-sasrec-1")
        assert (directory / LOG).read_text().startswith("epoch 1/12") and "finished" in (directory / LOG).read_text()
        assert (directory / STATE).exists() == (trained / STATE).exists()
    until(lambda: all(place is not None and place.released for place in map(read_placement, trials)))
    assert not list(world.node_files.glob("*/*/trials/*")), "a node keeps the files of a trial that is over"


def test_a_trial_outlives_its_bridge_and_is_cancelled_with_all_its_processes(world: World) -> None:
    directory = world.submit(LONG)
    until(lambda: has_trained(directory))
    (worker,) = workers(directory)
    (bridge,) = bridges(world.root / "sessions")
    os.kill(bridge, signal.SIGKILL)
    epoch = look(directory).progress.epoch
    until(lambda: has_trained(directory, epoch + 5))
    assert workers(directory) == [worker]
    assert bridges(world.root / "sessions") != [bridge]
    assert launcher_of(directory, KEY).cancel(directory).status == "cancelled"
    assert look(directory).status == "cancelled" and look(directory).seconds > 0
    assert not workers(directory)
    log = (directory / LOG).read_text().splitlines()
    assert log == sorted(set(log), key=log.index), "the second bridge has copied a part of the log twice"


def test_a_trial_that_is_asked_to_end_finishes_on_its_node_with_its_best_weights(world: World) -> None:
    directory = world.submit(LONG)
    until(lambda: has_trained(directory))
    (bridge,) = bridges(world.root / "sessions")
    os.kill(bridge, signal.SIGKILL)  # the next one finds the request
    ask_to_end(directory)
    state = settle(directory)
    assert state.status == "finished" and state.result and state.result.ended_after
    assert 2 <= state.result.ended_after < LONG and (directory / CHECKPOINT).exists()
    check_trial(directory, KEY, "tiny-sasrec-1", directory.name, names=RESULTS)


def test_a_time_limit_and_a_race_end_trials_on_a_node(world: World) -> None:
    directory = world.directory()
    users = len(np.load(world.dataset / "valid_items.npy"))
    perfect = KnownCurve(
        source="t001", epochs=[*range(1, LONG + 1)], ndcg10=[1.0] * LONG, progress=[*range(1, LONG + 1)], final=1.0,
        max_epochs=LONG,
    )  # fmt: skip
    context = RaceContext(
        incumbent="t001", incumbent_curve=perfect, incumbent_parameters=1, keep_z=2.0, family="sasrec",
        curves=[perfect], progress=perfect.progress,
    )  # fmt: skip
    directory.mkdir(parents=True)
    write_race(directory, context, np.ones((LONG, users), np.uint8))
    world.ray.submit(world.spec(directory, LONG), directory)
    world.submitted.append(directory)
    limited = world.submit(LONG, wall_seconds=1.0)
    state = settle(directory)
    assert state.status == "stopped" and state.result is not None and state.result.stopped is not None
    assert (directory / STATE).exists()  # from which it can continue
    state = settle(limited)
    assert state.status == "crashed" and "wall-clock limit of 1 s" in (state.cause or "")
    assert not state.machine_fault


def test_a_trial_is_scored_again_on_a_node_that_is_sent_its_files_or_that_shares_them(
    world: World, trained: Path
) -> None:
    changes = {"rescore_from": str(trained), "knobs": {"transition_weight": 4.0}}
    sent, shared = world.submit(12, **changes), world.directory()
    RayLauncher(world.cluster.address, key=KEY).submit(world.spec(shared, 12, **changes), shared)
    local = world.run_locally(12, **changes)
    for directory, in_place in ((sent, False), (shared, True)):
        assert settle(directory).status == "finished", look(directory).cause
        placement = read_placement(directory)
        assert placement is not None and placement.in_place == in_place
        assert same_results(directory, local)


def test_the_members_of_an_ensemble_are_sent_to_the_node_that_scores_it(world: World, trained: Path) -> None:
    found = read_result(trained)
    assert found is not None
    members = [NamedModel(name=name, directory=str(trained), files=found.files) for name in ("t001", "t002")]
    changes = {"members": members, "knobs": {"ensemble": ["t002", "t001"], "transition_weight": 4.0}}
    sent, local = world.submit(12, **changes), world.run_locally(12, **changes)
    assert settle(sent).status == "finished", look(sent).cause
    placement = read_placement(sent)
    assert placement is not None and not placement.in_place
    assert (sent / RANKS).read_bytes() == (local / RANKS).read_bytes()
    assert not (sent / CHECKPOINT).exists()


def test_the_teachers_of_a_student_are_sent_to_the_node_that_trains_it(world: World, trained: Path) -> None:
    found = read_result(trained)
    assert found is not None
    teachers = [NamedModel(name=name, directory=str(trained), files=found.files) for name in ("t001", "t002")]
    taught = {"loss": "full_softmax", "teachers": ["t002", "t001"]}
    sent = world.submit(2, teachers=teachers, knobs=taught)
    assert settle(sent).status == "finished", look(sent).cause
    placement = read_placement(sent)
    assert placement is not None and not placement.in_place
    assert read_spec(sent).teachers == teachers, "the directories of the node stay there"
    assert same_results(sent, world.run_locally(2, teachers=teachers, knobs=taught))


def test_a_trial_whose_node_is_killed_is_a_lost_one_and_continues_bit_for_bit_on_the_other(world: World) -> None:
    trials = world.submit_to_both(LONG)
    survivor, victim = sorted(trials, key=lambda each: node_of(world, each) != world.cluster.head_node)
    until(lambda: has_trained(victim, 4) and (victim / STATE).exists())
    kill_node(world.cluster, node_of(world, victim))
    state = settle(victim)
    assert (state.status, state.machine_fault, state.lost) == ("crashed", True, True)
    assert "was lost while it ran the trial" in (state.cause or "")
    until(lambda: not workers(victim))
    assert look(survivor).status == "running"
    assert launcher_of(survivor, KEY).cancel(survivor).status == "cancelled"
    epochs = read_curve(victim / STATE)[-1][0] + 4
    repeated = world.submit(epochs, resume_from=str(victim))
    assert settle(repeated).status == "finished", look(repeated).cause
    assert not (repeated / LOG).read_text().startswith("epoch 1/"), "it has started again from scratch"
    assert same_results(repeated, world.run_locally(epochs))


def test_a_restarted_server_is_told_that_a_trial_is_gone(world: World) -> None:
    node = next(iter(world.cluster.worker_nodes), None) or add_node(world.cluster)
    trials = world.submit_to_both(LONG)
    survivor, victim = sorted(trials, key=lambda each: node_of(world, each) == node)
    until(lambda: has_trained(victim))
    for pid in bridges(world.root / "sessions"):
        os.kill(pid, signal.SIGKILL)
    kill_node(world.cluster, node)
    state = settle(victim)
    assert (state.status, state.machine_fault, state.lost) == ("crashed", True, True)
    assert look(survivor).status == "running"
    assert launcher_of(survivor, KEY).cancel(survivor).status == "cancelled"


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_session_on_ray_runs_a_lost_trial_again_and_ends_with_a_look_at_the_test_set(
    world: World, tmp_path: Path
) -> None:
    home = quick_home(tmp_path / "home")
    page = (home / "SANDBOX.md").read_text().replace("`epochs` | 1 … 1 | 1 | 1 |", "`epochs` | 1 … 24 | 24 | 24 |")
    (home / "SANDBOX.md").write_text(page.replace("256 … 512 | 512 | 512 |", "64 … 512 | 64 | 64 |"))
    killed: list[str] = []

    def kill_first(event: Event) -> None:
        if isinstance(event, TrialStarted) and not killed:
            killed.append(event.trial)
            until(lambda: bool(workers(sessions / event.trial)))
            (worker,) = workers(sessions / event.trial)
            os.kill(worker.ppid(), signal.SIGKILL)  # the trial's actor

    sessions = home / ".virtualmle" / "sessions" / "demo-sasrec-1"
    server = build_server(home, Settings(ray_address=world.cluster.address, threads=1))
    async with Client(server, client_info=Implementation(name="virtualmle-engineer", version="1")) as client:
        result = await run_agent(client, Engineer(5), "demo", "sasrec", on_event=kill_first)
    os.kill(bridges(sessions.parent)[0], signal.SIGKILL)
    assert (result.state, killed) == ("revealed", ["t001"])
    with Memory(home / "memory.db") as memory:
        lost, again, other = memory.trials.all(result.session)
    assert (lost.status, lost.machine_fault) == ("crashed", True) and not workers(sessions / "t001")
    assert (again.status, again.config, other.status) == ("finished", lost.config, "finished")
    assert read_spec(sessions / "t002").threads == 1 and is_on_ray(sessions / "t003")


def test_a_cluster_that_does_not_answer_is_a_fault_of_the_machine(world: World) -> None:
    directory = world.directory()
    RayLauncher("127.0.0.1:1").submit(world.spec(directory, 1), directory)
    state = settle(directory)
    assert (state.status, state.machine_fault, state.lost) == ("crashed", True, False)
    assert "the Ray cluster at 127.0.0.1:1 cannot be reached: nothing answers there" in (state.cause or "")
