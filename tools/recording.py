"""Writes to memory.db that the audit log records: sessions, budgets, trials, verdicts, freezes and ends of sessions.

Each function appends its entry inside the transaction of memory.db, before the commit. Entries are therefore in the
order of the commits, and a row without its entry is a row that another program has written. A process that is killed
before the commit leaves an entry without a row, which `examiner/walk.py` recognises: it is the last of its session, and
the step is done and recorded again by whichever process comes next.

A home that was used before its log began is adopted: the first entries state what is there.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from .. import __version__
from ..data.catalogue import Catalogue
from ..data.errors import DataError, VirtualMLEError
from ..examiner.audit import AuditLog
from ..examiner.entries import Draft, Entry, digest_of
from ..examiner.ledger import ContentSketch, Ledger
from ..examiner.receipts import public_key
from ..examiner.request import Beside, TestResult, has_looked, read_revealed
from ..examiner.vault import Vault
from ..examiner.walk import SHORT_DIGITS
from ..memory.records import Choice, SessionRecord, TrialOutcome, TrialRecord
from ..memory.store import Memory
from ..training.spec import engine_version, read_spec
from .receipts import issue_receipt
from .recorded_facts import (
    budget_of,
    checkpoint_hash,
    dataset_facts,
    file_hashes,
    ndcg10_of,
    session_facts,
    trial_digest,
)
from .workspace import Workspace

logger = logging.getLogger(__name__)


def open_recorded(
    ws: Workspace, record: SessionRecord, taken: Collection[str], check: Callable[[], None]
) -> SessionRecord:
    """Store a new session, as `Sessions.open` does, with its entry; its dataset is recorded first, unless it is.

    `check` raises if the session may not be opened. No other process opens one between the check and the insert.
    """
    if not record.replay:
        record_dataset(ws.home, record.dataset, ws.memory)
    log = log_of(ws.home, ws.memory)
    with ws.memory.database.writing():
        check()
        session = ws.memory.sessions.open(record, taken=taken)
        body = {"facts": session_facts(session), "budget": budget_of(session), "code": engine_version()}
        log.append(Draft(kind="opened", session=session.id, body=body))
    return session


def extend_recorded(home: Path, memory: Memory, session: str, trials: int, seconds: float) -> SessionRecord:
    """Extend a session's budget, as `Sessions.extend` does, with its entry."""
    log = log_of(home, memory)
    with memory.database.writing():
        extended = memory.sessions.extend(session, trials, seconds)
        log.append(Draft(kind="extended", session=extended.id, body={"budget": budget_of(extended)}))
    return extended


def start_recorded(ws: Workspace, request: TrialRecord, *, seen: int | None = None) -> TrialRecord:
    """Start a trial, as `Trials.start` does, with its entry."""
    log = log_of(ws.home, ws.memory)
    with ws.memory.database.writing():
        trial = ws.memory.trials.start(request, seen=seen)
        body = {"trial": trial.handle, "base": trial.base, "config_hash": trial.config_hash}
        log.append(Draft(kind="admitted", session=trial.session, body=body))
    return trial


def finish_recorded(
    ws: Workspace, session: str, handle: str, outcome: TrialOutcome, choice: Choice | None = None, *,
    judged: bool = False,
) -> bool:  # fmt: skip
    """End a trial, as `Trials.finish` does, with its entry if this call ended it."""
    log, files = log_of(ws.home, ws.memory), file_hashes(ws.trial_directory(session, handle))
    with ws.memory.database.writing():
        if not ws.memory.trials.finish(session, handle, outcome, choice, judged=judged):
            return False
        log.append(_verdict(ws.memory.trials.get(session, handle), files))
    return True


def freeze_recorded(
    ws: Workspace,
    session: SessionRecord,
    selected: TrialRecord,
    directories: Sequence[Path],
    beside: Beside | None = None,
) -> bool:
    """Freeze a session, as `Sessions.set_state` does, with its choice as entry, and issue the receipt of it.

    directories: of the models that will be examined. beside: the default, which is examined with them.
    """
    choice = {
        "selected": selected.handle,
        "config": selected.config,
        "config_hash": selected.config_hash,
        "validation": selected.outcome.metrics if selected.outcome else {},
        "checkpoints": {directory.name: checkpoint_hash(directory) for directory in directories},
        "members": _members(directories),
        "code": engine_version(),
    }
    if beside:
        hashes = {directory.name: checkpoint_hash(directory) for directory in beside.models}
        choice["beside"] = {"trial": beside.trial, "checkpoints": hashes}
    log = log_of(ws.home, ws.memory)
    with ws.memory.database.writing():
        if not ws.memory.sessions.set_state(session.id, "open", "frozen", selected=selected.handle):
            return False
        log.append(Draft(kind="frozen", session=session.id, body=choice))
    _issue(ws, session.id)
    return True


def end_recorded(ws: Workspace, session: str, result: TestResult | None) -> None:
    """Take an attempted session to its end: revealed, or void without a result. Issues the receipt of it."""
    log, ledger = log_of(ws.home, ws.memory), Ledger(Vault(ws.home).directory)
    look, row = ledger.find(session), ledger.row_digests().get(session)
    with ws.memory.database.writing():
        if not ws.memory.sessions.set_state(session, "attempted", "revealed" if result else "void"):
            return
        number = look.look if look else result.look if result else None  # this home's number, if it counts the look
        digest = {"result": digest_of(result.model_dump())} if result else {}
        body = {"look": number, "is_here": look is not None, **({"row": row} if row else {}), **digest}
        log.append(Draft(kind="revealed" if result else "void", session=session, body=body))
    _issue(ws, session)


