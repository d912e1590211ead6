"""A worker that is asked to end its training early: what it leaves, and what a later trial makes of it."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.test_training_stopped import CONFIG, points, race, trial
from virtualmle.training import trainer
from virtualmle.training.spec import (
    CHECKPOINT,
    EPOCH_RANKS,
    RANKS,
    STATE,
    EpochRecord,
    TrialResult,
    read_progress,
    read_result,
)
from virtualmle.training.trial import Trial
from virtualmle.training.worker import main
from virtualmle.trials.launcher import ask_to_end

Make = Callable[..., Path]


@pytest.fixture
def make(tiny_dataset_dir: Path, tmp_path: Path) -> Make:
    """A function that makes the directory of a trial by its name and further fields of its specification."""

    def make_one(name: str, **fields: object) -> Path:
        return trial(tmp_path, tiny_dataset_dir, name, **{"config": CONFIG, **fields})  # type: ignore[arg-type]

    return make_one


@pytest.fixture(autouse=True)
def restored_torch_settings() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_deterministic_debug_mode("default")
    torch.set_num_threads(threads)


def run(directory: Path) -> TrialResult:
    """Run the worker's entry in this process; returns the result."""
    main(directory)
    result = read_result(directory)
    assert result is not None
    return result


def ask_after(monkeypatch: pytest.MonkeyPatch, epoch: int, directory: Path) -> None:
    """Ask for the end while the epoch after `epoch` is trained."""
    report = Trial.add_epoch

    def add_epoch(self: Trial, record: EpochRecord) -> None:
        report(self, record)
        if record.epoch == epoch and self.directory == directory:
            ask_to_end(directory)

    monkeypatch.setattr(Trial, "add_epoch", add_epoch)


def test_it_finishes_with_the_best_weights_so_far_and_leaves_a_state(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, short = run(make("whole")), run(make("short", config=CONFIG.model_copy(update={"epochs": 3})))
    ask_after(monkeypatch, 3, directory := make("early"))
    early = run(directory)
    assert (early.status, early.ended_after, early.stopped) == ("finished", 3, None)
    assert points(early) == points(whole)[:3] and whole.ended_after is None
    assert (early.metrics, early.best_epoch) == (short.metrics, short.best_epoch)
    for name in (RANKS, EPOCH_RANKS):
        assert (directory / name).read_bytes() == (directory.parent / "short" / name).read_bytes(), name
    assert early.train_seconds == sum(epoch.train_seconds for epoch in early.curve)
    again = run(make("again", resume_from=str(directory)))
    assert points(again) == points(whole) and again.resumed_epochs == 3 and again.ended_after is None
    for name in (RANKS, CHECKPOINT, EPOCH_RANKS):
        assert (directory.parent / "again" / name).read_bytes() == (directory.parent / "whole" / name).read_bytes()
    assert read_progress(directory.parent / "again").best_epoch == again.best_epoch


def test_a_request_that_is_there_from_the_beginning_costs_one_epoch(make: Make) -> None:
    ask_to_end(directory := make("at-once"))
    result = run(directory)
    assert (result.status, result.ended_after, len(result.curve)) == ("finished", 1, 1)
    ask_to_end(resumed := make("resumed", resume_from=str(directory)))
    result = run(resumed)
    assert (result.ended_after, result.resumed_epochs, result.train_seconds) == (1, 1, 0.0), "what is there is enough"
    assert (resumed / CHECKPOINT).read_bytes() == (directory / CHECKPOINT).read_bytes()


def test_a_request_wins_over_the_race_that_would_stop_the_trial(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    race(directory := make("raced"))
    ask_after(monkeypatch, 3, directory)
    result = run(directory)
    assert (result.status, result.ended_after, result.stopped) == ("finished", 3, None)


def test_a_request_in_the_last_epoch_changes_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_after(monkeypatch, CONFIG.epochs, directory := make("late"))
    result = run(directory)
    assert result.ended_after is None and len(result.curve) == CONFIG.epochs


def test_a_repetition_ends_where_its_trial_did(make: Make) -> None:
    result = run(make("repetition", end_after=2))
    assert (result.ended_after, len(result.curve)) == (2, 2)


def test_a_model_that_is_scored_again_stays_one_that_was_ended_early(make: Make) -> None:
    ask_to_end(source := make("source"))
    run(source)
    scored = CONFIG.model_copy(update={"transition_weight": 2.0})
    result = run(make("rescored", config=scored, rescore_from=str(source)))
    assert (result.status, result.ended_after, result.train_seconds) == ("finished", 1, 0.0)


def test_a_full_disk_does_not_lose_the_result(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer, "write_state", full)
    ask_to_end(directory := make("full"))
    assert run(directory).status == "finished" and not (directory / STATE).exists()
