"""Trials: a session runs at most `parallel` at a time, each ends exactly once, and handles never change."""

import math

from ..data.errors import ConflictError, MemoryStoreError, SessionError
from ..data.wording import listed
from .database import MemoryDatabase, Repository, reads, writes
from .records import Choice, SessionRecord, TrialOutcome, TrialRecord
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


def handle_of(given: str) -> str:
    """The handle that a client means: all are lower-case, and some clients write T003."""
    return given.strip().lower()


class Trials(Repository):
    """The table of trials of all sessions."""

    def __init__(self, database: MemoryDatabase, sessions: Sessions) -> None:
        super().__init__(database)
        self._sessions = sessions

    @writes
    def start(self, record: TrialRecord, *, seen: int | None = None) -> TrialRecord:
        """Start a trial, assigning its number, handle and place.

        seen: the number of trials that its admission has taken into account; ConflictError if there are others by now.
        Raises SessionError unless the session is open and has a free place.
        """
        owner = self._sessions.require_open(record.session)
        session = owner.id
        self._refuse_beside_confirmation(session, record)
        query = "SELECT coalesce(max(number), 0) + 1 FROM trials WHERE session = ?"
        (number,) = self.db.execute(query, [session]).fetchone()
        if seen is not None and number != seen + 1:
            raise ConflictError(f"another client has started a trial of session {session!r}; read its state and retry")
        incumbent = self.incumbent(session)
        reason = record.override_reason
        trial = record.model_copy(
            update={
                "session": session,
                "number": number,
                "handle": self._repetition_handle(record) if record.repeats else f"t{number:03d}",
                "override_reason": None if reason is None else clean_text(reason, REASON_LIMIT),
                "place": self._free_place(owner),
                "incumbent_at_start": incumbent.handle if incumbent else None,
                "status": "running",
                "outcome": None,
                "reflected": False,
                "created_at": record.created_at or now(),
                "finished_at": None,
                "ended": None,
            }
        )
        insert(self.db, "trials", to_row(trial, leave_out=["outcome", "reflected"]))
        return trial

    def _refuse_beside_confirmation(self, session: str, record: TrialRecord) -> None:
        """Raise SessionError for a trial beside repetitions, or for a repetition beside trials that run.

        ConflictError for a repetition that another process has started.
        """
        repetitions = self.repetitions(session)
        if not record.repeats and repetitions:
            raise SessionError(f"session {session!r} confirms its best trials and takes no more; call finalize again")
        if record.repeats and self.running(session):
            raise SessionError(f"trial {self.running(session)[0].handle} of session {session!r} is still running")
        same = [t for t in repetitions if (t.repeats, t.repetition) == (record.repeats, record.repetition)]
        if any(trial.status in ("running", "finished") for trial in same):
            raise ConflictError(f"repetition {record.repetition} of {record.repeats} has been started already")

    def _repetition_handle(self, record: TrialRecord) -> str:
        """`t003r2`, the second repetition of t003; `t003r2-2` if it is started again after a crash."""
        query = "SELECT count(*) FROM trials WHERE session = ? AND repeats = ? AND repetition = ?"
        (before,) = self.db.execute(query, [record.session, record.repeats, record.repetition]).fetchone()
        return f"{record.repeats}r{record.repetition}" + (f"-{before + 1}" if before else "")

    def _free_place(self, session: SessionRecord) -> int:
        """The lowest free place of a session; raises SessionError if there is none."""
        running = [*self.running(session.id), *(t for t in self.repetitions(session.id) if t.status == "running")]
        free = set(range(session.parallel)) - {trial.place for trial in running}
        if len(running) >= session.parallel or not free:
            names = listed([trial.handle for trial in running])
            many = len(running) > 1
            what, it = (f"trials {names}", "one of them") if many else (f"trial {names}", "it")
            verb = "are" if many else "is"
            raise SessionError(f"{what} of session {session.id!r} {verb} still running; wait for {it} or cancel it")
        return min(free)

    @writes
    def finish(
        self, session: str, handle: str, outcome: TrialOutcome, choice: Choice | None = None, *, judged: bool = False
    ) -> bool:
        """Store the outcome if the trial is still running; returns whether this call ended the trial.

        choice: of a finished sweep, the setting whose configuration becomes that of the trial. judged: the verdict was
        given against `outcome.incumbent_before`; if another trial is the incumbent by now, nothing is stored.
        """
        self.get(session, handle)
        incumbent = self.incumbent(session) if judged else None
        if judged and outcome.incumbent_before != (incumbent.handle if incumbent else None):
            return False
        nonfinite = {name: value for name, value in outcome.metrics.items() if not math.isfinite(value)}
        if nonfinite:
            raise MemoryStoreError(f"metrics must be finite, not {nonfinite}; record such a trial as crashed")
        row = to_row(outcome) | {"finished_at": now(), "reason": clean_text(outcome.reason, REASON_LIMIT)}
        row |= to_row(choice) if choice else {}
        query = "SELECT count(*) + 1 FROM trials WHERE session = ? AND status <> 'running'"
        (row["ended"],) = self.db.execute(query, [session]).fetchone()
        row["cause"] = None if outcome.cause is None else clean_text(outcome.cause, CAUSE_LIMIT)
        assignments = ", ".join(f'"{name}" = :{name}' for name in row)
        ended = self.db.execute(
            f"UPDATE trials SET {assignments} WHERE session = :session AND handle = :handle AND status = 'running'",
            row | {"session": session, "handle": handle},
        )
        return ended.rowcount == 1

    @reads
    def get(self, session: str, handle: str) -> TrialRecord:
        """The trial with this handle, in any case; raises SessionError, with the most similar handles, if unknown."""
        wanted = handle_of(handle)
        found = self._select(session, "AND handle = ?", replace_surrogates(wanted))
        if not found:
            query = "SELECT handle FROM trials WHERE session = ?"
            handles = [name for (name,) in self.db.execute(query, [session]).fetchall()]
            known = f"its trials: {closest_names(wanted, handles)}" if handles else "it has none yet, call run_trial"
            raise SessionError(f"unknown trial {handle!r:.60} of session {session!r:.60}; {known}")
        return found[0]

    @reads
    def all(self, session: str) -> list[TrialRecord]:
        """The trials of a session, in order, without the repetitions of a confirmation."""
        return self._select(session, "AND repetition = 0 ORDER BY number")

    @reads
    def repetitions(self, session: str) -> list[TrialRecord]:
        """The repetitions that confirm trials of a session under further seeds, in the order of their start."""
        return self._select(session, "AND repetition > 0 ORDER BY number")

    @reads
    def running(self, session: str) -> list[TrialRecord]:
        """The running trials of a session, in order, without repetitions."""
        return self._select(session, "AND status = 'running' AND repetition = 0 ORDER BY number")

    @reads
    def incumbent(self, session: str) -> TrialRecord | None:
        """The trial that got the latest verdict keep, or None."""
        clauses = "AND verdict = 'keep' AND repetition = 0 ORDER BY coalesce(ended, number) DESC LIMIT 1"
        return next(iter(self._select(session, clauses)), None)

    @reads
    def peak_bytes(self, session: str) -> int | None:
        """The largest memory that a trial on this session's dataset has used, in any session; None if none is known."""
        query = """SELECT max(json_extract(trials.details, '$.peak_bytes')) FROM trials
            JOIN sessions ON sessions.id = trials.session JOIN sessions AS here ON here.id = ?
            WHERE sessions.dataset_id = here.dataset_id"""
        (peak,) = self.db.execute(query, [session]).fetchone()
        return int(peak) if peak else None

    @reads
    def elsewhere(self, record: TrialRecord) -> list[TrialRecord]:
        """Finished trials of other sessions with the configuration, data, backbone and seed of `record`, newest first.

        Sweeps count with the configuration that they have chosen.
        """
        query = f"""{SELECT} JOIN sessions ON sessions.id = trials.session
            JOIN sessions AS here ON here.id = ?
            WHERE trials.config_hash = ? AND trials.status = 'finished' AND trials.repetition = 0
              AND sessions.id <> here.id AND sessions.dataset_id = here.dataset_id AND sessions.backbone = here.backbone
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
