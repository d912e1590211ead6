"""Reflections of agents on their trials, one per trial; an amended one keeps its earlier versions."""

from ..data.errors import SessionError
from .database import MemoryDatabase, Repository, reads, writes
from .records import EarlierReflection, ReflectionRecord
from .rows import columns_of, from_row, insert, now, to_row
from .sessions import Sessions
from .text import clean_text, word_overlap
from .trials import Trials

DIMENSION_LIMIT = 100
LESSON_LIMIT = 2000
TEXTS = ("what_changed", "cause", "lesson", "next_step", "check_note")
SAME_LESSON = 0.8
"""Lessons with at least this word overlap and the same dimension, direction and check are merged."""
COLUMNS = columns_of(ReflectionRecord, leave_out=["amended_from"])
EARLIER_COLUMNS = columns_of(EarlierReflection)
AMENDED = sorted(set(EarlierReflection.model_fields) - {"version"})
"""The columns of a reflection that an amendment replaces."""


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
            raise SessionError(
                f"trial {trial.handle} of session {session!r} already has a reflection; amend=true corrects it"
            )
        reflection = self._merged(_cleaned(record, session))
        rowid = insert(self.db, "reflections", to_row(reflection, leave_out=["id", "amended_from"]))
        return reflection.model_copy(update={"id": rowid})

    @writes
    def amend(self, record: ReflectionRecord) -> ReflectionRecord:
        """Replace the reflection on a trial; the version that it replaces stays on record.

        Raises SessionError if the session is not open or the trial has no reflection. Repeated lessons are counted
        again over the whole session.
        """
        session = self._sessions.require_open(record.session).id
        where = "WHERE session = ? AND trial = ?"
        query = f"SELECT {', '.join(map(_quoted, AMENDED))} FROM reflections {where}"
        replaced = next(iter(self.db.query(query, [session, record.trial])), None)
        if replaced is None:
            raise SessionError(f"trial {record.trial!r:.60} of {session!r} has no reflection yet; leave out amend=true")
        query = f"SELECT count(*) + 1 FROM earlier_reflections {where}"
        (version,) = self.db.execute(query, [session, record.trial]).fetchone()
        key = {"session": session, "trial": record.trial}
        insert(self.db, "earlier_reflections", {**key, **replaced, "version": version})
        changed = to_row(_cleaned(record, session))
        assignments = ", ".join(f'"{name}" = :{name}' for name in AMENDED)
        assignments += ", after_reveal = max(after_reveal, :after_reveal)"
        new = {name: changed[name] for name in [*AMENDED, "after_reveal"]}
        self.db.execute(f"UPDATE reflections SET {assignments} WHERE session = :session AND trial = :trial", key | new)
        self._count_again(session)
        return next(reflection for reflection in self.all(session) if reflection.trial == record.trial)

    @reads
    def all(self, session: str) -> list[ReflectionRecord]:
        """The reflections of a session, in the order of its trials."""
        session = self._sessions.get(session).id
        query = f"SELECT {COLUMNS} FROM reflections WHERE session = ? ORDER BY length(trial), trial"
        rows = [from_row(row, ["evidence"]) for row in self.db.query(query, [session])]
        query = f"SELECT trial, {EARLIER_COLUMNS} FROM earlier_reflections WHERE session = ? AND version = 1"
        first = {row.pop("trial"): from_row(row, ["evidence"]) for row in self.db.query(query, [session])}
        return [ReflectionRecord.model_validate(row | {"amended_from": first.get(row["trial"])}) for row in rows]

    @reads
    def earlier(self, session: str, trial: str) -> list[EarlierReflection]:
        """The versions of a reflection that amendments have replaced, first version first."""
        query = f"SELECT {EARLIER_COLUMNS} FROM earlier_reflections WHERE session = ? AND trial = ? ORDER BY version"
        rows = self.db.query(query, [self._sessions.get(session).id, trial])
        return [EarlierReflection.model_validate(from_row(row, ["evidence"])) for row in rows]

    def _count_again(self, session: str) -> None:
        """Decide anew, in the order of writing, which reflections of a session repeat an earlier lesson."""
        self.db.execute("UPDATE reflections SET merged_into = trial, times_said = 1 WHERE session = ?", [session])
        query = f"SELECT {COLUMNS} FROM reflections WHERE session = ? ORDER BY id"
        for row in list(self.db.query(query, [session])):
            found = self._merged(ReflectionRecord.model_validate(from_row(row, ["evidence"]) | {"merged_into": None}))
            query = "UPDATE reflections SET merged_into = ?, times_said = ? WHERE id = ?"
            self.db.execute(query, [found.merged_into, found.times_said, found.id])

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


def _cleaned(record: ReflectionRecord, session: str) -> ReflectionRecord:
    """The reflection as it is stored: sanitised texts, not yet merged."""
    texts = {name: clean_text(getattr(record, name), LESSON_LIMIT) for name in TEXTS}
    dimension = clean_text(record.dimension, DIMENSION_LIMIT)
    fresh = {"session": session, "merged_into": None, "times_said": 1, "created_at": record.created_at or now()}
    return record.model_copy(update={**texts, **fresh, "dimension": dimension})


def _quoted(name: str) -> str:
    return f'"{name}"'
