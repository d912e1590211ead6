"""The audit log of a home compared with everything else that the home has recorded."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.catalogue import Catalogue
from ..data.errors import DataError, SealError, TrialError
from ..examiner.audit import AuditLog
from ..examiner.entries import Anchor, Line, digest_of
from ..examiner.ledger import Ledger
from ..examiner.receipts import is_signed, known_public_key
from ..examiner.request import read_revealed
from ..examiner.vault import MAC_KEY, PUBLIC, Vault, file_exists, read_key
from ..examiner.vault_keys import AUDIT_KEY
from ..examiner.walk import Finding, RecordedSession, RecordedTrial, Records, walk
from ..memory.records import SessionRecord, TrialRecord
from ..memory.store import Memory
from ..training.signature import MEASURED, SIGNATURE, check_trial
from ..training.spec import RESULT
from .receipts import stored_receipts
from .recorded_facts import budget_of, dataset_facts, file_hashes, ndcg10_of, session_facts, trial_digest
from .workspace import trial_directory


def walk_home(home: Path) -> list[Finding]:
    """Everything in a home that does not fit to its audit log. Raises HomeError, MemoryStoreError."""
    found: list[Finding] = []
    lines, anchor, records = _moment(home, found)
    sessions = [_with_files(home, session) for session in records.sessions]  # hashing takes long, so without the lock
    records = replace(records, sessions=sessions, datasets=_datasets(home, found), keys=_keys(Vault(home)))
    _check_signed(home, sessions, found)
    return [*walk(lines, anchor, records), *found]


def _moment(home: Path, found: list[Finding]) -> tuple[list[Line], Anchor | None, Records]:
    """Log, memory.db, look ledger, results and receipts as they are at one moment."""
    directory, path = Vault(home).directory, home / "memory.db"
    with ExitStack() as opened:
        # Opened before the log is locked, because opening may wait for a writer, which may wait for the log
        memory = opened.enter_context(Memory(path)) if path.exists() else None
        lines, anchor = opened.enter_context(AuditLog(directory).snapshot())
        sessions = [_session(memory, session) for session in memory.sessions.all()] if memory else []
        results = {session.id: digest for session in sessions if (digest := _result_of(home, session.id))}
        ledger = Ledger(directory)
        return lines, anchor, Records(
            sessions, ledger.looks(), results, _receipts(home, found), rows=ledger.row_digests(),
            has_log_key=file_exists(directory / AUDIT_KEY),
        )  # fmt: skip


def _session(memory: Memory, session: SessionRecord) -> RecordedSession:
    trials = [*memory.trials.all(session.id), *memory.trials.repetitions(session.id)]
    return RecordedSession(
        id=session.id,
        state=session.state,
        selected=session.selected,
        facts=session_facts(session),
        budget=budget_of(session),
        trials=[_trial(trial) for trial in trials],
    )


def _trial(trial: TrialRecord) -> RecordedTrial:
    return RecordedTrial(
        handle=trial.handle,
        status=trial.status,
        verdict=trial.outcome.verdict if trial.outcome else None,
        ndcg10=ndcg10_of(trial),
        config_hash=trial.config_hash,
        digest=trial_digest(trial),
    )


def _with_files(home: Path, session: RecordedSession) -> RecordedSession:
    """The session with the hashes of the files of its finished trials."""
    trials = [
        replace(trial, files=file_hashes(trial_directory(home, session.id, trial.handle)))
        if trial.status == "finished" else trial
        for trial in session.trials
    ]  # fmt: skip
    return replace(session, trials=trials)


def _check_signed(home: Path, sessions: Sequence[RecordedSession], found: list[Finding]) -> None:
    """Add the finished trials with a file, e.g. a checkpoint, that is not the one that their worker has signed.

    Files that were deleted are not missed: nothing can be claimed from them.
    """
    vault = Vault(home)
    if not file_exists(vault.directory / MAC_KEY):
        return
    trials = [(session.id, trial) for session in sessions for trial in session.trials]
    ended = [(session_id, trial.handle) for session_id, trial in trials if trial.status == "finished"]
    for session_id, handle in ended:
        directory = trial_directory(home, session_id, handle)
        present = [name for name in MEASURED if (directory / name).exists()]
        if not all((directory / name).is_file() for name in (SIGNATURE, RESULT)):
            continue
        try:
            check_trial(directory, vault.session_key(session_id), session_id, handle, names=present)
        except TrialError as error:
            found.append(Finding("fail", f"trial {handle} of {session_id}: {error}"))


def _result_of(home: Path, session: str) -> str:
    try:
        result = read_revealed(home, session)
    except SealError:
        return "damaged"
    return digest_of(result.model_dump()) if result else ""


def _receipts(home: Path, found: list[Finding]) -> dict[str, tuple[int, str]]:
    try:
        receipts = stored_receipts(home)
    except SealError as error:
        found.append(Finding("fail", f"a receipt in the vault is damaged: {error}"))
        return {}
    key = known_public_key(Vault(home))
    for session, receipt in receipts.items():
        if receipt.public_key != key or not is_signed(receipt):
            found.append(Finding("fail", f"the receipt of session {session} was not signed by this vault"))
    return {session: (receipt.log.length, receipt.log.head) for session, receipt in receipts.items()}


def _datasets(home: Path, found: list[Finding]) -> dict[str, dict[str, Any]]:
    catalogue, datasets = Catalogue(home), {}
    for name in catalogue.names():
        try:
            datasets[name] = dataset_facts(catalogue.path(name))
            catalogue.load(name)  # compares the arrays and ids with the hashes in the manifest
        except DataError as error:
            found.append(Finding("fail", f"dataset {name}: {error}"))
    return datasets


def _keys(vault: Vault) -> dict[str, str]:
    keys = {"receipts": known_public_key(vault)}
    if file_exists(vault.directory / PUBLIC):
        keys["seal"] = read_key(vault.directory / PUBLIC).hex()
    return {name: key for name, key in keys.items() if key}
