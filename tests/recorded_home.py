"""A home with a recorded session whose trials ran no worker: real memory.db, vault, audit log and sealed dataset."""

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from virtualmle.data.atomic import write_json
from virtualmle.data.catalogue import Catalogue
from virtualmle.data.prepared import PreparedDataset
from virtualmle.data.reading import Reading
from virtualmle.examiner.audit import AuditLog
from virtualmle.examiner.ledger import Ledger
from virtualmle.examiner.looking import log_look
from virtualmle.examiner.main import opening_of
from virtualmle.examiner.request import TestResult
from virtualmle.examiner.unseal import open_test
from virtualmle.examiner.vault import OWNER_ONLY, Vault
from virtualmle.memory.records import SessionRecord, TrialOutcome, TrialRecord
from virtualmle.models.config import fingerprint, make_config, train_hash
from virtualmle.tools.auditing import walk_home
from virtualmle.tools.recording import end_recorded, finish_recorded, freeze_recorded, open_recorded, start_recorded
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.training.signature import sign_as_it_is
from virtualmle.training.spec import read_spec

LOG_ROWS = [(f"u{u}", f"i{(u * 7 + e * e) % 23}", 1_600_000_000 + 1000 * e + u) for u in range(60) for e in range(9)]


@dataclass(frozen=True)
class RecordedHome:
    """The paths and the session of such a home."""

    home: Path
    session: str
    log: Path  # the raw log of the dataset

    @property
    def vault(self) -> Path:
        return self.home / ".virtualmle" / "vault"

    @property
    def audit(self) -> Path:
        return self.vault / "audit.jsonl"

    def failures(self) -> list[str]:
        return [finding.text for finding in walk_home(self.home) if finding.level == "fail"]

    def notes(self) -> list[str]:
        return [finding.text for finding in walk_home(self.home) if finding.level == "note"]

    def lines(self) -> list[bytes]:
        return self.audit.read_bytes().splitlines(keepends=True)

    def write(self, lines: list[bytes]) -> None:
        self.audit.write_bytes(b"".join(lines))

    def edit(self, number: int, change: Callable[[dict[str, Any]], None]) -> None:
        """Change an entry in the log as someone without the key can; `number` counts from 1."""
        lines = self.lines()
        entry = json.loads(lines[number - 1])
        change(entry)
        lines[number - 1] = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        self.write(lines)

    def sql(self, *statements: str, file: str = "memory.db") -> None:
        """Change memory.db or the ledger as a process of the same user can: without the triggers."""
        path = self.home / file if file == "memory.db" else self.vault / file
        with sqlite3.connect(path) as connection:
            triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for (name,) in triggers:
                connection.execute(f'DROP TRIGGER "{name}"')
            for statement in statements:
                connection.execute(statement)
        connection.close()


def raw_log(path: Path) -> Path:
    """Write the raw log, with columns whose names are not guessed."""
    rows = [f"{user},{item},{time}" for user, item, time in LOG_ROWS]
    path.write_text("\n".join(["who,what,when_it_was", *rows]) + "\n", encoding="utf-8")
    return path


def register(home: Path, log: Path) -> None:
    """Register the raw log as `shop`."""
    reading = Reading(user="who", item="what", timestamp="when_it_was")
    Catalogue(home).add("shop", log, public_key=Vault(home).public_key(), reading=reading)


def open_home(home: Path) -> Workspace:
    home.mkdir(exist_ok=True)
    return Workspace.open(home, settings=Settings(threads=1))


def session_record(ws: Workspace, name: str = "shop") -> SessionRecord:
    data, protocol = ws.manifest(name), ws.protocol
    return SessionRecord(
        id="", dataset=data.name, dataset_id=data.dataset_id, backbone="sasrec", protocol_hash=protocol.sha256,
        protocol_text=protocol.text, max_trials=5, max_train_seconds=60, profile=data.profile,
    )  # fmt: skip


def open_session(ws: Workspace) -> str:
    return open_recorded(ws, session_record(ws), set(), lambda: None).id


