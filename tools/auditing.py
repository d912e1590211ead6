"""The audit log of a home compared with everything else that the home has recorded."""

from pathlib import Path
from typing import Any

from ..data.catalogue import Catalogue
from ..data.errors import DataError, SealError
from ..examiner.audit import AuditLog
from ..examiner.entries import digest_of
from ..examiner.ledger import Ledger
from ..examiner.receipts import is_signed, known_public_key
from ..examiner.request import read_revealed
from ..examiner.vault import PUBLIC, Vault, file_exists, read_key
from ..examiner.walk import Finding, RecordedSession, RecordedTrial, Records, walk
from ..memory.records import SessionRecord, TrialRecord
from ..memory.store import Memory
from .receipts import stored_receipts
from .recorded_facts import budget_of, dataset_facts, file_hashes, ndcg10_of, session_facts, trial_digest
from .workspace import trial_directory


def walk_home(home: Path) -> list[Finding]:
    """Everything in a home that does not fit to its audit log. Raises HomeError, MemoryStoreError."""
    vault, found = Vault(home), list[Finding]()
    log = AuditLog(vault.directory)
    sessions = _sessions(home)  # before the log: an entry precedes its row, so that no row is without its entry
    looks = Ledger(vault.directory).looks()
    results = {session.id: _result_of(home, session.id) for session in sessions}
    lines, anchor = log.snapshot()
    records = Records(
        sessions=sessions,
        looks=looks,
        results={session: digest for session, digest in results.items() if digest},
        receipts=_receipts(home, found),
        datasets=_datasets(home, found),
        keys=_keys(vault),
    )
    return [*walk(lines, anchor, records), *found]


def _sessions(home: Path) -> list[RecordedSession]:
    path = home / "memory.db"
    if not path.exists():
        return []
    with Memory(path) as memory:
        return [_session(home, memory, session) for session in memory.sessions.all()]


def _session(home: Path, memory: Memory, session: SessionRecord) -> RecordedSession:
    trials = [*memory.trials.all(session.id), *memory.trials.repetitions(session.id)]
    return RecordedSession(
        id=session.id,
        state=session.state,
        selected=session.selected,
        facts=session_facts(session),
        budget=budget_of(session),
        trials=[_trial(home, trial) for trial in trials],
    )


def _trial(home: Path, trial: TrialRecord) -> RecordedTrial:
    is_over = trial.status == "finished"
    return RecordedTrial(
        handle=trial.handle,
        status=trial.status,
        verdict=trial.outcome.verdict if trial.outcome else None,
        ndcg10=ndcg10_of(trial),
        config_hash=trial.config_hash,
        digest=trial_digest(trial),
        files=file_hashes(trial_directory(home, trial.session, trial.handle)) if is_over else {},
    )


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
        except DataError as error:
            found.append(Finding("fail", f"dataset {name}: {error}"))
    return datasets


def _keys(vault: Vault) -> dict[str, str]:
    keys = {"receipts": known_public_key(vault)}
    if file_exists(vault.directory / PUBLIC):
        keys["seal"] = read_key(vault.directory / PUBLIC).hex()
    return {name: key for name, key in keys.items() if key}