def bring_back_recorded(ws: Workspace, session: SessionRecord, fingerprint: str, sketch: ContentSketch) -> None:
    """Add a look that was taken elsewhere to this home's audit log and ledger, unless a call before has done so.

    fingerprint: of the complete content, 64 hex digits, as the holder's examiner has found it.
    """
    if has_looked(ws.home, session.id):
        return
    body = {"trial": session.selected, "dataset": session.dataset, "dataset_id": session.dataset_id, "by": "holder"}
    log_of(ws.home, ws.memory).append(Draft(kind="look", session=session.id, body=body))
    Ledger(Vault(ws.home).directory).record(session.id, session.dataset, session.dataset_id, fingerprint, sketch)


def record_dataset(home: Path, name: str, memory: Memory | None = None) -> None:
    """Record the registered dataset `name` as it is now, unless its last entry says the same. Raises DataError."""
    facts = dataset_facts(Catalogue(home).path(name))
    log = log_of(home, memory)
    entries = log.entries()
    keys = {"seal": Vault(home).public_key().hex(), "receipts": public_key(Vault(home))}
    if not any(entry.kind == "keys" and entry.body == keys for entry in entries):
        log.append(Draft(kind="keys", body=keys))
    last = _last_of(entries, name)
    if last is None or last.kind == "removed":
        log.append(Draft(kind="registered", body=facts))
    elif last.body != facts:
        log.append(Draft(kind="replaced", body=facts))


def record_removal(home: Path, name: str) -> None:
    """Record that a dataset is about to be removed; without effect if the log does not have it."""
    log = log_of(home)
    if _last_of(log.entries(), name):
        log.append(Draft(kind="removed", body={"dataset": name}))


def log_of(home: Path, memory: Memory | None = None) -> AuditLog:
    """The audit log of a home; if it has not begun yet, what the home holds is adopted. Raises SealError, HomeError.

    memory: the open memory.db of the home, if the caller has one.
    """
    log, path = AuditLog(Vault(home).directory), home / "memory.db"
    if log.has_begun:
        return log
    if memory is None and path.exists():
        with Memory(path) as opened:
            log.begin(lambda: _first_entries(home, opened))
    else:
        log.begin(lambda: _first_entries(home, memory))
    return log


def _last_of(entries: Sequence[Entry], name: str) -> Entry | None:
    """The last entry about a dataset."""
    own = [e for e in entries if e.kind in ("registered", "replaced", "removed") and e.body.get("dataset") == name]
    return own[-1] if own else None


def _first_entries(home: Path, memory: Memory | None) -> list[Draft]:
    """What a home holds when its log begins: its datasets, and the state of each session with its trials."""
    sessions = memory.sessions.all() if memory else []
    looks = {look.session: look.look for look in Ledger(Vault(home).directory).looks()}
    about = {"virtualmle": __version__}
    if memory is None or not (sessions or looks):
        return [Draft(kind="began", body=about)]
    drafts = [*_registered(home), *(_adopted(home, memory, session, looks.get(session.id)) for session in sessions)]
    lost = set(looks) - {session.id for session in sessions}
    drafts += [Draft(kind="adopted", session=name, body={"look": looks[name]}) for name in sorted(lost)]
    counts = {"sessions": len(sessions), "looks": len(looks), "digest": digest_of([draft.body for draft in drafts])}
    return [Draft(kind="adopted", body=about | counts), *drafts]


def _registered(home: Path) -> list[Draft]:
    catalogue, drafts = Catalogue(home), []
    for name in catalogue.names():
        try:
            drafts.append(Draft(kind="registered", body=dataset_facts(catalogue.path(name))))
        except DataError as error:  # a damaged dataset must not keep the log from beginning
            logger.warning("dataset %s is not in the audit log: %s", name, error)
    return drafts


def _adopted(home: Path, memory: Memory, session: SessionRecord, look: int | None) -> Draft:
    trials = [*memory.trials.all(session.id), *memory.trials.repetitions(session.id)]
    result = read_revealed(home, session.id) if session.state == "revealed" else None
    body = {
        "facts": session_facts(session),
        "budget": budget_of(session),
        "state": session.state,
        "selected": session.selected,
        "trials": {trial.handle: trial_digest(trial)[:SHORT_DIGITS] for trial in trials},
        "look": look,
        "result": digest_of(result.model_dump()) if result else None,
    }
    return Draft(kind="adopted", session=session.id, body=body)


def _verdict(trial: TrialRecord, files: dict[str, str]) -> Draft:
    body = {
        "trial": trial.handle,
        "status": trial.status,
        "verdict": trial.outcome.verdict if trial.outcome else None,
        "ndcg10": ndcg10_of(trial),
        "digest": trial_digest(trial),
        "files": files,
    }
    return Draft(kind="verdict", session=trial.session, body=body)


def _members(directories: Sequence[Path]) -> dict[str, dict[str, str]]:
    """The hashes of the files of an ensemble's members, by name; empty for any other trial."""
    return {member.name: member.files for directory in directories for member in read_spec(directory).members}


def _issue(ws: Workspace, session: str) -> None:
    """Issue a receipt; if that fails, the session is closed all the same, and `sessions receipt` issues it later."""
    try:
        issue_receipt(ws.home, ws.memory.sessions.get(session))
    except VirtualMLEError as error:
        logger.warning("session %s has no receipt yet: %s", session, error)
