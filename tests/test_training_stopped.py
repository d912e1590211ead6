"""A raced trial in real worker processes: it stops, says why, keeps its state, and continues bit for bit."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from virtualmle.data.atomic import write_bytes
from virtualmle.models.config import TrialConfig, make_config
from virtualmle.training.epoch_ranks import read_epoch_ranks, write_epoch_ranks, write_race
from virtualmle.training.families import Run, race_of
from virtualmle.training.metrics import clip_ranks, ndcg_per_user
from virtualmle.training.racing import LADDER
from virtualmle.training.spec import (
    CHECKPOINT,
    EPOCH_RANKS,
    INCUMBENT_RANKS,
    JUDGED_RANKS,
    RACE,
    RANKS,
    SPEC,
    STATE,
    USERS,
    TrialResult,
    TrialSpec,
    read_result,
    write_model,
)
from virtualmle.trials.launcher import poll

CONFIG = make_config("sasrec", hidden_dim=16, num_negatives=20, batch_size=32, epochs=6, patience=6, lr=3e-3)


def trial(tmp_path: Path, dataset: Path, name: str, config: TrialConfig = CONFIG, **fields: Any) -> Path:
    directory = tmp_path / name
    directory.mkdir()
    write_model(directory / SPEC, TrialSpec(
        session="s", trial=name, dataset_dir=str(dataset), config=config.model_dump(), seed=7, threads=1, device="cpu",
        **fields,
    ))  # fmt: skip
    return directory


def race(directory: Path, config: TrialConfig = CONFIG, height: float = 1.0) -> None:
    """Race the trial against an incumbent that rose to NDCG@10 `height` at once, as did the only run of its family."""
    num_users = 150
    ranks = np.tile(np.where(np.arange(num_users) < height * num_users, 1, 200), (4, 1)).astype(np.uint8)
    run = Run("t001", config, [1, 2, 3], [height] * 3, num_users, parameters=1)
    context = race_of(config, num_users, run, [run], 1.0)
    assert context is not None
    write_race(directory, context, ranks)


def worked(directory: Path) -> TrialResult:
    """Run the worker as a process; returns its result."""
    command = [sys.executable, "-P", "-m", "virtualmle.training.worker", str(directory)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    result = read_result(directory)
    assert result is not None
    return result


def points(result: TrialResult) -> list[tuple[int, float, float]]:
    return [(epoch.epoch, epoch.loss, epoch.ndcg10) for epoch in result.curve]


def test_a_stopped_trial_keeps_its_state_and_continues_bit_for_bit(tiny_dataset_dir: Path, tmp_path: Path) -> None:
    uninterrupted = worked(whole := trial(tmp_path, tiny_dataset_dir, "whole"))
    race(directory := trial(tmp_path, tiny_dataset_dir, "raced"))
    stopped = worked(directory)
    assert (stopped.status, stopped.cause, stopped.metrics, stopped.files) == ("stopped", None, {}, {})
    assert stopped.stopped is not None and stopped.stopped.epoch == len(stopped.curve) == LADDER[0]
    assert stopped.train_seconds > 0 and stopped.parameters == uninterrupted.parameters
    assert stopped.model_ndcg10 == max(epoch.ndcg10 for epoch in stopped.curve) == stopped.stopped.ndcg10
    left = {path.name for path in directory.iterdir()} & {STATE, EPOCH_RANKS, RANKS, CHECKPOINT, USERS}
    assert left == {STATE, EPOCH_RANKS}
    state = poll(directory)
    assert (state.status, state.result) == ("stopped", stopped)

    continued = worked(again := trial(tmp_path, tiny_dataset_dir, "again", resume_from=str(directory)))
    assert continued.status == "finished" and points(continued) == points(uninterrupted)
    assert points(stopped) == points(uninterrupted)[: len(stopped.curve)]
    for name in (RANKS, CHECKPOINT, USERS, EPOCH_RANKS):
        assert (again / name).read_bytes() == (whole / name).read_bytes(), name
    spent = sum(epoch.train_seconds for epoch in continued.curve[len(stopped.curve) :])
    assert continued.train_seconds == pytest.approx(spent), "the seconds until the stop are counted once"


def test_the_same_files_stop_a_trial_at_the_same_epoch(tiny_dataset_dir: Path, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        race(directory := trial(tmp_path, tiny_dataset_dir, name))
        found.append((worked(directory), (directory / EPOCH_RANKS).read_bytes()))
    (one, ranks), (two, again) = found
    assert (one.stopped, points(one), ranks) == (two.stopped, points(two), again)


def test_a_race_that_is_won_changes_nothing(tiny_dataset_dir: Path, tmp_path: Path) -> None:
    expected = worked(bare := trial(tmp_path, tiny_dataset_dir, "bare"))
    race(directory := trial(tmp_path, tiny_dataset_dir, "raced"), height=0.001)
    result = worked(directory)
    assert (result.status, result.stopped) == ("finished", None)
    assert (points(result), result.metrics, result.files) == (points(expected), expected.metrics, expected.files)
    assert (directory / EPOCH_RANKS).read_bytes() == (bare / EPOCH_RANKS).read_bytes()


def test_a_trial_with_score_priors_is_raced_by_what_it_is_judged_by(tiny_dataset_dir: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"transition_weight": 4.0})
    race(directory := trial(tmp_path, tiny_dataset_dir, "raced", config, judge_epochs=True), config)
    stopped = worked(directory)
    assert stopped.stopped is not None and stopped.stopped.epoch == 4, "the first rung with judged ranks"
    ranks = read_epoch_ranks(directory / JUDGED_RANKS)
    assert ranks is not None and len(ranks) == 2
    found = {epoch.epoch: epoch.judged for epoch in stopped.curve}
    assert found == {1: None, 2: pytest.approx(ndcg_per_user(ranks[0]).mean()), 3: None, 4: found[4]}
    assert stopped.stopped.ndcg10 in (found[2], found[4]) and "with score priors" in stopped.stopped.sentence

    race(blind := trial(tmp_path, tiny_dataset_dir, "blind", config), config)
    assert worked(blind).status == "finished", "without judged ranks there is nothing to compare"
    assert not (blind / JUDGED_RANKS).exists()


def test_the_ranks_of_every_epoch_give_its_figures(tiny_dataset_dir: Path, tmp_path: Path) -> None:
    result = worked(directory := trial(tmp_path, tiny_dataset_dir, "a"))
    ranks = read_epoch_ranks(directory / EPOCH_RANKS)
    assert ranks is not None and ranks.shape == (len(result.curve), len(np.load(directory / RANKS)))
    assert [ndcg_per_user(row).mean() for row in ranks] == pytest.approx([epoch.ndcg10 for epoch in result.curve])
    assert (ranks[result.best_epoch - 1] == clip_ranks(np.load(directory / RANKS))).all(), "without score priors"
    scored = CONFIG.model_copy(update={"transition_weight": 4.0})
    other = trial(tmp_path, tiny_dataset_dir, "b", scored, rescore_from=str(directory))
    assert worked(other).status == "finished"
    assert (other / EPOCH_RANKS).read_bytes() == (directory / EPOCH_RANKS).read_bytes(), "those of the bare model"


@pytest.mark.parametrize("damage", [{RACE: b"{"}, {INCUMBENT_RANKS: b"not an array"}, {RACE: None}], ids=str)
def test_a_damaged_race_is_no_race(damage: dict[str, bytes | None], tiny_dataset_dir: Path, tmp_path: Path) -> None:
    race(directory := trial(tmp_path, tiny_dataset_dir, "raced"))
    for name, content in damage.items():
        (directory / name).unlink()
        if content is not None:
            write_bytes(directory / name, content)
    assert worked(directory).status == "finished"


def test_epoch_ranks_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    assert read_epoch_ranks(tmp_path / EPOCH_RANKS) is None
    write_epoch_ranks(tmp_path / EPOCH_RANKS, [np.array([1, 255], dtype=np.uint8)])
    assert read_epoch_ranks(tmp_path / EPOCH_RANKS) is not None
    for content in (b"", (tmp_path / EPOCH_RANKS).read_bytes()[:-1]):
        write_bytes(tmp_path / EPOCH_RANKS, content)
        assert read_epoch_ranks(tmp_path / EPOCH_RANKS) is None
