"""What agents make of trials and of whole sessions: reflections, one per trial, and Cognition Summaries."""

from collections.abc import Sequence

from sqlite_utils import Database

from ..data.errors import SessionError
from .records import ReflectionRecord, SummaryRecord
from .rows import Row, among, columns_of, from_row, insert, now, to_row
from .sessions import get_session, require_open
from .text import alike, clean_text
from .trials import get_trial

DIMENSION_LIMIT = 100
LESSON_LIMIT = 2000
SUMMARY_LIMIT = 8000
SAME_LESSON = 0.8
"""From this share of common content words on, two lessons of one dimension and direction count as one."""
REFLECTION_COLUMNS = columns_of(ReflectionRecord)
SUMMARY_COLUMNS = columns_of(SummaryRecord)


def add_reflection(db: Database, record: ReflectionRecord) -> ReflectionRecord:
    """Store the reflection on a trial that is over; SessionError if there is one already.

    One that says nearly the same as an earlier one of its session is stored with a pointer to it, and counted there.
    """
    session = require_open(db, record.session).id
    trial = get_trial(db, session, record.trial)
    if trial.status == "running":
        raise SessionError(f"trial {trial.handle} of session {session!r} is still running; reflect once it is over")
    if trial.reflected:
        raise SessionError(f"trial {trial.handle} of session {session!r} has a reflection already; a trial has one")
    reflection = record.model_copy(
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
    reflection = _merged(db, reflection)
    rowid = insert(db, "reflections", to_row(reflection, leave_out=["id"]))
    return reflection.model_copy(update={"id": rowid})


def _merged(db: Database, reflection: ReflectionRecord) -> ReflectionRecord:
    """The reflection, pointing to the earlier one that says nearly the same, if there is one, and counted there.

    Two that were checked differently are never one: a lesson that the numbers bear out does not count for one that
    they do not.
    """
    earlier = db.query(
        "SELECT trial, lesson, times_said FROM reflections WHERE session = ? AND dimension = ? AND helped = ? "
        'AND "check" = ? AND merged_into IS NULL ORDER BY id',
        [reflection.session, reflection.dimension, reflection.helped, reflection.check],
    )
    same = next((row for row in list(earlier) if alike(row["lesson"], reflection.lesson) >= SAME_LESSON), None)
    if same is None:
        return reflection
    times = same["times_said"] + 1
    where = "WHERE session = ? AND trial = ?"
    db.execute(f"UPDATE reflections SET times_said = ? {where}", [times, reflection.session, same["trial"]])
    return reflection.model_copy(update={"merged_into": same["trial"], "times_said": times})


def all_reflections(db: Database, session: str) -> list[ReflectionRecord]:
    """The reflections of a session, in the order of its trials."""
    query = f"SELECT {REFLECTION_COLUMNS} FROM reflections WHERE session = ? ORDER BY length(trial), trial"
    rows = db.query(query, [get_session(db, session).id])
    return [ReflectionRecord.model_validate(from_row(row, ["evidence"])) for row in rows]


def add_summary(db: Database, record: SummaryRecord) -> SummaryRecord:
    """Store the summary of an open session; the last one before the freeze replaces those before it."""
    summary = record.model_copy(
        update={
            "session": require_open(db, record.session).id,
            "text": clean_text(record.text, SUMMARY_LIMIT),
            "created_at": record.created_at or now(),
        }
    )
    db.execute("DELETE FROM summaries WHERE session = ?", [summary.session])
    insert(db, "summaries", to_row(summary))
    return summary


def all_summaries(db: Database) -> list[SummaryRecord]:
    """Every Cognition Summary, oldest first."""
    return [_summary(row) for row in db.query(f"SELECT {SUMMARY_COLUMNS} FROM summaries ORDER BY id")]


def teaching_datasets(db: Database) -> list[str]:
    """The names of the datasets that any rule or summary comes from, in order."""
    query = "SELECT dataset FROM summaries UNION SELECT dataset FROM rules WHERE dataset <> '' ORDER BY dataset"
    return [name for (name,) in db.execute(query).fetchall()]


def latest_summaries(db: Database, datasets: Sequence[str], limit: int) -> list[SummaryRecord]:
    """The newest `limit` summaries, oldest of them first; of some datasets alone, if any are named."""
    query = f"SELECT {SUMMARY_COLUMNS} FROM summaries {among(datasets)} ORDER BY id DESC LIMIT ?"
    return [_summary(row) for row in list(db.query(query, [*datasets, limit]))][::-1]


def _summary(row: Row) -> SummaryRecord:
    return SummaryRecord.model_validate(from_row(row, ["computed", "profile"]))
