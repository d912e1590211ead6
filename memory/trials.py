"""Trials: started one at a time, ended exactly once, never renamed."""

import math

from sqlite_utils import Database

from ..data.errors import MemoryStoreError, SessionError
from .records import TrialOutcome, TrialRecord
from .rows import Row, from_row, insert, now, to_row
from .sessions import get_session, nearest, require_open
from .text import clean_text, storable

CAUSE_LIMIT = 4000
REASON_LIMIT = 1000
OUTCOME_COLUMNS = [name for name in TrialOutcome.model_fields if name != "status"]
SELECT = """
    SELECT trials.*, EXISTS (
        SELECT 1 FROM reflections WHERE reflections.session = trials.session AND reflections.trial = trials.handle
    ) AS reflected
    FROM trials
"""


def add_trial(db: Database, record: TrialRecord) -> TrialRecord:
    """Start a trial under the next number of its session; SessionError if it is not open or another trial runs."""
    session = require_open(db, record.session).id
    running = db.execute("SELECT handle FROM trials WHERE session = ? AND status = 'running'", [session]).fetchone()
    if running:
        raise SessionError(f"trial {running[0]} of session {session!r} is still running; wait for it or cancel it")
    number = db.execute("SELECT coalesce(max(number), 0) + 1 FROM trials WHERE session = ?", [session]).fetchone()[0]
    reason = record.override_reason
    trial = record.model_copy(
        update={
            "session": session,
            "number": number,
            "handle": f"t{number:03d}",
            "override_reason": None if reason is None else clean_text(reason, REASON_LIMIT),
            "status": "running",
            "outcome": None,
            "reflected": False,
            "created_at": record.created_at or now(),
            "finished_at": None,
        }
    )
    insert(db, "trials", to_row(trial, leave_out=["outcome", "reflected"]))
    return trial


def finish_trial(db: Database, session: str, handle: str, outcome: TrialOutcome) -> bool:
    """Write the outcome if the trial is still running; returns whether this call was the one that ended it."""
    get_trial(db, session, handle)
    wrong = {name: value for name, value in outcome.metrics.items() if not math.isfinite(value)}
    if wrong:
        raise MemoryStoreError(f"metrics must be finite, not {wrong}; a trial that measured them has crashed")
    row = to_row(outcome) | {"finished_at": now(), "reason": clean_text(outcome.reason, REASON_LIMIT)}
    row["cause"] = None if outcome.cause is None else clean_text(outcome.cause, CAUSE_LIMIT)
    assignments = ", ".join(f'"{name}" = :{name}' for name in row)
    ended = db.execute(
        f"UPDATE trials SET {assignments} WHERE session = :session AND handle = :handle AND status = 'running'",
        row | {"session": session, "handle": handle},
    )
    return ended.rowcount == 1


def get_trial(db: Database, session: str, handle: str) -> TrialRecord:
    """One trial; SessionError names the nearest handles if there is none of that name."""
    session = get_session(db, session).id
    where = f"{SELECT} WHERE session = ? AND handle = ?"
    rows = list(db.query(where, [session, storable(handle)]))
    if not rows:
        handles = [row["handle"] for row in db.query("SELECT handle FROM trials WHERE session = ?", [session])]
        known = f"its trials: {nearest(handle, handles)}" if handles else "it has none yet, call run_trial"
        raise SessionError(f"unknown trial {handle!r:.60} of session {session!r:.60}; {known}")
    return _record(rows[0])


def all_trials(db: Database, session: str) -> list[TrialRecord]:
    """The trials of a session, first to last."""
    session = get_session(db, session).id
    return [_record(row) for row in db.query(f"{SELECT} WHERE session = ? ORDER BY number", [session])]


def running_trials(db: Database, session: str) -> list[TrialRecord]:
    """The trial of a session that has not ended: none or one."""
    session = get_session(db, session).id
    return [_record(row) for row in list(db.query(f"{SELECT} WHERE session = ? AND status = 'running'", [session]))]


def incumbent(db: Database, session: str) -> TrialRecord | None:
    """The latest trial that was kept, or None."""
    session = get_session(db, session).id
    query = f"{SELECT} WHERE session = ? AND verdict = 'keep' ORDER BY number DESC LIMIT 1"
    return next((_record(row) for row in list(db.query(query, [session]))), None)


def _record(row: Row) -> TrialRecord:
    fields = from_row(row, ["changes", "config", "hypothesis", "metrics", "curve", "details"])
    outcome = {name: fields.pop(name) for name in OUTCOME_COLUMNS}
    if fields["status"] != "running":
        fields["outcome"] = outcome | {"status": fields["status"]}
    return TrialRecord.model_validate(fields)
