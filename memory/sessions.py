"""Sessions: their ids, their one-way states, and the refusal of writes once they are not open."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlite_utils import Database

from ..data.errors import SessionError
from .records import SessionRecord, SessionState
from .rows import Row, columns_of, from_row, insert, now, to_json, to_row
from .text import clean_text, source_key, storable

NEXT_STATES: dict[SessionState, tuple[SessionState, ...]] = {
    "open": ("frozen",),
    "frozen": ("attempted", "void"),
    "attempted": ("revealed", "void"),
    "revealed": (),
    "void": (),
}
COLUMNS = columns_of(SessionRecord)


def open_session(db: Database, record: SessionRecord, taken: Collection[str]) -> SessionRecord:
    """Store a new session; an empty id becomes the next free "DATASET-BACKBONE-N", those in `taken` left out."""
    if db.execute("SELECT 1 FROM sessions WHERE id = ?", [record.id]).fetchone():
        raise SessionError(f"session {record.id!r} exists already; leave the id empty to have one chosen")
    session = record.model_copy(
        update={
            "id": record.id or _next_id(db, f"{record.dataset}-{record.backbone}", taken),
            "state": "open",
            "selected": None,
            "opened_at": record.opened_at or now(),
            "frozen_at": None,
            "client": clean_text(record.client, 200),
        }
    )
    insert(db, "sessions", to_row(session))
    remember_dataset(db, session.dataset_id, session.profile)
    return session


def remember_dataset(db: Database, dataset_id: str, profile: Mapping[str, Any]) -> str:
    """Keep a profile under the key of its source, which is returned; a source that is known keeps its profile."""
    source = source_key(dataset_id, profile)
    db.execute("INSERT OR IGNORE INTO datasets VALUES (?, ?)", [source, to_json(dict(profile))])
    return source


def get_session(db: Database, session: str) -> SessionRecord:
    """One session; SessionError names the nearest ids if there is none of that name."""
    rows = list(db.query(f"SELECT {COLUMNS} FROM sessions WHERE id = ?", [storable(session)]))
    if not rows:
        ids = _ids(db)
        known = f"sessions here: {nearest(session, ids)}" if ids else "there are none here yet, call open_session"
        raise SessionError(f"unknown session {session!r:.60}; {known}")
    return _record(rows[0])


def all_sessions(db: Database) -> list[SessionRecord]:
    """Every session, oldest first."""
    return [_record(row) for row in db.query(f"SELECT {COLUMNS} FROM sessions ORDER BY serial")]


def open_sessions(db: Database, dataset_id: str, backbone: str | None) -> list[SessionRecord]:
    """The sessions on a dataset that still take trials, oldest first; of one backbone, if it is named."""
    where = "WHERE dataset_id = ? AND backbone = coalesce(?, backbone) AND state = 'open'"
    query = f"SELECT {COLUMNS} FROM sessions {where} ORDER BY serial"
    return [_record(row) for row in db.query(query, [dataset_id, backbone])]


def sessions_in_short(db: Database) -> list[Row]:
    """Every session, oldest first: id, dataset, backbone, state, opened_at, number of trials, best NDCG@10 or None."""
    return list(db.query("""
        SELECT sessions.id AS session, dataset, backbone, state, opened_at, count(trials.handle) AS trials,
               max(CASE trials.status WHEN 'finished' THEN json_extract(metrics, '$."ndcg@10"') END) AS best_ndcg10
          FROM sessions LEFT JOIN trials ON trials.session = sessions.id
         GROUP BY sessions.serial ORDER BY sessions.serial
    """))


def spend_llm(db: Database, session: str, usd: float) -> None:
    """Record what the language model has cost so far; the total only grows, and only while the session is open."""
    db.execute(
        "UPDATE sessions SET llm_usd = max(llm_usd, ?) WHERE id = ? AND state = 'open'",
        [usd, get_session(db, session).id],
    )


def require_open(db: Database, session: str) -> SessionRecord:
    """One session that takes writes; SessionError if it does not exist or is past `open`."""
    record = get_session(db, session)
    if record.state != "open":
        raise SessionError(
            f"session {record.id!r} is {record.state} and takes no more writes; open another session to go on"
        )
    return record


def set_state(db: Database, session: str, expected: SessionState, new: SessionState, selected: str | None) -> bool:
    """Go from `expected` to `new` if the session still is in `expected`; returns whether it was."""
    if new not in NEXT_STATES[expected]:
        allowed = " or ".join(NEXT_STATES[expected]) or "nothing: it is the end"
        raise SessionError(f"a session cannot go from {expected} to {new}; after {expected} comes {allowed}")
    if selected is not None and new != "frozen":
        raise SessionError(f"selected={selected!r} cannot be set with {new}; the trial is chosen at the freeze")
    if get_session(db, session).state != expected:
        return False
    if new == "frozen":
        _freeze(db, session, selected)
    else:
        db.execute("UPDATE sessions SET state = ? WHERE id = ?", [new, session])
    return True


def nearest(name: str, names: Iterable[str], limit: int = 5) -> str:
    """The names most like `name`, for an error text."""
    names = list(names)
    close = difflib.get_close_matches(name, names, limit, cutoff=0.0)
    return ", ".join(close) + (f", … ({len(names)} in all)" if len(names) > len(close) else "")


def _freeze(db: Database, session: str, selected: str | None) -> None:
    statuses = dict(db.execute("SELECT handle, status FROM trials WHERE session = ?", [session]).fetchall())
    running = [handle for handle, status in statuses.items() if status == "running"]
    if running:
        raise SessionError(f"trial {running[0]} of session {session!r} is running; wait for it or cancel it first")
    if selected is not None and statuses.get(selected) != "finished":
        finished = [handle for handle, status in statuses.items() if status == "finished"]
        raise SessionError(f"selected={selected!r} is not a finished trial of {session!r}; finished: {finished}")
    db.execute(
        "UPDATE sessions SET state = 'frozen', selected = ?, frozen_at = ? WHERE id = ?", [selected, now(), session]
    )


def _record(row: Row) -> SessionRecord:
    return SessionRecord.model_validate(from_row(row, ["profile", "memory_from"]))


def _ids(db: Database) -> list[str]:
    return [row["id"] for row in db.query("SELECT id FROM sessions ORDER BY serial DESC")]


def _next_id(db: Database, stem: str, taken: Collection[str]) -> str:
    """One more than the highest number used with this stem: an id never names two sessions."""
    query = "SELECT id FROM sessions WHERE substr(id, 1, ?) = ?"
    used = {*taken, *(name for (name,) in db.execute(query, [len(stem) + 1, f"{stem}-"]).fetchall())}
    numbers = [int(match[1]) for name in used if (match := re.fullmatch(re.escape(stem) + r"-(\d{1,9})", name))]
    return f"{stem}-{max(numbers, default=0) + 1}"
