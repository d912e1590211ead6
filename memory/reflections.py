"""What agents make of trials and of whole sessions: reflections, one per trial, and Cognition Summaries."""

from sqlite_utils import Database

from ..data.errors import SessionError
from .records import ReflectionRecord, SummaryRecord
from .rows import columns_of, from_row, insert, now, to_row
from .sessions import get_session, require_open
from .text import clean_text
from .trials import get_trial

DIMENSION_LIMIT = 100
LESSON_LIMIT = 2000
SUMMARY_LIMIT = 8000
REFLECTION_COLUMNS = columns_of(ReflectionRecord)
SUMMARY_COLUMNS = columns_of(SummaryRecord)


def add_reflection(db: Database, record: ReflectionRecord) -> ReflectionRecord:
    """Store the reflection on a trial that is over; SessionError if there is one already."""
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
            "lesson": clean_text(record.lesson, LESSON_LIMIT),
            "next_step": clean_text(record.next_step, LESSON_LIMIT),
            "check_note": clean_text(record.check_note, LESSON_LIMIT),
            "created_at": record.created_at or now(),
        }
    )
    rowid = insert(db, "reflections", to_row(reflection, leave_out=["id"]))
    return reflection.model_copy(update={"id": rowid})


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
    rows = db.query(f"SELECT {SUMMARY_COLUMNS} FROM summaries ORDER BY id")
    return [SummaryRecord.model_validate(from_row(row, ["computed", "profile"])) for row in rows]