def request_of(session: str, hidden_dim: int) -> TrialRecord:
    config = make_config("sasrec", hidden_dim=hidden_dim)
    return TrialRecord(
        session=session, handle="", number=0, base="default", changes={"hidden_dim": hidden_dim},
        config=config.model_dump(), config_hash=fingerprint(config.model_dump()), train_hash=train_hash(config),
    )  # fmt: skip


def run_trial(ws: Workspace, session: str, hidden_dim: int, ndcg: float) -> str:
    """A trial that has ended, with the files of a worker as far as the log names them."""
    started = start_recorded(ws, request_of(session, hidden_dim))
    directory = ws.trial_directory(session, started.handle)
    directory.mkdir(parents=True)
    np.save(directory / "ranks.npy", np.arange(1, 61, dtype=np.int32) + hidden_dim)
    (directory / "result.json").write_text("{}", encoding="utf-8")
    (directory / "checkpoint.safetensors").write_bytes(bytes([hidden_dim]) * 100)
    write_json(directory / "spec.json", {
        "session": session, "trial": started.handle, "dataset_dir": "", "config": started.config, "seed": 0,
    })  # fmt: skip
    key = ws.session_key(session)
    sign_as_it_is(directory, key, read_spec(directory), dataset_id=ws.manifest("shop").dataset_id, by="worker")
    outcome = TrialOutcome(
        status="finished", verdict="keep", reason="best so far", metrics={"ndcg@10": ndcg}, ndcg_se=0.01,
        incumbent_before=None, parameters=hidden_dim, train_seconds=1.5,
    )  # fmt: skip
    assert finish_recorded(ws, session, started.handle, outcome)
    return started.handle


def examine(ws: Workspace, session: str, trial: str) -> TestResult:
    """Take the look as the examiner does, without a model: the same entries, ledger and result file."""
    vault, directory = Vault(ws.home), ws.catalogue.path("shop")
    dataset = PreparedDataset.load(directory)
    targets = open_test(directory, vault.private_key(), dataset.dataset_id, dataset.num_users)
    log_look(vault.directory, session, trial, dataset.name, dataset.dataset_id)
    look = Ledger(vault.directory).record(session, "shop", dataset.dataset_id, targets.fingerprint)
    result = TestResult(
        session=session, trial=trial, dataset="shop", dataset_id=dataset.dataset_id,
        metrics={"ndcg@10": 0.0321, "recall@10": 0.07}, ndcg10_se=0.01, ties=0, num_users=60, look=look.look,
        fingerprint_short=targets.fingerprint[:12], at=look.at, opening=opening_of(targets, dataset.dataset_id),
    )  # fmt: skip
    path = vault.revealed_path(session)
    path.parent.mkdir(exist_ok=True)
    write_json(path, result.model_dump(), OWNER_ONLY)
    return result


def freeze(ws: Workspace, session: str, trial: str) -> None:
    record, selected = ws.memory.sessions.get(session), ws.memory.trials.get(session, trial)
    assert freeze_recorded(ws, record, selected, [ws.trial_directory(session, trial)])


def reveal(ws: Workspace, session: str, trial: str) -> TestResult:
    ws.memory.sessions.set_state(session, "frozen", "attempted")
    result = examine(ws, session, trial)
    end_recorded(ws, session, result)
    return result


def build(folder: Path, *, until: str = "revealed") -> RecordedHome:
    """A home whose session has two trials; until: `trials`, `frozen` or `revealed`."""
    home = folder / "home"
    ws = open_home(home)
    with ws.memory:
        log = raw_log(folder / "shop.csv")
        register(home, log)
        session = open_session(ws)
        run_trial(ws, session, 16, 0.04)
        selected = run_trial(ws, session, 32, 0.05)
        if until != "trials":
            freeze(ws, session, selected)
        if until == "revealed":
            reveal(ws, session, selected)
    assert AuditLog(home / ".virtualmle" / "vault").has_begun
    return RecordedHome(home, session, log)
