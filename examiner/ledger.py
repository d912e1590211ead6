"""The look ledger: every evaluation on test targets, counted per dataset content, before it happens.

An SQLite file: the insert is one locked, synced transaction, so that two examiners at once get two numbers, and a
power cut leaves either the whole line or none. Lines are only ever added; triggers refuse anything else.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..data.errors import SealError
from .vault import not_ours, present

LEDGER = "looks.db"
BUSY_SECONDS = 30.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS look (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    session TEXT NOT NULL UNIQUE,
    dataset TEXT NOT NULL,
    dataset_id TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    look INTEGER NOT NULL,
    at TEXT NOT NULL,
    UNIQUE (fingerprint, look)
);
CREATE TRIGGER IF NOT EXISTS look_keeps BEFORE UPDATE ON look BEGIN SELECT RAISE(ABORT, 'looks only grow'); END;
CREATE TRIGGER IF NOT EXISTS look_stays BEFORE DELETE ON look BEGIN SELECT RAISE(ABORT, 'looks only grow'); END;
"""


@dataclass(frozen=True)
class Look:
    """One line: session `session` looked at this content for the `look`-th time that anybody did, here."""

    session: str
    dataset: str  # its name then
    dataset_id: str
    fingerprint: str  # 64 hex digits, over all events
    look: int  # 1 = first
    at: str  # UTC, ISO 8601


class Ledger:
    """The ledger in a vault's directory; reading creates nothing."""

    def __init__(self, vault_directory: Path) -> None:
        self.path = vault_directory / LEDGER

    def looks(self) -> list[Look]:
        """All lines, oldest first."""
        if not present(self.path):
            return []
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT session, dataset, dataset_id, fingerprint, look, at FROM look ORDER BY id"
            ).fetchall()
        return [Look(*row) for row in rows]

    def find(self, session: str) -> Look | None:
        """The line of a session, if it has looked."""
        return next((look for look in self.looks() if look.session == session), None)

    def record(self, session: str, dataset: str, dataset_id: str, fingerprint: str) -> Look:
        """Add a line and return it; on disk when this returns. Raises SealError if the session has looked before."""
        self._create()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("SELECT 1 FROM look WHERE session = ?", [session]).fetchone():
                connection.execute("ROLLBACK")
                raise SealError(already_looked(session))
            (before,) = connection.execute("SELECT count(*) FROM look WHERE fingerprint = ?", [fingerprint]).fetchone()
            look = Look(session, dataset, dataset_id, fingerprint, before + 1, now)
            connection.execute(
                "INSERT INTO look (session, dataset, dataset_id, fingerprint, look, at) VALUES (?, ?, ?, ?, ?, ?)",
                [session, dataset, dataset_id, fingerprint, look.look, now],
            )
            connection.execute("COMMIT")
        return look

    def _create(self) -> None:
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite's side files take over the mode
        except PermissionError:
            raise not_ours(self.path) from None
        except OSError as error:
            raise SealError(
                f"the look ledger {str(self.path)!r} cannot be written ({error.strerror}); free some disk space"
            ) from None

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        if not os.access(self.path, os.R_OK | os.W_OK):
            raise not_ours(self.path)
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.executescript(_SCHEMA)
            yield connection
        except sqlite3.Error as error:
            raise SealError(f"the look ledger {str(self.path)!r} cannot be used ({error}); restore it") from None
        finally:
            connection.close()


def already_looked(session: str) -> str:
    """The refusal of a second look."""
    return f"session {session} has used its one look at the test set; open a new session to go on"
