"""The walk over the audit log: is its chain whole, and does what a home has recorded elsewhere fit to it?

Pure: the caller reads log, memory.db, look ledger, receipts and datasets (`tools/auditing.py`) and passes values.

An entry is written before its row in memory.db or in the look ledger, inside the transaction of the row. A process that
is killed between the two leaves the last entry of a session without its row. Such entries are notes; everything else
that does not fit is a failure.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .entries import GENESIS, Anchor, Entry, Line
from .ledger import Look

SHORT_DIGITS = 32  # of the digests of adopted trials


@dataclass(frozen=True)
class Finding:
    """What does not fit (`fail`), or what a killed process explains (`note`), in one sentence."""

    level: Literal["fail", "note"]
    text: str


@dataclass(frozen=True)
class RecordedTrial:
    """A trial as memory.db and its directory have it."""

    handle: str
    status: str
    verdict: str | None
    ndcg10: float | None  # on validation
    config_hash: str
    digest: str  # of everything that its verdict recorded; empty while it runs
    files: Mapping[str, str] = field(default_factory=dict)  # SHA-256 by name, of the files that still exist


@dataclass(frozen=True)
class RecordedSession:
    """A session as memory.db has it."""

    id: str
    state: str
    selected: str | None
    facts: Mapping[str, Any]  # what does not change after it was opened
    budget: Mapping[str, Any]  # what only an extension changes
    trials: Sequence[RecordedTrial]


@dataclass(frozen=True)
class Records:
    """What a home has recorded outside its audit log."""

    sessions: Sequence[RecordedSession] = ()
    looks: Sequence[Look] = ()
    results: Mapping[str, str] = field(default_factory=dict)  # digest of the revealed result by session
    receipts: Mapping[str, tuple[int, str]] = field(default_factory=dict)  # length and head of the log by session
    datasets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what `registered` records, by name
    keys: Mapping[str, str] = field(default_factory=dict)  # public keys of the vault
    rows: Mapping[str, str] = field(default_factory=dict)  # digest of the row in the look ledger by session
    has_log_key: bool = False  # whether the vault has the key of an audit log


def walk(lines: Sequence[Line], anchor: Anchor | None, records: Records) -> list[Finding]:
    """Everything that does not fit; empty for a home in order."""
    if not lines and anchor is None:
        return [*_removed_log(records), *_receipts([], records.receipts)]
    entries = [line.entry for line in lines if line.entry]
    by_session: dict[str, list[Entry]] = {}
    for entry in entries:
        by_session.setdefault(entry.session, []).append(entry)
    found = [*_chain(lines, anchor), *_home(by_session.get("", []), records)]
    for session in records.sessions:
        found += _session(session, by_session.get(session.id, []), records)
    known = {session.id for session in records.sessions}
    found += [f for name, theirs in by_session.items() if name and name not in known for f in _absent(name, theirs)]
    found += [f for look in records.looks for f in _look(look, by_session.get(look.session, []), records)]
    return [*found, *_deleted_looks(entries, records.looks), *_receipts(entries, records.receipts)]


def _fail(text: str) -> Finding:
    return Finding("fail", text)


def _removed_log(records: Records) -> Iterator[Finding]:
    """A log whose key is left; the key is written after the anchor, so that no kill leaves it alone."""
    if records.has_log_key:
        yield _fail("the audit log and its anchor were removed: the vault has their key, but no entry")


def _chain(lines: Sequence[Line], anchor: Anchor | None) -> Iterator[Finding]:
    seq, prev = 0, GENESIS
    heads = {0: GENESIS}
    for line in lines:
        entry = line.entry
        if entry is None:
            yield _fail(f"line {line.number} of the audit log is not an entry")
            continue
        name = f"entry {entry.seq} of the audit log"
        if not line.is_ours:
            yield _fail(f"{name} was not written with this vault's key: its MAC is not valid")
        if not entry.fits:
            yield _fail(f"{name} was changed: its hash is not the one of its content")
        if (entry.seq, entry.prev) != (seq + 1, prev):
            yield _fail(f"{name} does not follow on entry {seq}: entries were removed, added or reordered")
        if entry.kind == "damaged":
            yield _fail(f"{name} says that, at {entry.at}, {entry.body.get('found')}")
        seq, prev = entry.seq, entry.hash
        heads[seq] = prev
    if anchor is None:
        yield _fail("the anchor of the audit log is missing or was changed")
    elif anchor.length > seq:
        yield _fail(f"the audit log ends with entry {seq}, but its anchor counts {anchor.length}: it was cut off")
    elif heads.get(anchor.length) != anchor.head:
        yield _fail(f"entry {anchor.length} of the audit log is not the one of its anchor: the log was replaced")


def _home(entries: Sequence[Entry], records: Records) -> Iterator[Finding]:
    """The entries of the home itself: keys and datasets."""
    keys = [entry for entry in entries if entry.kind == "keys"]
    for entry in keys[1:]:
        yield _fail(f"the keys of the vault were exchanged (entry {entry.seq})")
    for name, key in records.keys.items():
        if keys and keys[-1].body.get(name) not in (None, key):
            yield _fail(f"the key {name!r} of the vault is not the one of entry {keys[-1].seq}")
    last = {e.body.get("dataset"): e for e in entries if e.kind in ("registered", "replaced", "removed")}
    for name, now in records.datasets.items():
        then = last.get(name)
        if then is None or then.kind == "removed":
            yield Finding("note", f"dataset {name} is not in the audit log yet; the next session on it records it")
            continue
        for file in ("manifest", "seal", "commitment"):
            if then.body.get(file) != now.get(file):
                yield _fail(f"the {file} of dataset {name} is not the one that was registered (entry {then.seq})")


def _session(session: RecordedSession, entries: Sequence[Entry], records: Records) -> Iterator[Finding]:
    first = next((entry for entry in reversed(entries) if entry.kind in ("opened", "adopted")), None)
    if first is None:
        yield _fail(f"session {session.id} of memory.db is not in the audit log: it was not opened by this program")
        return
    for name, value in session.facts.items():
        if first.body.get("facts", {}).get(name) != value:
            yield _fail(f"session {session.id}: its {name} is not the one of entry {first.seq}: its row was changed")
    yield from _budget(session, first, [entry for entry in entries if entry.kind == "extended"])
    yield from _state(session, first, entries)
    yield from _result(session, entries, records)
    adopted = first.body.get("trials", {}) if first.kind == "adopted" else {}
    for trial in session.trials:
        yield from _trial(session.id, trial, entries, adopted)
    yield from _lost_trials(session, entries)


def _budget(session: RecordedSession, first: Entry, extended: Sequence[Entry]) -> Iterator[Finding]:
    stages = [first, *extended]
    if stages[-1].body.get("budget") == session.budget:
        return
    if extended and stages[-2].body.get("budget") == session.budget:
        yield _unfinished(stages[-1], f"the extension of session {session.id}")
        return
    yield _fail(f"session {session.id}: its budget is not the one of entry {stages[-1].seq}: its row was changed")


def _state(session: RecordedSession, first: Entry, entries: Sequence[Entry]) -> Iterator[Finding]:
    last = {entry.kind: entry for entry in entries}
    frozen = last.get("frozen") or (first if first.body.get("state", "open") != "open" else None)
    ended = last.get("revealed") or last.get("void") or (frozen if _ended_before(first) else None)
    if session.state == "open":
        yield from _reopened(session.id, frozen, last.get("look"), ended)
        return
    if frozen is None:
        yield _fail(f"session {session.id} is {session.state}, but the audit log has no freeze of it")
        return
    if frozen.body.get("selected") != session.selected:
        yield _fail(
            f"session {session.id}: trial {session.selected} is selected, but entry {frozen.seq} says "
            f"{frozen.body.get('selected')}"
        )
    yield from _end(session, ended)
    if frozen is not first:
        yield from _after_freeze(session.id, frozen, entries)


def _ended_before(first: Entry) -> bool:
    """Whether a session had ended when it was adopted."""
    return first.body.get("state") in ("revealed", "void")


def _reopened(name: str, frozen: Entry | None, look: Entry | None, ended: Entry | None) -> Iterator[Finding]:
    """A session that is open, compared with the entries that say it is not."""
    proof = ended or look or (frozen if frozen and frozen.kind == "adopted" else None)
    if proof:
        yield _fail(f"session {name} is open, but entry {proof.seq} shows that it was closed: it was opened again")
    elif frozen:
        yield _unfinished(frozen, f"the freeze of session {name}")


def _end(session: RecordedSession, ended: Entry | None) -> Iterator[Finding]:
    """The end of a session that is not open."""
    is_over = session.state in ("revealed", "void")
    if ended is None:
        if is_over:
            yield _fail(f"session {session.id} is {session.state}, but the audit log does not say so")
        return
    says = ended.body["state"] if ended.kind == "adopted" else ended.kind
    if is_over and session.state != says:
        yield _fail(f"session {session.id} is {session.state}, but entry {ended.seq} says {says}")
    elif not is_over:
        yield _unfinished(ended, f"the end of session {session.id}")


def _after_freeze(name: str, frozen: Entry, entries: Iterable[Entry]) -> Iterator[Finding]:
    for entry in entries:
        if entry.seq > frozen.seq and entry.kind in ("admitted", "verdict", "extended"):
            yield _fail(f"session {name} was frozen in entry {frozen.seq}, but entry {entry.seq} is {entry.kind}")


def _result(session: RecordedSession, entries: Sequence[Entry], records: Records) -> Iterator[Finding]:
    revealed = next((entry for entry in reversed(entries) if entry.kind in ("revealed", "adopted")), None)
    expected = revealed.body.get("result") if revealed else None
    found = records.results.get(session.id)
    if revealed and expected and found != expected:
        verb = "is missing" if found is None else "was changed after the look"
        yield _fail(f"the test result of session {session.id} {verb} (entry {revealed.seq})")


def _trial(
    session: str, trial: RecordedTrial, entries: Sequence[Entry], adopted: Mapping[str, str]
) -> Iterator[Finding]:
    name = f"trial {trial.handle} of {session}"
    own = {entry.kind: entry for entry in entries if entry.body.get("trial") == trial.handle}
    admitted, verdict = own.get("admitted"), own.get("verdict")
    if adopted.get(trial.handle):  # it had ended by then
        if trial.digest[:SHORT_DIGITS] != adopted[trial.handle]:
            yield _fail(f"{name}: its row was changed after the audit log had adopted it")
        return
    if trial.handle not in adopted and admitted is None:
        yield _fail(f"{name} is in memory.db, but the audit log has not admitted it")
    if trial.status == "running":
        if verdict:
            yield _unfinished(verdict, f"the verdict of {name}")
        elif admitted and admitted.body.get("config_hash") != trial.config_hash:
            yield _fail(f"{name}: its configuration is not the one that was admitted (entry {admitted.seq})")
    elif verdict is None:
        yield _fail(f"{name} is {trial.status} in memory.db, but the audit log has no verdict of it")
    elif verdict.body.get("digest") != trial.digest:
        yield _fail(f"{name}: {_difference(trial, verdict)}")
    yield from (_files(name, trial, verdict) if verdict else ())


def _difference(trial: RecordedTrial, verdict: Entry) -> str:
    body, where = verdict.body, f"its verdict in the audit log (entry {verdict.seq}"
    if body.get("ndcg10") != trial.ndcg10:
        return f"the recorded NDCG@10 {trial.ndcg10} is not the one of {where}: {body.get('ndcg10')})"
    for field_name, value in (("status", trial.status), ("verdict", trial.verdict)):
        if body.get(field_name) != value:
            return f"the recorded {field_name} {value!r} is not the one of {where}: {body.get(field_name)!r})"
    return f"its row was changed after {where})"


def _files(name: str, trial: RecordedTrial, verdict: Entry) -> Iterator[Finding]:
    for file, expected in verdict.body.get("files", {}).items():
        if trial.files.get(file) not in (None, expected):
            yield _fail(f"{name}: its {file} is not the one of its verdict (entry {verdict.seq})")


def _lost_trials(session: RecordedSession, entries: Sequence[Entry]) -> Iterator[Finding]:
    known = {trial.handle for trial in session.trials}
    for entry in entries:
        handle = entry.body.get("trial")
        if entry.kind == "admitted" and handle not in known:
            what = f"trial {handle} of {session.id}"
            is_last = entry.seq == entries[-1].seq
            yield _unfinished(entry, what) if is_last else _fail(
                f"{what} was admitted (entry {entry.seq}), but memory.db does not have it: its row was deleted"
            )


def _absent(name: str, entries: Sequence[Entry]) -> Iterator[Finding]:
    """A session of the log that memory.db does not have."""
    if all(entry.kind == "opened" for entry in entries):
        yield _unfinished(entries[-1], f"session {name}")
    elif any(entry.kind in ("opened", "adopted") and "facts" in entry.body for entry in entries):
        yield _fail(f"session {name} is in the audit log (entry {entries[0].seq}), but not in memory.db: its row was "
                    "deleted, or memory.db was restored from a copy")  # fmt: skip


def _look(look: Look, entries: Sequence[Entry], records: Records) -> Iterator[Finding]:
    """A row of the look ledger, compared with the entries of its session."""
    for entry in entries:
        if entry.body.get("look") not in (None, look.look) and entry.kind in ("revealed", "void", "adopted"):
            yield _fail(f"the look of session {look.session} has the number {look.look} in the look ledger, "
                        f"but {entry.body['look']} in entry {entry.seq}")  # fmt: skip
        elif entry.body.get("row") not in (None, records.rows.get(look.session)):
            yield _fail(f"the look of session {look.session}: its row in the look ledger, which tells the content, "
                        f"is not the one of entry {entry.seq}")  # fmt: skip
    if not any(entry.kind == "look" or entry.body.get("look") for entry in entries):
        yield _fail(f"look {look.look} of session {look.session} is in the look ledger, but not in the audit log")


def _deleted_looks(entries: Iterable[Entry], looks: Iterable[Look]) -> Iterator[Finding]:
    """Looks of the log that the ledger does not have."""
    known = {look.session for look in looks}
    for entry in entries:
        if entry.body.get("look") and entry.body.get("is_here", True) and entry.session not in known:
            yield _fail(f"the look of session {entry.session} (entry {entry.seq}) is not in the look ledger: "
                        "its row was deleted")  # fmt: skip


def _receipts(entries: Sequence[Entry], receipts: Mapping[str, tuple[int, str]]) -> Iterator[Finding]:
    heads = {entry.seq: entry.hash for entry in entries}
    for session, (length, head) in receipts.items():
        if heads.get(length) != head:
            yield _fail(f"the receipt of session {session} names another entry {length} than the audit log has: "
                        "the log was replaced or cut off")  # fmt: skip


def _unfinished(entry: Entry, what: str) -> Finding:
    return Finding("note", f"{what} is recorded in entry {entry.seq} only: a process was killed before it was stored")
