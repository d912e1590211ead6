"""Trials: started one at a time, ended exactly once, never renamed."""

import math

from ..data.errors import MemoryStoreError, SessionError
from .database import MemoryDatabase, Part, reads, writes
from .records import TrialOutcome, TrialRecord
from .rows import Row, from_row, insert, now, to_row
from .sessions import Sessions, nearest
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


class Trials(Part):
    """The trials of all sessions."""

    def __init__(self, database: MemoryDatabase, sessions: Sessions) -> None:
        super().__init__(database)
        self._sessions = sessions

    @writes
    def start(self, record: TrialRecord) -> TrialRecord:
        """Start a trial; number and handle are given here. SessionError if it is not open or another trial runs."""
        session = self._sessions.require_open(record.session).id
        query = "SELECT handle FROM trials WHERE session = ? AND status = 'running'"
        running = self.db.execute(query, [session]).fetchone()
        if running:
            raise SessionError(f"trial {running[0]} of session {session!r} is still running; wait for it or cancel it")
        query = "SELECT coalesce(max(number), 0) + 1 FROM trials WHERE session = ?"
        (number,) = self.db.execute(query, [session]).fetchone()
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
        insert(self.db, "trials", to_row(trial, leave_out=["outcome", "reflected"]))
        return trial

    @writes
    def finish(self, session: str, handle: str, outcome: TrialOutcome) -> bool:
        """Write the outcome if the trial is still running; returns whether this call was the one that ended it."""
        self.get(session, handle)
        wrong = {name: value for name, value in outcome.metrics.items() if not math.isfinite(value)}
        if wrong:
            raise MemoryStoreError(f"metrics must be finite, not {wrong}; a trial that measured them has crashed")
        row = to_row(outcome) | {"finished_at": now(), "reason": clean_text(outcome.reason, REASON_LIMIT)}
        row["cause"] = None if outcome.cause is None else clean_text(outcome.cause, CAUSE_LIMIT)
        assignments = ", ".join(f'"{name}" = :{name}' for name in row)
        ended = self.db.execute(
            f"UPDATE trials SET {assignments} WHERE session = :session AND handle = :handle AND status = 'running'",
            row | {"session": session, "handle": handle},
        )
        return ended.rowcount == 1

    @reads
    def get(self, session: str, handle: str) -> TrialRecord:
        """One trial; SessionError names the nearest handles if there is none of that name."""
        found = self._select(session, "AND handle = ?", storable(handle))
        if not found:
            query = "SELECT handle FROM trials WHERE session = ?"
            handles = [name for (name,) in self.db.execute(query, [session]).fetchall()]
            known = f"its trials: {nearest(handle, handles)}" if handles else "it has none yet, call run_trial"
            raise SessionError(f"unknown trial {handle!r:.60} of session {session!r:.60}; {known}")
        return found[0]

    @reads
    def all(self, session: str) -> list[TrialRecord]:
        """The trials of a session, first to last."""
        return self._select(session, "ORDER BY number")

    @reads
    def running(self, session: str) -> TrialRecord | None:
        """The trial of a session that has not ended, or None."""
        return next(iter(self._select(session, "AND status = 'running'")), None)

    @reads
    def incumbent(self, session: str) -> TrialRecord | None:
        """The latest trial that was kept, or None."""
        return next(iter(self._select(session, "AND verdict = 'keep' ORDER BY number DESC LIMIT 1")), None)

    def _select(self, session: str, clauses: str, *values: str) -> list[TrialRecord]:
        query = f"{SELECT} WHERE session = ? {clauses}"
        return [_record(row) for row in self.db.query(query, [self._sessions.get(session).id, *values])]


def _record(row: Row) -> TrialRecord:
    fields = from_row(row, ["changes", "config", "hypothesis", "metrics", "curve", "details"])
    outcome = {name: fields.pop(name) for name in OUTCOME_COLUMNS}
    if fields["status"] != "running":
        fields["outcome"] = outcome | {"status": fields["status"]}
    return TrialRecord.model_validate(fields)
