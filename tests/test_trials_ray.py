"""The Ray launcher against a real cluster of two nodes on this machine, which do not use the common file system."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.waiting import until
from virtualmle.data.prepared import ARRAYS, SEALED
from virtualmle.models.config import make_config
from virtualmle.training.spec import CHECKPOINT, LOG, RANKS, RESULT, STATE, USERS, TrialSpec, read_result
from virtualmle.trials.launcher import TrialState, poll
from virtualmle.trials.launching import LocalLauncher, launcher_of
from virtualmle.trials.ray_launcher import RayLauncher, read_placement

from .ray_cluster import add_node, bridges, kill_node, node_id, two_nodes

pytest.importorskip("ray", reason="needs Ray: pip install 'virtualmle[ray]'")

RESULTS = (RANKS, USERS, CHECKPOINT)
LONG = 100_000


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


class World:
    """What the tests share."""

    def __init__(self, root: Path, cluster: Any, dataset: Path) -> None:
        self.root = root
        self.cluster = cluster
        self.dataset = dataset
        self.node_files = root / "node-files"
        self.ray = RayLauncher(cluster.address, shared_files=False)
        self._number = 0

    def directory(self) -> Path:
        """The directory of a new trial."""
        self._number += 1
        return self.root / "sessions" / "tiny-sasrec-1" / f"t{self._number:03d}"

    def spec(self, directory: Path, epochs: int, **changes: Any) -> TrialSpec:
        """A trial of a small model."""
        config = make_config("sasrec", hidden_dim=16, epochs=epochs, patience=epochs, **changes.pop("knobs", {}))
        return TrialSpec(
            session="tiny-sasrec-1", trial=directory.name, dataset_dir=str(self.dataset), config=config.model_dump(),
            seed=1, threads=1, **{"wall_seconds": 600.0, **changes},
        )  # fmt: skip

    def submit(self, epochs: int, **changes: Any) -> Path:
        """Submit a trial to the cluster."""
        directory = self.directory()
        self.ray.submit(self.spec(directory, epochs, **changes), directory)
        return directory

    def run_locally(self, epochs: int, **changes: Any) -> Path:
        """Run a trial to its end in a process of this machine."""
        directory = self.directory()
        LocalLauncher().submit(self.spec(directory, epochs, **changes), directory)
        until(lambda: poll(directory).status != "running")
        return directory


def look(directory: Path) -> TrialState:
    """What a restarted server would see."""
    return launcher_of(directory).look(directory)


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


def test_trials_on_two_nodes_equal_local_ones_and_see_nothing_but_train_and_validation_events(world: World) -> None:
    trials = [world.submit(12), world.submit(12)]
    until(lambda: all(has_trained(directory, 1) for directory in trials))
    placements = [read_placement(directory) for directory in trials]
    assert len({place.node for place in placements if place}) == 2
    assert not any(place.in_place for place in placements if place)

    seen = [path for path in world.node_files.rglob("*") if path.is_file()]
    data = {path.name for path in seen if "data" in path.parts}
    assert data == {"manifest.json", *(f"{name}.npy" for name in ARRAYS)} and (world.dataset / SEALED).exists()
    secret = (world.dataset / SEALED).read_bytes()
    for path in seen:
        if path.exists() and not path.name.startswith("."):
            content = path.read_bytes()
            assert secret not in content and str(world.dataset).encode() not in content, path

    states = [settle(directory) for directory in trials]
    assert [state.status for state in states] == ["finished", "finished"]
    assert all(0 < state.seconds < 600 for state in states)
    local = world.run_locally(12)
    for directory in trials:
        assert same_results(directory, local)
        assert (directory / LOG).read_text().startswith("epoch 1/12") and "finished" in (directory / LOG).read_text()
        assert not (directory / STATE).exists()
    until(lambda: all(place is not None and place.released for place in map(read_placement, trials)))
    assert not list(world.node_files.glob("*/*/trials/*")), "a node keeps the files of a trial that is over"
