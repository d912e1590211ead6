"""The real worker, stopped at arbitrary moments: the files that it leaves must always give one consistent state."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.waiting import until
from virtualmle.data.catalogue import Catalogue
from virtualmle.examiner.vault import Vault
from virtualmle.models.config import make_config
from virtualmle.training.spec import RANKS, RESULT, TrialSpec
from virtualmle.trials.launcher import TrialState, cancel, launch, poll
from virtualmle.trials.lease import is_held, read_lease


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo dataset, prepared once."""
    home = tmp_path_factory.mktemp("home")
    catalogue = Catalogue(home)
    catalogue.ensure_demo(Vault(home).public_key())
    return catalogue.path("demo")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A trial directory; a worker that still runs is killed at the end of the test."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    yield tmp_path / "t001"
    lease = read_lease(tmp_path / "t001")
    if lease is not None and is_held(lease):
        os.killpg(lease.pid, signal.SIGKILL)


def start(directory: Path, dataset: Path, *, epochs: int = 1000, wall_seconds: float = 600) -> None:
    config = make_config("sasrec", hidden_dim=16, epochs=epochs, patience=epochs)
    launch(
        TrialSpec(
            session="demo-sasrec-1",
            trial="t001",
            dataset_dir=str(dataset),
            config=config.model_dump(),
            seed=1,
            threads=1,
            wall_seconds=wall_seconds,
        ),
        directory,
    )


def training(directory: Path) -> bool:
    state = poll(directory)
    assert state.status == "running", state.cause
    return state.progress.epoch >= 2


def settle(directory: Path) -> TrialState:
    until(lambda: poll(directory).status != "running")
    return poll(directory)


def test_an_undisturbed_trial_finishes_with_one_rank_per_user(directory: Path, dataset: Path) -> None:
    start(directory, dataset, epochs=1)
    state = settle(directory)
    assert state.status == "finished", state.cause
    ranks = np.load(directory / RANKS)
    assert ranks.dtype == np.int32 and ranks.min() >= 1
    assert state.progress.epoch == state.progress.epochs == 1


def test_a_worker_killed_during_training_is_a_crash_without_a_result(directory: Path, dataset: Path) -> None:
    start(directory, dataset)
    until(lambda: training(directory))
    os.kill(read_lease(directory).pid, signal.SIGKILL)
    state = settle(directory)
    assert state.status == "crashed" and "signal SIGKILL" in (state.cause or "")
    assert not (directory / RESULT).exists()
    assert state.progress.epoch >= 2
    assert state.seconds > 0


def test_a_worker_cancelled_during_training_is_cancelled_and_ended(directory: Path, dataset: Path) -> None:
    start(directory, dataset)
    until(lambda: training(directory))
    lease = read_lease(directory)
    state = cancel(directory)
    assert state.status == "cancelled"
    assert lease is not None and not is_held(lease)
    assert cancel(directory).status == "cancelled"


def test_a_worker_cancelled_during_its_imports_is_cancelled(directory: Path, dataset: Path) -> None:
    start(directory, dataset)
    assert cancel(directory).status == "cancelled"
    assert poll(directory).progress.epoch == 0


def test_a_worker_ends_itself_at_its_wall_clock_limit(directory: Path, dataset: Path) -> None:
    start(directory, dataset, wall_seconds=2)
    state = settle(directory)
    assert state.status == "crashed" and "wall-clock limit" in (state.cause or "")


def test_a_missing_dataset_is_a_crash_with_a_cause(directory: Path, tmp_path: Path) -> None:
    start(directory, tmp_path / "no-such-dataset")
    state = settle(directory)
    assert state.status == "crashed" and "no-such-dataset" in (state.cause or "")
