"""Trials on a Ray cluster of two nodes on this machine, one of which is killed, compared with the local launcher.

Twelve trials of both backbones run at a time. The node is killed when some of its trials have trained for a while; each
lost trial is submitted again, and continues from the training state that came back. Question: does every trial end with
the bytes that the local launcher gives?

    python -P benchmarks/bench_ray.py [--trials 12] [--epochs 40]
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from virtualmle.data.catalogue import Catalogue
from virtualmle.examiner.vault import Vault
from virtualmle.models.config import make_config
from virtualmle.training.spec import CHECKPOINT, RANKS, STATE, USERS, TrialSpec, read_result
from virtualmle.trials.launching import Launcher, LocalLauncher, launcher_of
from virtualmle.trials.ray_launcher import RayLauncher, read_placement

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.ray_cluster import bridges, kill_node, node_id, two_nodes  # noqa: E402 - the cluster of the tests

POLL_SECONDS = 0.2
EPOCHS_BEFORE_KILL = 5
TRIALS_BEFORE_KILL = 3  # on the node; the others there have just begun, or still load torch


def specs(dataset: Path, count: int, epochs: int) -> dict[str, TrialSpec]:
    """Trials of both backbones that differ in the learning rate and the seed."""
    found = {}
    for number in range(1, count + 1):
        backbone = ("sasrec", "hstu")[number % 2]
        config = make_config(backbone, hidden_dim=32, lr=0.0005 * number, epochs=epochs, patience=epochs, batch_size=64)
        found[f"t{number:03d}"] = TrialSpec(
            session="demo", trial=f"t{number:03d}", dataset_dir=str(dataset), config=config.model_dump(), seed=number,
            threads=1,
        )  # fmt: skip
    return found


def digest(directory: Path) -> str:
    """A hash of the curve without its seconds, and of the ranks, states and weights."""
    result = read_result(directory)
    assert result is not None
    curve = [(record.epoch, record.loss, record.ndcg10) for record in result.curve]
    content = b"".join((directory / name).read_bytes() for name in (RANKS, USERS, CHECKPOINT))
    return hashlib.sha256(repr((curve, result.metrics)).encode() + content).hexdigest()


def settle(directories: list[Path]) -> None:
    """Wait until all trials are over."""
    while any(launcher_of(directory).look(directory).status == "running" for directory in directories):
        time.sleep(POLL_SECONDS)


def run_locally(root: Path, trials: dict[str, TrialSpec], at_a_time: int) -> dict[str, str]:
    """The digests of the trials by name, run `at_a_time` by the local launcher."""
    launcher: Launcher = LocalLauncher()
    names = list(trials)
    for start in range(0, len(names), at_a_time):
        some = names[start : start + at_a_time]
        for name in some:
            launcher.submit(trials[name], root / "local" / name)
        settle([root / "local" / name for name in some])
    return {name: digest(root / "local" / name) for name in names}


def run_on_ray(root: Path, trials: dict[str, TrialSpec]) -> tuple[dict[str, str], dict[str, Any]]:
    """The digests of the trials by name, and what happened; the second node is killed in the middle."""
    with tempfile.TemporaryDirectory() as node_files, two_nodes(Path(node_files), cpus=len(trials) // 2) as cluster:
        launcher = RayLauncher(cluster.address, shared_files=False)
        where = {name: root / "ray" / name for name in trials}
        started = time.time()
        for name, spec in trials.items():
            launcher.submit(spec, where[name])
        (node,) = cluster.worker_nodes
        victims = _victims(launcher, where, node_id(node))
        kill_node(cluster, node)
        killed = time.time()
        settle(list(where.values()))
        noticed = time.time() - killed
        lost = [name for name in victims if launcher.look(where[name]).lost]
        finished = [name for name in where if launcher.look(where[name]).status == "finished"]
        for name in lost:
            spec = trials[name].model_copy(update={"resume_from": str(where[name])})
            where[name] = root / "ray" / f"{name}-again"
            launcher.submit(spec, where[name])
        settle(list(where.values()))
        facts = {
            "trials": len(trials), "on_the_killed_node": len(victims), "lost": len(lost),
            "finished_at_first": len(finished), "seconds_until_all_others_were_over": round(noticed, 1),
            "seconds": round(time.time() - started, 1),
        }  # fmt: skip
        for pid in bridges(root):
            os.kill(pid, signal.SIGTERM)
        return {name: digest(directory) for name, directory in where.items()}, facts


def _victims(launcher: RayLauncher, where: dict[str, Path], node: str) -> list[str]:
    """The trials on `node`, once some of them have trained for a while and their states have come back."""
    while True:
        places = {name: read_placement(directory) for name, directory in where.items()}
        victims = [name for name, place in places.items() if place and place.node == node and place.seconds is None]
        trained = [launcher.look(where[name]).progress.epoch >= EPOCHS_BEFORE_KILL for name in victims]
        states = [(where[name] / STATE).exists() for name in victims]
        if sum(map(all, zip(trained, states, strict=True))) >= TRIALS_BEFORE_KILL:
            return victims
        if all(place and place.seconds is not None for place in places.values()):
            sys.exit("all trials were over before the node could be killed; give more --epochs")
        time.sleep(POLL_SECONDS)


def main() -> None:
    """Run both and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        catalogue = Catalogue(home)
        catalogue.ensure_demo(Vault(home).public_key())
        trials = specs(catalogue.path("demo"), arguments.trials, arguments.epochs)
        root = home / "sessions"
        on_ray, facts = run_on_ray(root, trials)
        started = time.time()
        local = run_locally(root, trials, os.cpu_count() or 1)
        equal = sum(on_ray[name] == local[name] for name in trials)
        for name, spec in trials.items():
            print(f"{name}  {spec.config['backbone']:6}  {'equal' if on_ray[name] == local[name] else 'DIFFERENT'}")
        print(json.dumps({"bench": "ray", **facts, "equal": equal, "local_seconds": round(time.time() - started, 1)}))
        sys.exit(equal != len(trials))


if __name__ == "__main__":
    main()
