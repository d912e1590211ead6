"""Trials: a session runs one at a time, each ends exactly once, and handles never change."""

import math

from ..data.errors import MemoryStoreError, SessionError
from .database import MemoryDatabase, Repository, reads, writes
from .records import Choice, TrialOutcome, TrialRecord
from .rows import Row, from_row, insert, now, to_row
from .sessions import Sessions, closest_names
from .text import clean_text, replace_surrogates

CAUSE_LIMIT = 4000
REASON_LIMIT = 1000
OUTCOME_COLUMNS = [name for name in TrialOutcome.model_fields if name != "status"]
SELECT = """
    SELECT trials.*, EXISTS (
        SELECT 1 FROM reflections WHERE reflections.session = trials.session AND reflections.trial = trials.handle
    ) AS reflected
    FROM trials
"""


class Trials(Repository):
    """The table of trials of all sessions."""

    def __init__(self, database: MemoryDatabase, sessions: Sessions) -> None:
        super().__init__(database)
        self._sessions = sessions

    @writes
    def start(self, record: TrialRecord) -> TrialRecord:
        """Start a trial, assigning its number and handle; raises SessionError unless the session is open and idle."""
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
    def finish(self, session: str, handle: str, outcome: TrialOutcome, choice: Choice | None = None) -> bool:
        """Store the outcome if the trial is still running; returns whether this call ended the trial.

        choice: of a finished sweep, the setting whose configuration becomes that of the trial.
        """
        self.get(session, handle)
        nonfinite = {name: value for name, value in outcome.metrics.items() if not math.isfinite(value)}
        if nonfinite:
            raise MemoryStoreError(f"metrics must be finite, not {nonfinite}; record such a trial as crashed")
        row = to_row(outcome) | {"finished_at": now(), "reason": clean_text(outcome.reason, REASON_LIMIT)}
        row |= to_row(choice) if choice else {}
        row["cause"] = None if outcome.cause is None else clean_text(outcome.cause, CAUSE_LIMIT)
        assignments = ", ".join(f'"{name}" = :{name}' for name in row)
        ended = self.db.execute(
            f"UPDATE trials SET {assignments} WHERE session = :session AND handle = :handle AND status = 'running'",
            row | {"session": session, "handle": handle},
        )
        return ended.rowcount == 1

    @reads
    def get(self, session: str, handle: str) -> TrialRecord:
        """The trial with this handle; raises SessionError, with the most similar handles, if it does not exist."""
        found = self._select(session, "AND handle = ?", replace_surrogates(handle))
        if not found:
            query = "SELECT handle FROM trials WHERE session = ?"
            handles = [name for (name,) in self.db.execute(query, [session]).fetchall()]
            known = f"its trials: {closest_names(handle, handles)}" if handles else "it has none yet, call run_trial"
            raise SessionError(f"unknown trial {handle!r:.60} of session {session!r:.60}; {known}")
        return found[0]

    @reads
    def all(self, session: str) -> list[TrialRecord]:
        """The trials of a session, in order."""
        return self._select(session, "ORDER BY number")

    @reads
    def running(self, session: str) -> TrialRecord | None:
        """The running trial of a session, or None."""
        return next(iter(self._select(session, "AND status = 'running'")), None)

    @reads
    def incumbent(self, session: str) -> TrialRecord | None:
        """The latest trial with verdict keep, or None."""
        return next(iter(self._select(session, "AND verdict = 'keep' ORDER BY number DESC LIMIT 1")), None)

    @reads
    def elsewhere(self, record: TrialRecord) -> list[TrialRecord]:
        """Finished trials of other sessions with the configuration, data, backbone and seed of `record`, newest first.

        Sweeps count with the configuration that they have chosen.
        """
        query = f"""{SELECT} JOIN sessions ON sessions.id = trials.session
            JOIN sessions AS here ON here.id = ?
            WHERE trials.config_hash = ? AND trials.status = 'finished' AND sessions.id <> here.id
              AND sessions.dataset_id = here.dataset_id AND sessions.backbone = here.backbone
              AND sessions.seed = here.seed
            ORDER BY sessions.serial DESC, trials.number DESC"""
        return [_record(row) for row in self.db.query(query, [record.session, record.config_hash])]

    def _select(self, session: str, clauses: str, *values: str) -> list[TrialRecord]:
        query = f"{SELECT} WHERE session = ? {clauses}"
        return [_record(row) for row in self.db.query(query, [self._sessions.get(session).id, *values])]


def _record(row: Row) -> TrialRecord:
    fields = from_row(row, ["changes", "config", "hypothesis", "proposal", "metrics", "curve", "details", "sweep"])
    outcome = {name: fields.pop(name) for name in OUTCOME_COLUMNS}
    if fields["status"] != "running":
        fields["outcome"] = outcome | {"status": fields["status"]}
    return TrialRecord.model_validate(fields)
