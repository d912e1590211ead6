"""Reflections of agents on their trials, one per trial."""

from ..data.errors import SessionError
from .database import MemoryDatabase, Repository, reads, writes
from .records import ReflectionRecord
from .rows import columns_of, from_row, insert, now, to_row
from .sessions import Sessions
from .text import clean_text, word_overlap
from .trials import Trials

DIMENSION_LIMIT = 100
LESSON_LIMIT = 2000
SAME_LESSON = 0.8
"""Lessons with at least this word overlap and the same dimension, direction and check are merged."""
COLUMNS = columns_of(ReflectionRecord)


class Reflections(Repository):
    """The table of reflections of all sessions."""

    def __init__(self, database: MemoryDatabase, sessions: Sessions, trials: Trials) -> None:
        super().__init__(database)
        self._sessions = sessions
        self._trials = trials

    @writes
    def add(self, record: ReflectionRecord) -> ReflectionRecord:
        """Store the reflection on a trial that has ended; raises SessionError if it already has one.

        A reflection with nearly the same lesson as an earlier one of the session is stored with a reference to the
        earlier one, whose count is incremented.
        """
        session = self._sessions.require_open(record.session).id
        trial = self._trials.get(session, record.trial)
        if trial.status == "running":
            raise SessionError(f"trial {trial.handle} of session {session!r} is still running; call wait_trial first")
        if trial.reflected:
            raise SessionError(f"trial {trial.handle} of session {session!r} already has a reflection; one is allowed")
        reflection = self._merged(
            record.model_copy(
                update={
                    "session": session,
                    "what_changed": clean_text(record.what_changed, LESSON_LIMIT),
                    "dimension": clean_text(record.dimension, DIMENSION_LIMIT),
                    "cause": clean_text(record.cause, LESSON_LIMIT),
                    "lesson": clean_text(record.lesson, LESSON_LIMIT),
                    "next_step": clean_text(record.next_step, LESSON_LIMIT),
                    "check_note": clean_text(record.check_note, LESSON_LIMIT),
                    "merged_into": None,
                    "times_said": 1,
                    "created_at": record.created_at or now(),
                }
            )
        )
        rowid = insert(self.db, "reflections", to_row(reflection, leave_out=["id"]))
        return reflection.model_copy(update={"id": rowid})

    @reads
    def all(self, session: str) -> list[ReflectionRecord]:
        """The reflections of a session, in the order of its trials."""
        query = f"SELECT {COLUMNS} FROM reflections WHERE session = ? ORDER BY length(trial), trial"
        rows = self.db.query(query, [self._sessions.get(session).id])
        return [ReflectionRecord.model_validate(from_row(row, ["evidence"])) for row in rows]

    def _merged(self, reflection: ReflectionRecord) -> ReflectionRecord:
        """If an earlier reflection has nearly the same lesson, increment its count and refer to it in the result.

        Reflections with different checks are never merged: a supported lesson must not add to the count of an
        unsupported one.
        """
        earlier = self.db.query(
            "SELECT trial, lesson, times_said FROM reflections WHERE session = ? AND dimension = ? AND helped = ? "
            'AND "check" = ? AND merged_into IS NULL ORDER BY id',
            [reflection.session, reflection.dimension, reflection.helped, reflection.check],
        )
        lesson = reflection.lesson
        match = next((row for row in list(earlier) if word_overlap(row["lesson"], lesson) >= SAME_LESSON), None)
        if match is None:
            return reflection
        times = match["times_said"] + 1
        where = "WHERE session = ? AND trial = ?"
        self.db.execute(f"UPDATE reflections SET times_said = ? {where}", [times, reflection.session, match["trial"]])
        return reflection.model_copy(update={"merged_into": match["trial"], "times_said": times})
