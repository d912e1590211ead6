"""A symbolic link as a dataset, session, trial or vault, or as a file in one, is refused; a linked home is not."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from virtualmle.data.catalogue import Catalogue
from virtualmle.data.errors import DataError, HomeError, SealError, TrialError, VirtualMLEError
from virtualmle.data.prepared import MANIFEST, SEALED, PreparedDataset
from virtualmle.data.safe_open import open_beneath, read_beneath, refuse_links, sha256_beneath, split_beneath
from virtualmle.examiner.ledger import Ledger
from virtualmle.examiner.request import read_revealed
from virtualmle.examiner.unseal import open_test
from virtualmle.examiner.vault import PRIVATE, PUBLIC, Vault
from virtualmle.memory.records import TrialRecord
from virtualmle.tools.signatures import recorded_ranks
from virtualmle.tools.workspace import Workspace, trial_directory
from virtualmle.training.checkpoint import load_checkpoint
from virtualmle.training.errors import TrainingError
from virtualmle.training.spec import CHECKPOINT, RANKS, RESULT, SPEC, read_result, read_spec

LINK = "is a symbolic link, and links inside a home are not followed"


def replace_by_link(path: Path, elsewhere: Path) -> None:
    """Move `path` to `elsewhere`, and leave a link to it in its place."""
    elsewhere.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the demo dataset and the files of a trial."""
    home = tmp_path / "home"
    Catalogue(home).ensure_demo(Vault(home).public_key())
    trial = home / ".virtualmle" / "sessions" / "s-1" / "t001"
    trial.mkdir(parents=True)
    np.save(trial / RANKS, np.arange(1, 4, dtype=np.int32))
    (trial / RESULT).write_text('{"status": "finished"}')
    return home


def test_files_beneath_a_root_are_read_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"content")
    (tmp_path / "a" / "link").symlink_to("b")
    (tmp_path / "a" / "b" / "other").symlink_to("file")
    (tmp_path / "root").symlink_to("a")
    assert read_beneath(tmp_path / "a", "b", "file") == b"content"
    assert read_beneath(tmp_path / "root", "b", "file") == b"content"  # the root may be linked
    assert sha256_beneath(tmp_path, "a", "b", "file").startswith("ed7002b439e9ac84")
    with open_beneath(tmp_path, "a", "b", "file") as file:
        assert file.name == str(tmp_path / "a" / "b" / "file") or file.name == tmp_path / "a" / "b" / "file"
    for parts in (("a", "link", "file"), ("a", "b", "other"), ("root", "b", "file")):
        with pytest.raises(SealError, match=LINK):
            read_beneath(tmp_path, *parts, error=SealError)
    for parts in (("a", "..", "a", "b", "file"), ("a/b", "file"), ("",)):
        with pytest.raises(HomeError, match="is not below"):
            read_beneath(tmp_path, *parts)
    with pytest.raises(FileNotFoundError):
        read_beneath(tmp_path, "a", "none", "file")
    with pytest.raises(NotADirectoryError):
        read_beneath(tmp_path, "a", "b", "file", "x")
    assert split_beneath(tmp_path / "a" / ".." / "a" / "b", 2) == (tmp_path, ("a", "b"))
    assert split_beneath(Path("/x"), 3) == (Path("/"), ("x",))


