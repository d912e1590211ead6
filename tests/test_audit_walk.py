"""What the walk over the audit log sees: every kind of edit behind the back of the program."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recorded_home import (
    RecordedHome,
    build,
    freeze,
    open_home,
    open_session,
    raw_log,
    register,
    request_of,
    reveal,
    run_trial,
)
from virtualmle.cli.record_checks import check_records
from virtualmle.examiner.audit import AuditLog
from virtualmle.memory.records import TrialOutcome
from virtualmle.tools.recording import (
    extend_recorded,
    finish_recorded,
    record_dataset,
    record_removal,
    start_recorded,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> RecordedHome:
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture
def world(built: RecordedHome, tmp_path: Path) -> RecordedHome:
    """A copy of the home with a revealed session; checked to be in order."""
    home = Path(shutil.copytree(built.home, tmp_path / "home"))
    world = RecordedHome(home, built.session, built.log)
    assert world.failures() == [] and world.notes() == []
    return world


def test_a_session_leaves_its_entries_in_order(world: RecordedHome) -> None:
    entries = AuditLog(world.vault).entries()
    kinds = [entry.kind for entry in entries]
    assert kinds == [
        "began", "keys", "registered", "opened", "admitted", "verdict", "admitted", "verdict", "frozen", "look",
        "revealed",
    ]  # fmt: skip
    status, detail = check_records(world.home)
    assert status == "ok" and "key of the receipts" in detail
    assert "11 entries in the audit log, recorded from 20" in detail


def rename_session(world: RecordedHome) -> None:
    world.sql("PRAGMA foreign_keys = OFF", "UPDATE sessions SET id = 'shop-sasrec-9'")


EDITS: dict[str, tuple[Callable[[RecordedHome], None], str]] = {
    "a better metric": (
        lambda w: w.sql("""UPDATE trials SET metrics = '{"ndcg@10": 0.99}' WHERE handle = 't002'"""),
        r"trial t002 of shop-sasrec-1: the recorded NDCG@10 0.99 is not the one of its verdict in the audit log "
        r"\(entry 8: 0.05\)",
    ),
    "another verdict": (
        lambda w: w.sql("UPDATE trials SET verdict = 'discard' WHERE handle = 't001'"),
        "the recorded verdict 'discard'",
    ),
    "another z": (lambda w: w.sql("UPDATE trials SET z = 9.0 WHERE handle = 't001'"), "its row was changed after"),
    "another configuration": (
        lambda w: w.sql("UPDATE trials SET config = json_set(config, '$.lr', 0.5) WHERE handle = 't001'"),
        "its row was changed after",
    ),
    "a deleted trial": (
        lambda w: w.sql("DELETE FROM trials WHERE handle = 't001'"), "t001 .* was admitted .*its row was deleted",
    ),
    "an added trial": (
        lambda w: w.sql("CREATE TEMP TABLE copy AS SELECT * FROM trials WHERE handle = 't001'",
                        "UPDATE copy SET handle = 't003', number = 3, ended = 3",
                        "INSERT INTO trials SELECT * FROM copy"),
        "trial t003 .* has not admitted it",
    ),
    "another seed": (lambda w: w.sql("UPDATE sessions SET seed = 7"), "its seed is not the one of entry 4"),
    "another page": (
        lambda w: w.sql("UPDATE sessions SET protocol_text = protocol_text || ' '"), "its protocol is not the one",
    ),
    "a larger budget": (lambda w: w.sql("UPDATE sessions SET max_trials = 50"), "its budget is not the one of entry 4"),
    "a session opened again": (
        lambda w: w.sql("UPDATE sessions SET state = 'open', selected = NULL, frozen_at = NULL"),
        "entry 11 shows that it was closed",
    ),
    "another choice": (lambda w: w.sql("UPDATE sessions SET selected = 't001'"), "t001 is selected, but entry 9"),
    "a void session": (lambda w: w.sql("UPDATE sessions SET state = 'void'"), "is void, but entry 11 says revealed"),
    "another name": (rename_session, "shop-sasrec-9 of memory.db is not in the audit log"),
    "a deleted look": (
        lambda w: w.sql("DELETE FROM look", file="looks.db"), "the look of session .* is not in the look ledger",
    ),
    "another number of looks": (
        lambda w: w.sql("UPDATE look SET look = 2", file="looks.db"), "has the number 2 in the look ledger, but 1",
    ),
    "a look at another content": (
        lambda w: w.sql("UPDATE look SET fingerprint = 'ab'", file="looks.db"), "its row in the look ledger",
    ),
    "a look without its sketch": (
        lambda w: w.sql("UPDATE look SET sketch = x'00'", file="looks.db"), "its row in the look ledger",
    ),
    "no log and no anchor": (
        lambda w: remove(w, "audit.jsonl", "audit_head"), "the audit log and its anchor were removed",
    ),
    "no log, anchor and key of the log": (
        lambda w: remove(w, "audit.jsonl", "audit_head", "audit_key"), "receipt of session .* the log was replaced",
    ),
    "an added look": (
        lambda w: w.sql("INSERT INTO look (session, dataset, dataset_id, fingerprint, look, at) "
                        "SELECT 'other', dataset, dataset_id, fingerprint, 2, at FROM look", file="looks.db"),
        "look 2 of session other is in the look ledger, but not in the audit log",
    ),
    "no memory": (lambda w: (w.home / "memory.db").unlink(), "in the audit log .*, but not in memory.db"),
    "other ranks": (
        lambda w: (w.home / ".virtualmle/sessions/shop-sasrec-1/t002/ranks.npy").write_bytes(b"x"),
        "t002 .*: its ranks.npy is not the one of its verdict",
    ),
    "another result": (
        lambda w: edit_json(w.vault / "revealed" / "shop-sasrec-1.json", "metrics"), "changed after the look",
    ),
    "no result": (lambda w: (w.vault / "revealed" / "shop-sasrec-1.json").unlink(), "result .* is missing"),
    "another seal": (
        lambda w: replace(w.home / ".virtualmle/data/shop/test.sealed"), "the seal of dataset shop is not the one",
    ),
    "another manifest": (
        lambda w: edit_json(w.home / ".virtualmle/data/shop/manifest.json", "profile"), "the manifest of dataset shop",
    ),
    "other validation targets": (
        lambda w: replace(w.home / ".virtualmle/data/shop/valid_items.npy"), "shop: .*valid_items.npy.* damaged",
    ),
    "another model": (
        lambda w: replace(w.home / ".virtualmle/sessions/shop-sasrec-1/t002/checkpoint.safetensors"),
        "trial t002 of shop-sasrec-1: .*checkpoint.safetensors is not the one that was signed",
    ),
    "another key of receipts": (
        lambda w: (w.vault / "receipt_key").write_bytes(bytes(32)), "the key 'receipts' of the vault",
    ),
    "another key of seals": (lambda w: (w.vault / "public_key").write_bytes(bytes(32)), "the key 'seal' of the vault"),
    "a changed receipt": (
        lambda w: edit_json(w.vault / "receipts" / "shop-sasrec-1.json", "choice"), "was not signed by this vault",
    ),
}  # fmt: skip


def edit_json(path: Path, name: str) -> None:
    content = json.loads(path.read_bytes())
    content[name] = {**content[name], "ndcg@10": 0.99}
    path.chmod(0o600)
    path.write_text(json.dumps(content), encoding="utf-8")


def replace(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def remove(world: RecordedHome, *names: str) -> None:
    for name in names:
        (world.vault / name).unlink()


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_seen_and_named(world: RecordedHome, name: str) -> None:
    edit, expected = EDITS[name]
    edit(world)
    found = world.failures()
    assert any(re.search(expected, text) for text in found), found
    assert check_records(world.home)[0] == "fail"


def test_a_vault_that_was_set_back_is_seen_by_the_receipt(tmp_path: Path) -> None:
    world = build(tmp_path, until="trials")
    shutil.copytree(world.home, tmp_path / "before")
    ws = open_home(world.home)
    with ws.memory:
        freeze(ws, world.session, "t002")
        reveal(ws, world.session, "t002")
    before = RecordedHome(tmp_path / "before", world.session, world.log)
    assert before.failures() == []  # everything was set back, so that nothing here knows of the look
    (before.vault / "receipts").mkdir()
    shutil.copy(world.vault / "receipts" / "shop-sasrec-1.json", before.vault / "receipts")
    assert any("names another entry" in text for text in before.failures())


def test_a_home_from_before_the_log_is_adopted_and_checked_from_then_on(world: RecordedHome) -> None:
    for name in ("audit.jsonl", "audit_head", "audit_key", "receipt_key"):
        (world.vault / name).unlink()
    shutil.rmtree(world.vault / "receipts")
    assert world.failures() == [] and "not recorded yet" in check_records(world.home)[1]
    ws = open_home(world.home)
    with ws.memory:
        second = open_session(ws)
        run_trial(ws, second, 16, 0.04)
    entries = AuditLog(world.vault).entries()
    assert [e.kind for e in entries[:3]] == ["adopted", "registered", "adopted"] and entries[0].body["sessions"] == 1
    assert world.failures() == [] and world.notes() == []
    assert "1 earlier session adopted" in check_records(world.home)[1]
    world.sql("UPDATE trials SET z = 3.0 WHERE session = 'shop-sasrec-1' AND handle = 't001'")
    assert world.failures() == [
        "trial t001 of shop-sasrec-1: its row was changed after the audit log had adopted it"
    ]


def test_an_open_session_that_was_adopted_goes_on(tmp_path: Path) -> None:
    world = build(tmp_path, until="trials")
    for name in ("audit.jsonl", "audit_head", "audit_key"):
        (world.vault / name).unlink()
    ws = open_home(world.home)
    with ws.memory:
        run_trial(ws, world.session, 64, 0.06)
        freeze(ws, world.session, "t003")
        reveal(ws, world.session, "t003")
    assert world.failures() == [] and world.notes() == []
    assert (world.vault / "receipts" / "shop-sasrec-1.json").exists()


def test_an_extension_is_recorded(tmp_path: Path) -> None:
    world = build(tmp_path, until="trials")
    ws = open_home(world.home)
    with ws.memory:
        extend_recorded(world.home, ws.memory, world.session, 3, 10.0)
    assert world.failures() == []
    world.sql("UPDATE sessions SET max_trials = 80")
    assert any("its budget" in text for text in world.failures())


def test_datasets_are_recorded_once_and_again_when_they_change(world: RecordedHome) -> None:
    record_dataset(world.home, "shop")
    assert len(AuditLog(world.vault).entries()) == 11
    record_removal(world.home, "shop")
    shutil.rmtree(world.home / ".virtualmle" / "data" / "shop")
    assert world.failures() == []
    register(world.home, raw_log(world.home / "shop.csv"))
    assert world.failures() == [] and "is not in the audit log yet" in world.notes()[0]
    record_dataset(world.home, "shop")
    assert [entry.kind for entry in AuditLog(world.vault).entries()][11:] == ["removed", "registered"]
    assert world.notes() == []


BUSY = """
import sys
from pathlib import Path
from tests.recorded_home import open_home, request_of
from virtualmle.memory.records import TrialOutcome
from virtualmle.tools.recording import finish_recorded, start_recorded
ws = open_home(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    trial = start_recorded(ws, request_of("shop-sasrec-1", 64))
    finish_recorded(ws, "shop-sasrec-1", trial.handle, TrialOutcome(status="cancelled"))
"""


def child(program: str, *arguments: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", program, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_the_walk_raises_no_alarm_beside_a_process_that_runs_trials(tmp_path: Path) -> None:
    world = build(tmp_path, until="trials")
    with child(BUSY, str(world.home)) as busy:
        assert busy.stdout is not None and busy.stdout.readline() == "ready\n"
        try:
            assert [world.failures() for _ in range(6)] == [[]] * 6
        finally:
            busy.kill()
    assert len(world.lines()) > 12


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.recorded_home import open_home, request_of, freeze
from virtualmle.tools import recording
from virtualmle.tools.workspace import Workspace
from virtualmle.examiner.audit import AuditLog
from virtualmle.memory.records import TrialOutcome
ws = open_home(Path(sys.argv[1]))
append = AuditLog.append
def append_and_die(self, draft):
    entry = append(self, draft)
    if entry.kind == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    return entry
AuditLog.append = append_and_die
if sys.argv[2] == "frozen":
    freeze(ws, "shop-sasrec-1", "t002")
trial = recording.start_recorded(ws, request_of("shop-sasrec-1", 64))
recording.finish_recorded(ws, "shop-sasrec-1", trial.handle, TrialOutcome(status="cancelled"))
"""


@pytest.mark.parametrize(
    ("kind", "says"),
    [("admitted", "trial t003 of"), ("verdict", "the verdict of trial t003"), ("frozen", "the freeze of")],
)
def test_a_kill_between_entry_and_row_is_a_note_and_the_session_goes_on(tmp_path: Path, kind: str, says: str) -> None:
    world = build(tmp_path, until="trials")
    with child(KILLED, str(world.home), kind) as killed:
        assert killed.wait(timeout=120) == -signal.SIGKILL
    assert world.failures() == []
    (note,) = world.notes()
    assert note.startswith(says) and "a process was killed before it was stored" in note
    ws = open_home(world.home)
    with ws.memory:
        if kind == "admitted":  # the next trial has the same handle
            assert start_recorded(ws, request_of(world.session, 64)).handle == "t003"
        if kind != "frozen":
            assert finish_recorded(ws, world.session, "t003", TrialOutcome(status="cancelled"))
        freeze(ws, world.session, "t002")
        reveal(ws, world.session, "t002")
    assert world.notes() == [] and world.failures() == []
