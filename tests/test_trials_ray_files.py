"""The Ray launcher's files, without a cluster: what may leave this machine, and what the server reads."""

from pathlib import Path

import pytest

from virtualmle.data.errors import TrialError
from virtualmle.data.prepared import ARRAYS, SEALED, PreparedDataset
from virtualmle.training.spec import SPEC, TrialSpec
from virtualmle.trials.launcher import write_stop
from virtualmle.trials.launching import LocalLauncher, launcher_of
from virtualmle.trials.ray_data import files_to_send, sizes_to_send
from virtualmle.trials.ray_launcher import RAY, RayLauncher


def test_a_node_gets_the_train_and_validation_arrays_and_nothing_else(tiny_dataset_dir: Path, tmp_path: Path) -> None:
    files = files_to_send(tiny_dataset_dir)
    assert set(files) == {"manifest.json", *(f"{name}.npy" for name in ARRAYS)}
    assert (tiny_dataset_dir / SEALED).exists()
    assert sizes_to_send(tiny_dataset_dir) == {name: len(content) for name, content in files.items()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.tobytes())
    sent, own = PreparedDataset.load(tmp_path), PreparedDataset.load(tiny_dataset_dir)
    assert sent.dataset_id == own.dataset_id and (sent.items == own.items).all()


def test_a_directory_tells_which_launcher_its_trial_belongs_to(tmp_path: Path) -> None:
    assert launcher_of(tmp_path) == LocalLauncher()
    (tmp_path / RAY).write_text("{}")
    assert launcher_of(tmp_path) == RayLauncher()


def test_a_damaged_submission_is_a_crash_and_not_an_error(tmp_path: Path) -> None:
    (tmp_path / RAY).write_text("{")
    state = launcher_of(tmp_path).look(tmp_path)
    assert state.status == "crashed" and "ray.json cannot be read" in (state.cause or "")


def test_a_trial_that_was_lost_is_reported_as_such_without_a_bridge(tmp_path: Path) -> None:
    (tmp_path / RAY).write_text("{")
    write_stop(tmp_path, "crashed", "the node n1 was lost", machine_fault=True, lost=True)
    state = launcher_of(tmp_path).look(tmp_path)
    assert (state.status, state.cause, state.lost, state.seconds) == ("crashed", "the node n1 was lost", True, 0.0)


def test_a_directory_with_a_trial_is_not_given_to_a_cluster(tmp_path: Path) -> None:
    (tmp_path / SPEC).write_text("{}")
    spec = TrialSpec(session="s", trial="t001", dataset_dir="demo", config={}, seed=0)
    with pytest.raises(TrialError, match="already holds a trial"):
        RayLauncher().submit(spec, tmp_path)
    assert not (tmp_path / RAY).exists()