def test_a_link_that_appears_between_check_and_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is exchanged for a link while the file is opened; without O_NOFOLLOW, the other file is read."""
    for name in ("good", "evil"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    real, calls = os.open, []

    def exchanging(path: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        calls.append(path)
        if path == "good":
            os.rename(tmp_path / "good", tmp_path / "was")
            (tmp_path / "good").symlink_to("evil")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", exchanging)
    with pytest.raises(HomeError, match=LINK):
        read_beneath(tmp_path, "good", "file")
    assert "good" in calls


@pytest.mark.parametrize("name", ["", MANIFEST, "items.npy", "valid_items.npy", "item_ids.parquet"])
def test_a_linked_dataset_or_file_of_one_is_refused(home: Path, tmp_path: Path, name: str) -> None:
    directory = home / ".virtualmle" / "data" / "demo"
    replace_by_link(directory / name if name else directory, tmp_path / "elsewhere" / "demo")
    with pytest.raises(DataError, match=LINK):
        PreparedDataset.load(directory)
    with pytest.raises(DataError, match=LINK):
        Catalogue(home).load("demo")


@pytest.mark.parametrize("folder", ["data", "sessions", "vault"])
def test_a_linked_folder_of_the_home_is_refused_and_the_error_says_what_to_do(
    home: Path, tmp_path: Path, folder: str
) -> None:
    state = home / ".virtualmle"
    replace_by_link(state / folder, tmp_path / "large-disk" / folder)

    def use() -> object:
        if folder == "data":
            return Catalogue(home).load("demo")
        return trial_directory(home, "s-1", "t001") if folder == "sessions" else Vault(home).public_key()

    with pytest.raises(VirtualMLEError, match=f"{LINK}.*move the whole home.*--home"):
        use()


def test_a_linked_home_works_and_a_linked_state_directory_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(home)
    ws = Workspace.open(tmp_path / "linked")
    assert ws.dataset("demo").num_users == 700
    ws.close()
    replace_by_link(home / ".virtualmle", tmp_path / "elsewhere")
    with pytest.raises(HomeError, match=LINK):
        Workspace.open(home)


def test_linked_files_of_the_vault_and_a_linked_seal_are_refused(home: Path, tmp_path: Path) -> None:
    vault, dataset = Vault(home), Catalogue(home).load("demo")
    directory, key = home / ".virtualmle" / "data" / "demo", vault.private_key()
    replace_by_link(directory / SEALED, tmp_path / "sealed")
    with pytest.raises(SealError, match=LINK):
        open_test(directory, key, dataset.dataset_id, dataset.num_users)
    for name, read in ((PRIVATE, vault.private_key), (PUBLIC, vault.public_key)):
        replace_by_link(vault.directory / name, tmp_path / name)
        with pytest.raises(SealError, match=LINK):
            read()
    (vault.directory / "revealed").mkdir()
    (tmp_path / "result.json").write_text("{}")
    (vault.directory / "revealed" / "s-1.json").symlink_to(tmp_path / "result.json")
    with pytest.raises(SealError, match=LINK):
        read_revealed(home, "s-1")
    (tmp_path / "looks.db").touch()
    (vault.directory / "looks.db").symlink_to(tmp_path / "looks.db")
    with pytest.raises(SealError, match=LINK):
        Ledger(vault.directory).looks()


def test_linked_trials_sessions_and_files_of_trials_are_refused(home: Path, tmp_path: Path) -> None:
    session = home / ".virtualmle" / "sessions" / "s-1"
    trial = trial_directory(home, "s-1", "t001")
    record = TrialRecord.model_construct(handle="t001", outcome=None)
    assert recorded_ranks(trial, record).tolist() == [1, 2, 3]
    for name in (RANKS, RESULT):
        shutil.move(trial / name, tmp_path / name)
    for name in (RANKS, RESULT, SPEC, CHECKPOINT):
        (trial / name).symlink_to(tmp_path / name)
    for read in (lambda: recorded_ranks(trial, record), lambda: read_result(trial), lambda: read_spec(trial)):
        with pytest.raises(TrialError, match=LINK):
            read()
    with pytest.raises(TrainingError, match=LINK):
        load_checkpoint(trial / CHECKPOINT)
    replace_by_link(trial, tmp_path / "elsewhere" / "t001")
    with pytest.raises(TrialError, match=LINK):
        trial_directory(home, "s-1", "t001")
    with pytest.raises(TrialError, match=LINK):
        recorded_ranks(trial, record)
    trial.unlink()
    replace_by_link(session, tmp_path / "elsewhere" / "s-1")
    with pytest.raises(TrialError, match=LINK):
        trial_directory(home, "s-1", "t002")


def test_refusing_links_passes_over_what_does_not_exist(tmp_path: Path) -> None:
    assert refuse_links(tmp_path, "none", "below") == tmp_path / "none" / "below"
