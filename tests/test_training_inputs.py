"""Every trial verifies the dataset it reads, although the process keeps it from one trial to the next."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from virtualmle.data.errors import DataError
from virtualmle.training import inputs
from virtualmle.training.inputs import check_unchanged, load_dataset


@pytest.fixture
def dataset(tiny_dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a dataset that counts as settled at once, as one does that was prepared some seconds ago."""
    monkeypatch.setattr(inputs, "SETTLED_SECONDS", -1e9)
    directory = tmp_path / "data"
    shutil.copytree(tiny_dataset_dir, directory)
    for path in directory.iterdir():
        path.chmod(0o600)
    return directory


def overwrite(path: Path) -> None:
    """Overwrite the file in place and give it its old times, as far as anybody can."""
    before, content = path.stat(), path.read_bytes()
    with path.open("r+b") as file:
        file.write(content[:-4] + b"\x01\x02\x03\x04")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_size == before.st_size


def overwrite_by_a_mapping(path: Path) -> None:
    array = np.load(path, mmap_mode="r+")
    array[-1] += 1
    array.flush()


def replace(path: Path) -> None:
    other = path.with_name("other.npy")
    shutil.copy2(path, other)
    overwrite(other)
    os.replace(other, path)


def test_a_dataset_that_has_not_changed_is_not_loaded_again(dataset: Path) -> None:
    first = load_dataset(dataset)
    check_unchanged(dataset)
    assert load_dataset(dataset) is first


@pytest.mark.parametrize("name", ["valid_items.npy", "items.npy", "offsets.npy"])
@pytest.mark.parametrize("change", [overwrite, overwrite_by_a_mapping, replace])
def test_a_dataset_that_was_changed_between_two_trials_is_refused(
    dataset: Path, name: str, change: Callable[[Path], None]
) -> None:
    kept = load_dataset(dataset).valid_items
    before = kept.copy()
    change(dataset / name)
    with pytest.raises(DataError, match="its hash differs from the manifest"):
        load_dataset(dataset)
    with pytest.raises(DataError, match="its hash differs"):  # also if it is asked again
        load_dataset(dataset)
    in_place = name == "valid_items.npy" and change is not replace
    assert np.array_equal(kept, before) != in_place, "the array that the process has open changes with the file"


@pytest.mark.parametrize("change", [overwrite, overwrite_by_a_mapping, replace])
def test_a_change_while_a_trial_runs_is_noticed_at_its_end(dataset: Path, change: Callable[[Path], None]) -> None:
    load_dataset(dataset)
    change(dataset / "valid_items.npy")
    with pytest.raises(DataError, match="was changed while the trial used it"):
        check_unchanged(dataset)


def test_a_dataset_that_has_just_been_written_is_hashed_again(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "SETTLED_SECONDS", 1e9)
    assert load_dataset(dataset) is not load_dataset(dataset)


def test_original_ids_are_not_read(dataset: Path) -> None:
    (dataset / "user_ids.parquet").unlink()
    assert load_dataset(dataset).num_users > 0
