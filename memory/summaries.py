"""Cognition Summaries: the conclusions of each session, as the agent's text and as computed figures."""

from .database import MemoryDatabase, Repository, reads, writes
from .records import SummaryRecord
from .rows import Row, columns_of, from_row, insert, now, to_row
from .sessions import Sessions
from .text import clean_text

SUMMARY_LIMIT = 8000
SUMMARY_COLUMNS = columns_of(SummaryRecord)


class Summaries(Repository):
    """The table of Cognition Summaries, at most one per session."""

    def __init__(self, database: MemoryDatabase, sessions: Sessions) -> None:
        super().__init__(database)
        self._sessions = sessions

    @writes
    def add(self, record: SummaryRecord) -> None:
        """Store the summary of an open session, replacing an earlier one; SessionError if the session is not open."""
        summary = record.model_copy(
            update={
                "session": self._sessions.require_open(record.session).id,
                "text": clean_text(record.text, SUMMARY_LIMIT),
                "created_at": record.created_at or now(),
            }
        )
        self.db.execute("DELETE FROM summaries WHERE session = ?", [summary.session])
        insert(self.db, "summaries", to_row(summary))

    @reads
    def all(self) -> list[SummaryRecord]:
        """Every Cognition Summary, oldest first."""
        return [summary_record(row) for row in self.db.query(f"SELECT {SUMMARY_COLUMNS} FROM summaries ORDER BY id")]


def summary_record(row: Row) -> SummaryRecord:
    """Convert a row of `SUMMARY_COLUMNS` to a record."""
    return SummaryRecord.model_validate(from_row(row, ["computed", "profile"]))
