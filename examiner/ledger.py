"""The look ledger: it records every evaluation on test targets before it starts, counted per dataset content.

It also records every refit (`refit.py`), which opens the seal to train a model on test events; a refit is not a look.

The ledger is an SQLite file. Each insert is one locked, synced transaction, so that concurrent examiners get different
look numbers and a power cut leaves either the complete row or none. Triggers reject updates and deletes of rows.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..data.errors import SealError
from ..data.safe_open import refuse_links, split_beneath
from .vault import file_exists, other_owner_error

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
CREATE TABLE IF NOT EXISTS refit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    session TEXT NOT NULL,
    dataset TEXT NOT NULL,
    dataset_id TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    at TEXT NOT NULL
);
CREATE TRIGGER IF NOT EXISTS refit_keeps BEFORE UPDATE ON refit BEGIN SELECT RAISE(ABORT, 'refits only grow'); END;
CREATE TRIGGER IF NOT EXISTS refit_stays BEFORE DELETE ON refit BEGIN SELECT RAISE(ABORT, 'refits only grow'); END;
"""


@dataclass(frozen=True)
class Look:
    """One row: the evaluation by `session` was look number `look` at this content in this home."""

    session: str
    dataset: str  # its name at that time
    dataset_id: str
    fingerprint: str  # hash of all events, 64 hex digits
    look: int  # 1 = first
    at: str  # UTC, ISO 8601


@dataclass(frozen=True)
class Refit:
    """One row: a model of `session` was trained on all events of this content, including the test events."""

    session: str
    dataset: str  # its name at that time
    dataset_id: str
    fingerprint: str  # hash of all events, 64 hex digits
    at: str  # UTC, ISO 8601


class Ledger:
    """The ledger in a vault's directory; reading does not create the file."""

    def __init__(self, vault_directory: Path) -> None:
        self.path = vault_directory / LEDGER

    def looks(self) -> list[Look]:
        """All rows, oldest first."""
        if not file_exists(self.path):
            return []
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT session, dataset, dataset_id, fingerprint, look, at FROM look ORDER BY id"
            ).fetchall()
        return [Look(*row) for row in rows]

    def find(self, session: str) -> Look | None:
        """The row of a session, or None if it has not looked."""
        return next((look for look in self.looks() if look.session == session), None)

    def record(self, session: str, dataset: str, dataset_id: str, fingerprint: str) -> Look:
        """Add a row, synced to disk, and return it. Raises SealError if the session has looked before."""
        self._create()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("SELECT 1 FROM look WHERE session = ?", [session]).fetchone():
                connection.execute("ROLLBACK")
                raise SealError(second_look_message(session))
            (count,) = connection.execute("SELECT count(*) FROM look WHERE fingerprint = ?", [fingerprint]).fetchone()
            look = Look(session, dataset, dataset_id, fingerprint, count + 1, now)
            connection.execute(
                "INSERT INTO look (session, dataset, dataset_id, fingerprint, look, at) VALUES (?, ?, ?, ?, ?, ?)",
                [session, dataset, dataset_id, fingerprint, look.look, now],
            )
            connection.execute("COMMIT")
        return look

    def refits(self) -> list[Refit]:
        """All refits, oldest first."""
        if not file_exists(self.path):
            return []
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT session, dataset, dataset_id, fingerprint, at FROM refit ORDER BY id"
            ).fetchall()
        return [Refit(*row) for row in rows]

    def record_refit(self, session: str, dataset: str, dataset_id: str, fingerprint: str) -> Refit:
        """Add a refit, synced to disk, and return it; a session may be refitted several times."""
        self._create()
        refit = Refit(session, dataset, dataset_id, fingerprint, datetime.now(UTC).isoformat(timespec="seconds"))
        with self._connection() as connection:
            connection.execute(
                "INSERT INTO refit (session, dataset, dataset_id, fingerprint, at) VALUES (?, ?, ?, ?, ?)",
                [refit.session, refit.dataset, refit.dataset_id, refit.fingerprint, refit.at],
            )
        return refit

    def _create(self) -> None:
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite's journal files inherit the mode
        except PermissionError:
            raise other_owner_error(self.path) from None
        except OSError as error:
            raise SealError(
                f"the look ledger {str(self.path)!r} cannot be written ({error.strerror}); free some disk space"
            ) from None

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        root, parts = split_beneath(self.path, 3)
        refuse_links(root, *parts, error=SealError)
        if not os.access(self.path, os.R_OK | os.W_OK):
            raise other_owner_error(self.path)
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.executescript(_SCHEMA)
            yield connection
        except sqlite3.Error as error:
            raise SealError(f"the look ledger {str(self.path)!r} cannot be used ({error}); restore it") from None
        finally:
            connection.close()


def second_look_message(session: str) -> str:
    """The error message for a second look."""
    return f"session {session} has used its one look at the test set; open a new session to continue"
