"""The problems that `virtualmle doctor` finds."""

import os
from pathlib import Path

import pytest

from tests.quick_home import QUICK_SANDBOX
from virtualmle.cli import checks
from virtualmle.cli.app import main
from virtualmle.cli.checks import Finding, run_checks
from virtualmle.data.catalogue import Catalogue
from virtualmle.examiner.vault import Vault


@pytest.fixture(autouse=True)
def quick_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the torch probe, which would take seconds per test; test_cli_sessions.py runs the real one once."""
    probe = 'print(\'{"torch": "2", "triton": null, "threads": 1, "cuda": null, "device": null}\')'
    monkeypatch.setattr(checks, "TORCH_PROBE", probe)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the demo dataset."""
    Catalogue(tmp_path).ensure_demo(Vault(tmp_path).public_key())
    return tmp_path


def found(home: Path, check: str) -> Finding:
    return next(finding for finding in run_checks(home) if finding.check == check)


def test_a_new_home_passes_and_is_not_changed(tmp_path: Path) -> None:
    assert {finding.status for finding in run_checks(tmp_path / "new")} <= {"ok", "warn"}
    assert list(tmp_path.iterdir()) == []


def test_unsealed_test_targets_are_found(home: Path) -> None:
    assert found(home, "plain targets").status == "ok"
    dataset = home / ".virtualmle" / "data" / "demo"
    (dataset / "test_items.npy").write_bytes(b"\x93NUMPY")
    planted = found(home, "plain targets")
    assert planted.status == "fail" and "demo/test_items.npy" in planted.detail


@pytest.mark.parametrize(
    "content", [b"\x93NUMPY and so on", b"\x07\x00\x00\x00" * 1000], ids=["array file", "raw int32"]
)
def test_a_sealed_file_without_ciphertext_is_found(home: Path, content: bytes) -> None:
    (home / ".virtualmle" / "data" / "demo" / "test.sealed").write_bytes(content)
    assert found(home, "plain targets").status == "fail"


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
@pytest.mark.parametrize("name", ["", "private_key"])
def test_a_vault_that_other_users_can_read_is_found(home: Path, name: str) -> None:
    assert found(home, "vault").status == "ok"
    (home / ".virtualmle" / "vault" / name).chmod(0o755)
    assert found(home, "vault").status == "fail"


def test_a_malformed_protocol_fails_with_its_line_number(tmp_path: Path) -> None:
    (tmp_path / "SANDBOX.md").write_text(QUICK_SANDBOX.replace("| `patience` | 10 |", "| `patience` | 0 |"))
    finding = found(tmp_path, "protocol")
    assert finding.status == "fail" and "SANDBOX.md:" in finding.detail


def test_an_unreadable_directory_fails_the_check_and_not_the_doctor(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checks, "_others_may_read", denied)
    finding = found(home, "vault")
    assert finding.status == "fail" and "Permission denied" in finding.detail


def test_a_damaged_memory_fails(tmp_path: Path) -> None:
    (tmp_path / "memory.db").write_bytes(b"not a database" * 100)
    assert found(tmp_path, "memory").status == "fail"


def test_a_failing_import_of_torch_fails_the_check_and_not_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "TORCH_PROBE", "raise ImportError('libcudart is missing')")
    assert "libcudart is missing" in found(tmp_path, "torch").detail
    assert found(tmp_path, "memory").status == "ok"


def test_variables_that_a_stdio_server_does_not_get_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    finding = found(tmp_path, "environment")
    assert finding.status == "warn" and '"CUDA_VISIBLE_DEVICES": "1"' in finding.detail


def test_an_operator_key_gives_isolation_level_3(tmp_path: Path) -> None:
    Vault(tmp_path).use_operator_key(bytes(range(32)))
    assert found(tmp_path, "isolation").detail.startswith("L3")


def test_a_home_whose_keys_are_gone_fails_the_check_and_not_the_doctor(home: Path) -> None:
    for name in ("private_key", "public_key"):
        (home / ".virtualmle" / "vault" / name).unlink()
    finding = found(home, "isolation")
    assert finding.status == "fail" and "restore private_key and public_key" in finding.detail


def test_the_command_prints_a_table_and_exits_with_1_if_a_check_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "memory.db").write_bytes(b"not a database" * 100)
    with pytest.raises(SystemExit) as left:
        main(["doctor", "--home", str(tmp_path)])
    assert left.value.code == 1 and "fail" in capsys.readouterr().out
