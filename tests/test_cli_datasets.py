"""Datasets on the command line: reports of what the filters removed, removal and replacement."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.quick_home import environment, quick_home
from virtualmle.data.catalogue import Catalogue
from virtualmle.data.errors import DataError
from virtualmle.data.prepared import Manifest, PreparedDataset, read_manifest
from virtualmle.examiner.vault import Vault

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command in a separate process, with the home of this test."""
    home = quick_home(tmp_path / "home")

    def command(*words: str, answer: str | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-P", "-m", "virtualmle", *words, "--home", str(home)],
            env=environment(), cwd=tmp_path, input=answer, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip

    return command


def write_log(path: Path, users: int = 40, shift: int = 0) -> Path:
    """Write a log of `users` users with eight events each, and of ten with three, whom a 5-core filter removes."""
    rows = [f"u{u},i{(u * 3 + k + shift * (u % 5)) % 12},{1_600_000_000 + 86_400 * k}" for u in range(users)
            for k in range(8)]  # fmt: skip
    rows += [f"rare{u},i{k},{1_600_000_000 + 86_400 * k}" for u in range(10) for k in range(3)]
    path.write_text("user,item,time\n" + "\n".join(rows) + "\n")
    return path


def test_add_and_show_report_what_the_filters_removed(run: Run, tmp_path: Path) -> None:
    write_log(tmp_path / "shop.csv")
    for done in (run("data", "add", "shop", "shop.csv", "--max-events", "6"), run("data", "show", "shop")):
        assert done.returncode == 0, done.stderr
        assert "5-core: users 50 -> 40, items 12 (all kept), interactions 350 -> 320 " in done.stdout
        assert "last 6 events per user: interactions 320 -> 240" in done.stdout
        assert "train part only, without the last two events of each user" in done.stdout
    shown = json.loads(run("data", "show", "shop", "--json").stdout)
    assert shown["before_core"] == {"users": 50, "items": 12, "interactions": 350}


def test_a_manifest_of_an_older_version_is_shown_without_the_counts_that_it_lacks(run: Run, tmp_path: Path) -> None:
    write_log(tmp_path / "shop.csv")
    assert run("data", "add", "shop", "shop.csv").returncode == 0
    path = tmp_path / "home" / ".virtualmle" / "data" / "shop" / "manifest.json"
    older = json.loads(path.read_text())
    del older["before_core"]
    path.chmod(0o644)
    path.write_text(json.dumps(older))
    assert read_manifest(path.parent) == Manifest.model_validate(older)
    shown = run("data", "show", "shop").stdout
    assert "-core" not in shown and "last 50 events per user" in shown


@pytest.mark.slow
def test_a_dataset_whose_sessions_ended_can_be_removed_and_its_looks_stay_counted(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    write_log(tmp_path / "shop.csv")
    assert run("data", "add", "shop", "shop.csv").returncode == 0
    assert run("call", "open_session", '{"dataset": "shop", "backbone": "sasrec"}').returncode == 0
    busy = run("data", "rm", "shop", "--yes")
    assert busy.returncode == 1 and "session shop-sasrec-1 (open)" in busy.stderr
    assert f"`virtualmle sessions resume shop-sasrec-1 --home {home}`" in busy.stderr
    assert run("tune", "shop", "--agent", "random", "--threads", "1").returncode == 0

    unconfirmed = run("data", "rm", "shop", answer="")
    assert unconfirmed.returncode == 1 and "confirm with --yes" in unconfirmed.stderr
    assert Catalogue(home).names() == ["shop"]
    removed = run("data", "rm", "shop", "--yes")
    assert removed.returncode == 0 and "removed shop" in removed.stdout, removed.stderr
    assert Catalogue(home).names() == [] and list(Catalogue(home).root.iterdir()) == []
    assert not list((home / ".virtualmle" / "vault" / "sources").iterdir())
    assert run("sessions", "show", "shop-sasrec-1").returncode == 0
    assert run("report", "shop-sasrec-1").returncode == 0

    assert run("data", "add", "shop", "shop.csv").returncode == 0
    again = run("tune", "shop", "--agent", "random", "--threads", "1", "--json")
    assert json.loads(again.stdout)["look"] == 2, "the looks of a removed dataset stay counted"


def test_replacing_a_dataset_changes_its_content_and_old_sessions_can_still_be_shown(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    write_log(tmp_path / "old.csv")
    write_log(tmp_path / "new.csv", users=60, shift=1)
    assert run("data", "add", "shop", "old.csv").returncode == 0
    assert run("call", "open_session", '{"dataset": "shop", "backbone": "sasrec"}').returncode == 0
    before = Catalogue(home).manifest("shop")

    unconfirmed = run("data", "replace", "shop", "new.csv", answer="")
    assert unconfirmed.returncode == 1 and "confirm with --yes" in unconfirmed.stderr
    (tmp_path / "broken.csv").write_text("user,item\n1,2\n")
    assert run("data", "replace", "shop", "broken.csv", "--yes").returncode == 1
    assert Catalogue(home).manifest("shop") == before

    done = run("data", "replace", "shop", "new.csv", "--yes", "--k-core", "4")
    assert done.returncode == 0, done.stderr
    assert "session shop-sasrec-1 (open)" in done.stderr and "counted by content" in done.stderr
    after = Catalogue(home).manifest("shop")
    assert (after.num_users, after.options.k_core) == (60, 4) and after.dataset_id != before.dataset_id
    assert [path.name for path in Catalogue(home).root.iterdir()] == ["shop"]
    PreparedDataset.load(Catalogue(home).path("shop"))

    assert run("sessions", "show", "shop-sasrec-1").returncode == 0
    refused = run("sessions", "resume", "shop-sasrec-1", "--threads", "1")
    assert refused.returncode == 1 and "was replaced since session shop-sasrec-1 was opened" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1 and "virtualmle tune shop --backbone sasrec --new" in refused.stderr
    same = run("data", "replace", "shop", "new.csv", "--yes", "--k-core", "4")
    assert same.returncode == 0 and same.stderr.endswith("sessions on this dataset continue\n")


def test_a_damaged_dataset_can_be_removed(run: Run, tmp_path: Path) -> None:
    write_log(tmp_path / "shop.csv")
    assert run("data", "add", "shop", "shop.csv").returncode == 0
    manifest = tmp_path / "home" / ".virtualmle" / "data" / "shop" / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("{")
    damaged = run("data", "show", "shop")
    assert damaged.returncode == 1 and "remove the dataset with `virtualmle data rm`" in damaged.stderr
    assert run("data", "rm", "shop", "--yes").returncode == 0 and not manifest.exists()
    assert run("data", "add", "shop", "shop.csv").returncode == 0


def test_only_registered_datasets_can_be_replaced_or_removed(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    with pytest.raises(DataError, match="no dataset is named 'shop'"):
        catalogue.add("shop", write_log(tmp_path / "l.csv"), public_key=Vault(tmp_path).public_key(), replace=True)
    with pytest.raises(DataError, match="no dataset is named 'shop'"):
        catalogue.remove("shop")
