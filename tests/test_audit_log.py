"""The audit log as a file: appended to by several processes, killed in mid-append, and damaged."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from virtualmle.data.errors import SealError
from virtualmle.examiner import audit
from virtualmle.examiner.audit import AuditLog
from virtualmle.examiner.entries import Draft, to_line
from virtualmle.examiner.walk import Records, walk

APPENDING = """
import sys
from pathlib import Path
from virtualmle.examiner.audit import AuditLog
from virtualmle.examiner.entries import Draft
log = AuditLog(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(int(sys.argv[3])):
    log.append(Draft(kind="verdict", session=sys.argv[2], body={"number": number}))
"""


def appending(vault: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", APPENDING, str(vault), name, str(count)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def failures(vault: Path) -> list[str]:
    with AuditLog(vault).snapshot() as (lines, anchor):
        return [finding.text for finding in walk(lines, anchor, Records())]


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    log = AuditLog(tmp_path / "vault")
    for number in range(6):
        log.append(Draft(kind="look", session="s", body={"number": number}))
    return log


def test_a_log_begins_by_itself_and_grows_in_order(log: AuditLog) -> None:
    entries = log.entries()
    assert [entry.seq for entry in entries] == list(range(1, 8))
    assert [entry.kind for entry in entries] == ["began", *["look"] * 6]
    assert all(later.prev == earlier.hash for earlier, later in zip(entries, entries[1:], strict=False))
    assert failures(log.directory) == []
    for path in log.directory.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path


def test_four_processes_append_fifty_entries_each(tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    processes = [appending(vault, f"s{i}", 50) for i in range(4)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    for process in processes:
        assert process.stdout is not None
        process.stdout.close()
    entries = AuditLog(vault).entries()
    assert len(entries) == 201 and failures(vault) == []
    for i in range(4):
        assert [e.body["number"] for e in entries if e.session == f"s{i}"] == list(range(50))


def kill_in_mid_append(vault: Path, seconds: float) -> None:
    process = appending(vault, "killed", 10_000)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("rounds", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_a_log_goes_on_after_its_process_was_killed(tmp_path: Path, rounds: int) -> None:
    vault = tmp_path / "vault"
    for number in range(rounds):
        kill_in_mid_append(vault, 0.011 + 0.0037 * (number % 29))
        assert failures(vault) == []
        AuditLog(vault).append(Draft(kind="look", session="next", body={"number": number}))
    entries = AuditLog(vault).entries()
    assert sum(entry.session == "next" for entry in entries) == rounds
    assert failures(vault) == [] and not any(entry.kind == "damaged" for entry in entries)


def test_an_incomplete_last_line_is_removed_by_the_next_append(log: AuditLog) -> None:
    with log.path.open("ab") as file:
        file.write(b'{"seq": 8, "at": "20')
    assert failures(log.directory) == []
    log.append(Draft(kind="refit"))
    assert [entry.kind for entry in log.entries()][-2:] == ["look", "refit"] and failures(log.directory) == []


def test_an_anchor_that_is_behind_the_log_is_no_damage(log: AuditLog) -> None:
    anchor = (log.directory / "audit_head").read_bytes()
    log.append(Draft(kind="refit"))
    (log.directory / "audit_head").write_bytes(anchor)  # as a kill between the two writes leaves it
    assert failures(log.directory) == []
    log.append(Draft(kind="refit"))
    assert failures(log.directory) == [] and len(log.entries()) == 9


def test_a_log_that_was_cut_off_is_seen_and_stays_seen(log: AuditLog) -> None:
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:4]))
    assert failures(log.directory) == ["the audit log ends with entry 4, but its anchor counts 7: it was cut off"]
    log.append(Draft(kind="refit"))
    found = failures(log.directory)
    assert any("was cut off: its anchor counts 7 entries" in text for text in found)
    assert any("does not follow on entry 4" in text for text in found)


def test_a_log_that_was_removed_is_seen(log: AuditLog) -> None:
    log.path.unlink()
    assert "its anchor counts 7" in failures(log.directory)[0]
    log.begin(lambda: [Draft(kind="began")])
    assert any("its anchor counts 7 entries" in text for text in failures(log.directory))


def test_a_log_that_was_cut_off_together_with_its_anchor_is_seen(log: AuditLog) -> None:
    log.path.write_bytes(b"".join(log.path.read_bytes().splitlines(keepends=True)[:4]))
    (log.directory / "audit_head").unlink()
    assert failures(log.directory) == ["the anchor of the audit log is missing or was changed"]
    log.append(Draft(kind="refit"))
    assert any("the anchor of the audit log was removed" in text for text in failures(log.directory))


@pytest.mark.parametrize("name", ["seq", "at", "kind", "session", "body", "salt", "prev", "hash", "mac"])
def test_a_change_of_any_field_of_an_entry_is_seen(log: AuditLog, name: str) -> None:
    lines = log.path.read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[3])
    entry[name] = {"seq": 5, "kind": "void", "body": {"number": 9}}.get(name, "0" * 64)
    lines[3] = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    log.path.write_bytes(b"".join(lines))
    assert failures(log.directory)


def test_entries_that_were_reordered_removed_or_added_are_seen(log: AuditLog) -> None:
    lines = log.path.read_bytes().splitlines(keepends=True)
    for changed in (
        [*lines[:2], lines[3], lines[2], *lines[4:]],
        [*lines[:2], *lines[3:]],
        [*lines[:3], lines[2], *lines[3:]],
        [*lines[:3], b"{}\n", *lines[3:]],
    ):
        log.path.write_bytes(b"".join(changed))
        assert failures(log.directory)
    log.path.write_bytes(b"".join(lines))
    assert failures(log.directory) == []


def test_a_log_written_with_another_key_is_seen(log: AuditLog, tmp_path: Path) -> None:
    other = AuditLog(tmp_path / "other")
    for _ in range(6):
        other.append(Draft(kind="look", session="s"))
    log.path.write_bytes(other.path.read_bytes())
    assert any("not written with this vault's key" in text for text in failures(log.directory))
    assert any("the log was replaced" in text for text in failures(log.directory))


def test_without_its_key_no_entry_is_authentic_not_even_one_that_is_signed_with_no_key(log: AuditLog) -> None:
    entries = log.entries()
    (log.directory / "audit_key").unlink()
    log.path.write_bytes(b"".join(to_line(entry, b"") for entry in entries))
    assert sum("not written with this vault's key" in text for text in failures(log.directory)) == 7
    log.append(Draft(kind="refit"))
    assert any("the key of the audit log was removed" in text for text in failures(log.directory))


def test_a_link_in_place_of_the_log_is_refused(log: AuditLog, tmp_path: Path) -> None:
    log.path.rename(tmp_path / "elsewhere")
    log.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="cannot be used"):
        log.append(Draft(kind="refit"))


def test_a_lock_that_is_never_released_gives_an_error(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "LOCK_SECONDS", 0.05)
    with log._locked(), pytest.raises(SealError, match="locked by another process"):  # noqa: SLF001 - the lock itself
        log.append(Draft(kind="refit"))
