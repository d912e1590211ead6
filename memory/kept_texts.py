"""Texts that stay with their session: what agents wrote for later sessions after a look at the test set of their data.

A person can read them (`virtualmle memory show SESSION`); no tool returns them, and nothing of them is exported.
"""

from typing import Literal

from .database import Repository, reads, writes
from .records import KeptText
from .rows import columns_of, insert, now, to_row
from .text import clean_text

TEXT_LIMIT = 8000
COLUMNS = columns_of(KeptText)


class KeptTexts(Repository):
    """The table of these texts."""

    @writes
    def add(self, session: str, kind: Literal["rule", "summary"], text: str) -> None:
        """Store a text with its session, which must exist."""
        record = KeptText(session=session, kind=kind, text=clean_text(text, TEXT_LIMIT), created_at=now())
        insert(self.db, "kept_texts", to_row(record))

    @reads
    def all(self, session: str) -> list[KeptText]:
        """The texts of a session, oldest first."""
        query = f"SELECT {COLUMNS} FROM kept_texts WHERE session = ? ORDER BY id"
        return [KeptText.model_validate(row) for row in self.db.query(query, [session])]
