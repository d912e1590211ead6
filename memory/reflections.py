"""Reflections: what agents make of their trials, one each."""

from ..data.errors import SessionError
from .database import MemoryDatabase, Part, reads, writes
from .records import ReflectionRecord
from .rows import columns_of, from_row, insert, now, to_row
from .sessions import Sessions
from .text import alike, clean_text
from .trials import Trials

DIMENSION_LIMIT = 100
LESSON_LIMIT = 2000
SAME_LESSON = 0.8
"""From this share of common content words on, two lessons of one dimension and direction count as one."""
COLUMNS = columns_of(ReflectionRecord)


class Reflections(Part):
    """The reflections of all sessions."""

    def __init__(self, database: MemoryDatabase, sessions: Sessions, trials: Trials) -> None:
        super().__init__(database)
        self._sessions = sessions
        self._trials = trials

    @writes
    def add(self, record: ReflectionRecord) -> ReflectionRecord:
        """Store the reflection on a trial that is over; SessionError if there is one already.

        One that says nearly the same as an earlier one of its session is stored with a pointer to it, and counted
        there.
        """
        session = self._sessions.require_open(record.session).id
        trial = self._trials.get(session, record.trial)
        if trial.status == "running":
            raise SessionError(f"trial {trial.handle} of session {session!r} is still running; reflect once it is over")
        if trial.reflected:
            raise SessionError(f"trial {trial.handle} of session {session!r} has a reflection already; a trial has one")
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
        """The reflection, pointing to the earlier one that says nearly the same, if there is one, and counted there.

        Two that were checked differently are never one: a lesson that the numbers bear out does not count for one that
        they do not.
        """
        earlier = self.db.query(
            "SELECT trial, lesson, times_said FROM reflections WHERE session = ? AND dimension = ? AND helped = ? "
            'AND "check" = ? AND merged_into IS NULL ORDER BY id',
            [reflection.session, reflection.dimension, reflection.helped, reflection.check],
        )
        same = next((row for row in list(earlier) if alike(row["lesson"], reflection.lesson) >= SAME_LESSON), None)
        if same is None:
            return reflection
        times = same["times_said"] + 1
        where = "WHERE session = ? AND trial = ?"
        self.db.execute(f"UPDATE reflections SET times_said = ? {where}", [times, reflection.session, same["trial"]])
        return reflection.model_copy(update={"merged_into": same["trial"], "times_said": times})
