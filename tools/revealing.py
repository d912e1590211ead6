"""The look of a session in operator mode: on this file system, or on another machine through a bundle.

`finalize` leaves a frozen session whose choice is sealed. Three functions go on from there, all for people's commands;
no tool of an agent imports this module.

    reveal         the holder of the key has access to this home: the examiner runs here, with the key's file
    pack_choice    the holder is elsewhere: everything that the examiner needs, as one file
    bring_back     the holder's answer becomes the result of the session
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from ..data.atomic import write_json
from ..data.errors import HomeError, SealError, SessionError
from ..data.prepared import MANIFEST, SEALED, read_manifest
from ..examiner.answers import Answer, SealedSketch, read_answer
from ..examiner.authenticity import check_signatures
from ..examiner.choice import Choice, hashes_of, pack
from ..examiner.operator_keys import public_key_of
from ..examiner.request import TestResult, has_looked, read_revealed
from ..examiner.vault import OWNER_ONLY, OWNER_ONLY_DIRECTORY, Vault, read_key
from ..memory.records import SessionRecord
from ..training.member_files import beside
from ..training.spec import CHECKPOINT, RESULT, SPEC, read_spec
from .beside import frozen_beside
from .finalize import examined_directories, final_result, look_at_test
from .recording import bring_back_recorded, end_recorded
from .results import FinalResult
from .workspace import Workspace

EXAMINED_FILES = (SPEC, RESULT, CHECKPOINT)


def reveal(ws: Workspace, session: str, key_file: Path) -> FinalResult:
    """Take the look of a frozen session with the private key in `key_file`; a revealed session's result is repeated.

    Raises SessionError for a session that was not finalized, or whose look failed; SealError for a wrong key file.
    """
    record = _frozen(ws, session)
    if record.state in ("revealed", "void"):
        return final_result(ws, record, read_revealed(ws.home, session))
    if public_key_of(read_key(key_file)) != Vault(ws.home).public_key():
        raise SealError(f"{str(key_file)!r} is not the key that this home seals for; check the path of the key")
    ws.session_dataset(record)  # refuses a replaced dataset before the look
    return look_at_test(ws, record, key_file)


def pack_choice(ws: Workspace, session: str, out: Path) -> Choice:
    """Write the sealed choice of a frozen session to `out`.

    Its holder cannot check this home's signatures, so they are checked here. Raises SessionError, SealError.
    """
    record = _frozen(ws, session)
    if has_looked(ws.home, session):
        raise SessionError(f"session {session} has used its look here; see its result with `virtualmle sessions show`")
    choice, sources = _choice_of(ws, record)
    _check_signatures(ws, record)
    pack(out, choice, sources)
    return choice


def bring_back(ws: Workspace, session: str, file: Path) -> FinalResult:
    """Make the holder's answer the result of a frozen session, and count its look in this home's ledger too.

    The order is names and result, audit log, ledger, state: a call after a kill completes what is missing. An answer
    without a result makes the session void. Raises SessionError for a session that was not finalized, and SealError for
    an answer that is not signed or belongs to another choice.
    """
    record = _frozen(ws, session)
    answer = read_answer(file, Vault(ws.home).verify_key())
    choice, _ = _choice_of(ws, record)
    if answer.choice != choice.digest:
        raise SealError(f"{str(file)!r} answers another choice than that of session {session}; ask its holder again")
    result = answer.result.model_copy(update={"session": session}) if answer.result else None
    known = read_revealed(ws.home, session)
    if known is not None and known != result:
        raise SealError(f"session {session} has another result already; see it with `virtualmle sessions show`")
    if result is not None:
        if known is None and has_looked(ws.home, session):
            raise SealError(f"session {session} has used its look on this machine, without a result; it is void")
        _store(ws, answer, result)
    bring_back_recorded(ws, record, answer.fingerprint, SealedSketch(bytes.fromhex(answer.sketch)))
    ws.memory.sessions.set_state(session, "frozen", "attempted")
    end_recorded(ws, session, result)
    return final_result(ws, ws.memory.sessions.get(session), result)


def _store(ws: Workspace, answer: Answer, result: TestResult) -> None:
    """Write what the look has opened to the vault, as the examiner does: the names of items, and then the result."""
    vault = Vault(ws.home)
    contents = {vault.revealed_path(result.session): result.model_dump()}
    if answer.item_names:
        names = {str(item): name for item, name in answer.item_names.items()}
        contents = {vault.names_path(result.session): names, **contents}
    for path, content in contents.items():
        path.parent.mkdir(exist_ok=True, mode=OWNER_ONLY_DIRECTORY)
        write_json(path, content, OWNER_ONLY)


def _check_signatures(ws: Workspace, record: SessionRecord) -> None:
    """SealError unless dataset and models of a frozen session are as this home has signed them."""
    assert record.selected is not None  # set together with the state `frozen`
    beside = frozen_beside(ws, record)
    models = [*examined_directories(ws, record, record.selected), *(beside.models if beside else ())]
    check_signatures(Vault(ws.home), ws.session_dataset(record), record.dataset_id, record.id, models)


def _frozen(ws: Workspace, session: str) -> SessionRecord:
    """A session that was finalized. Raises SessionError for another, HomeError for a home of another user."""
    owner = ws.home.stat().st_uid
    if os.name == "posix" and owner != os.geteuid():  # its owner could not read what this process writes to the vault
        raise HomeError(
            f"{str(ws.home)!r} belongs to the user with the number {owner}; run as that user, or let that user run "
            "`virtualmle sessions seal-choice` and `bring-back`"
        )
    record = ws.memory.sessions.get(session)
    if record.replay:
        raise SessionError(f"session {session} is a replay, which has no test set")
    if record.state == "open":
        raise SessionError(f"session {session} is open; finalize it first: virtualmle sessions finalize {session}")
    return record


def _choice_of(ws: Workspace, record: SessionRecord) -> tuple[Choice, dict[str, Path]]:
    """The choice of a frozen session, and its files by their paths in a bundle."""
    assert record.selected is not None  # set together with the state `frozen`
    models = examined_directories(ws, record, record.selected)
    dataset = ws.session_dataset(record)
    files = [MANIFEST, SEALED, *read_manifest(dataset).files]
    sources = {f"data/{dataset.name}/{name}": dataset / name for name in files}
    sessions = ws.home / ".virtualmle" / "sessions"
    beside = frozen_beside(ws, record)
    members = (member for model in models for member in _members(model))
    for directory in {*models, *members, *(beside.models if beside else ())}:
        placed = f"sessions/{directory.relative_to(sessions).as_posix()}"
        sources |= {f"{placed}/{name}": directory / name for name in EXAMINED_FILES if (directory / name).exists()}
    identity = "\n".join((record.id, record.opened_at, record.dataset_id, record.protocol_hash))
    choice = Choice(
        session=record.id,
        origin=hashlib.sha256(identity.encode()).hexdigest()[:8],
        trial=record.selected,
        models=_placed(models, sessions),
        dataset=f"data/{dataset.name}",
        dataset_id=record.dataset_id,
        files=hashes_of(sources),
    )
    if beside:
        fields = {"beside": beside.trial, "beside_models": _placed(beside.models, sessions)}
        choice = choice.model_copy(update=fields)
    return choice, sources


def _placed(directories: Sequence[Path], sessions: Path) -> list[str]:
    """Where directories below those of the sessions are in a bundle."""
    return [f"sessions/{directory.relative_to(sessions).as_posix()}" for directory in directories]


def _members(directory: Path) -> list[Path]:
    """The directories of an ensemble's members; none for a trained model."""
    return [Path(member.directory) for member in beside(directory, read_spec(directory).members)]
