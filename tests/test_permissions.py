"""A home is for its owner only, from the first write; what a command writes elsewhere has the user's permissions."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.quick_home import environment, quick_home
from virtualmle.cli.checks import Finding, _permissions
from virtualmle.cli.permission_checks import mend_permissions, open_to_others
from virtualmle.data import permissions
from virtualmle.data.atomic import write_bytes
from virtualmle.examiner.vault import Vault
from virtualmle.tools.workspace import Workspace

pytestmark = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")


@pytest.fixture(autouse=True)
def usual_umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The umask of most systems, and none remembered from another test."""
    monkeypatch.setattr(permissions, "_users_umask", [])
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def command(*arguments: str, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "virtualmle", *arguments],
        env=environment(), text=True, capture_output=True, check=False, umask=umask,
    )  # fmt: skip


@pytest.mark.slow
def test_a_session_of_the_command_line_leaves_nothing_for_other_users_and_an_export_is_the_users(
    tmp_path: Path,
) -> None:
    home = quick_home(tmp_path / "home")
    (home / "SANDBOX.md").chmod(0o644)
    done = command("tune", "demo", "--trials", "1", "--threads", "1", "--home", str(home), "--json")
    assert done.returncode == 0, done.stderr
    assert open_to_others(home) == []
    written = [path for path in (home / ".virtualmle").rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"ranks.npy", "result.json", "items.npy", "test.sealed", "looks.db"}
    assert mode(home / "memory.db") == 0o600 and mode(home / "SANDBOX.md") == 0o644
    assert mode(home / ".virtualmle") == 0o700
    for arguments, umask in ((["export", "demo-sasrec-1"], 0o022), (["export", "demo-sasrec-1", "--refit"], 0o027)):
        model = tmp_path / f"model-{umask}"
        done = command(*arguments, str(model), "--home", str(home), umask=umask)
        assert done.returncode == 0, done.stderr
        assert mode(model) == 0o777 & ~umask
        assert {mode(path) for path in model.iterdir()} == {0o666 & ~umask}


def test_the_python_interface_makes_an_existing_home_private(tmp_path: Path) -> None:
    (tmp_path / ".virtualmle").mkdir()
    assert mode(tmp_path / ".virtualmle") == 0o755
    ws = Workspace.open(tmp_path)
    names = [path.name for path in tmp_path.glob("memory.db*")]
    assert len(names) > 1
    assert {mode(tmp_path / name) for name in names} == {0o600}
    assert mode(tmp_path / ".virtualmle") == 0o700
    ws.close()


def test_a_vault_makes_its_home_private_and_its_keys_too(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.public_key()
    assert {mode(path) for path in vault.directory.iterdir()} == {0o600}
    assert mode(vault.directory) == mode(vault.directory.parent) == 0o700


def test_doctor_finds_what_others_may_read_and_mends_it(tmp_path: Path) -> None:
    state = tmp_path / ".virtualmle"
    (state / "sessions").mkdir(parents=True)
    for path in (tmp_path / "memory.db", state / "sessions" / "ranks.npy", tmp_path / "notes.txt"):
        path.write_bytes(b"x")
    os.symlink(tmp_path / "notes.txt", state / "link")
    found = _permissions(tmp_path)
    assert found == Finding("permissions", "fail", found.detail)
    assert "4 paths (memory.db, .virtualmle, .virtualmle/sessions, …)" in found.detail and "--mend" in found.detail
    assert mend_permissions(tmp_path) == 4
    assert _permissions(tmp_path).status == "ok"
    assert mode(state / "sessions" / "ranks.npy") == 0o600 and mode(state) == 0o700
    assert mode(tmp_path / "notes.txt") == 0o644  # the user's own file
    (state / "sessions" / "ranks.npy").chmod(0o444)
    assert _permissions(tmp_path).status == "warn"
    assert command("doctor", "--mend", "--home", str(tmp_path)).stderr.startswith("permissions of 1 file changed")
    assert mode(state / "sessions" / "ranks.npy") == 0o400


def test_files_of_the_user_are_created_with_the_users_umask(tmp_path: Path) -> None:
    os.umask(0o002)
    permissions.keep_private()
    permissions.keep_private()  # a second call must not take the private umask for the user's
    write_bytes(tmp_path / "private", b"")
    with permissions.as_the_user_set():
        write_bytes(tmp_path / "public", b"")
        write_bytes(tmp_path / "secret", b"", 0o600)
    write_bytes(tmp_path / "private again", b"")
    assert [mode(tmp_path / name) for name in ("private", "public", "secret", "private again")] == [
        0o600, 0o664, 0o600, 0o600,
    ]  # fmt: skip
