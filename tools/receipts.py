"""The receipt of a session: built from the audit log and the vault, signed, and kept in `vault/receipts`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from .. import __version__
from ..data.atomic import write_bytes
from ..data.errors import HomeError, SessionError
from ..examiner.audit import AuditLog
from ..examiner.entries import Entry
from ..examiner.receipts import Receipt, Stage, excerpt, issue, parse, to_bytes
from ..examiner.request import read_revealed
from ..examiner.vault import OWNER_ONLY, OWNER_ONLY_DIRECTORY, Vault
from ..memory.records import SessionRecord

RECEIPTS = "receipts"


def receipt_path(home: Path, session: str) -> Path:
    """Where the receipt of a session lies. Raises SealError for an invalid session id."""
    revealed = Vault(home).revealed_path(session)
    return revealed.parent.with_name(RECEIPTS) / revealed.name


def receipt_of(home: Path, session: SessionRecord) -> Receipt:
    """The latest receipt of a session; issued now if there is none of its state. Raises SessionError, SealError."""
    path = receipt_path(home, session.id)
    if path.exists():
        receipt = parse(path.read_bytes())
        if receipt.stage == _stage(_of_session(home, session)):
            return receipt
    return issue_receipt(home, session)


def issue_receipt(home: Path, session: SessionRecord) -> Receipt:
    """Build, sign and store the receipt of a session as the audit log has it. Raises SessionError, HomeError."""
    receipt = issue(Vault(home), _built(home, session))
    path = receipt_path(home, session.id)
    try:
        path.parent.mkdir(exist_ok=True, mode=OWNER_ONLY_DIRECTORY)
        write_bytes(path, to_bytes(receipt), OWNER_ONLY)
    except OSError as error:
        raise HomeError(f"{str(path)!r} cannot be written ({error.strerror}); free some disk space") from None
    return receipt


def stored_receipts(home: Path) -> dict[str, Receipt]:
    """The receipts in the vault by session. Raises SealError for a damaged one."""
    folder = receipt_path(home, "x").parent
    return {path.stem: parse(path.read_bytes()) for path in sorted(folder.glob("*.json"))}


def _built(home: Path, session: SessionRecord) -> Receipt:
    if session.replay:
        raise SessionError(f"session {session.id} is a replay: it has no test set, and so no receipt")
    entries = AuditLog(Vault(home).directory).entries()
    own = [entry for entry in entries if entry.session == session.id]
    frozen = [entry for entry in own if entry.kind == "frozen"]
    if not frozen:
        reason = f"is {session.state}; finalize it first" if session.state == "open" else "was closed before the home "\
            "had an audit log"
        raise SessionError(f"session {session.id} {reason}: a receipt states the choice that was frozen")
    registration = _registration(entries, own, session)
    stage = _stage(own)
    return Receipt(
        virtualmle=__version__,
        session=session.id,
        stage=stage,
        issued_at=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=registration.body,
        choice=frozen[-1].body,
        result=read_revealed(home, session.id) if stage == "revealed" else None,
        log=excerpt(entries, session.id, registration),
        public_key="",
    )


def _registration(entries: Sequence[Entry], own: Sequence[Entry], session: SessionRecord) -> Entry:
    """The entry of the session's dataset as it was when the session was opened."""
    found = [
        entry
        for entry in entries
        if entry.kind in ("registered", "replaced")
        and entry.body.get("dataset_id") == session.dataset_id
        and entry.seq < own[-1].seq
    ]
    before = [entry for entry in found if entry.seq < own[0].seq]
    if not found:
        raise SessionError(f"session {session.id} has no receipt: its dataset is not in the audit log")
    return (before or found)[-1]


def _of_session(home: Path, session: SessionRecord) -> list[Entry]:
    return [entry for entry in AuditLog(Vault(home).directory).entries() if entry.session == session.id]


def _stage(own: Sequence[Entry]) -> Stage:
    """How far the session is, as the audit log has it."""
    kinds = {entry.kind for entry in own}
    return "revealed" if "revealed" in kinds else "void" if "void" in kinds else "frozen"
