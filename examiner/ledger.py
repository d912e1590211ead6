"""The look ledger: it records every evaluation on test targets before it starts, counted per dataset content.

Two looks are at the same content if the fingerprints of their logs are equal, or if their sketches (`data/sketch.py`)
are as similar as SAME_CONTENT: a log with shuffled rows, other units, other names or a few rows more or less is another
file with the same test targets. Only the examiner can compare sketches, which lie sealed in the ledger.

It also records every refit (`refit.py`), which opens the seal to train a model on test events; a refit is not a look.

The ledger is an SQLite file. Each insert is one locked, synced transaction, so that concurrent examiners get different
look numbers and a power cut leaves either the complete row or none. Triggers reject updates and deletes of rows.
"""

import json
import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..data.errors import SealError
from ..data.safe_open import refuse_links, split_beneath
from ..data.sketch import SAME_CONTENT, Similarity
from ..data.wording import counted
from .entries import digest_of
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
# Columns that older ledgers lack: the sealed sketch, the sessions of earlier looks at the same content (JSON), and what
# is said about near-duplicates among these
_ADDED = {
    "sketch": "BLOB NOT NULL DEFAULT x''",
    "earlier": "TEXT NOT NULL DEFAULT '[]'",
    "note": "TEXT NOT NULL DEFAULT ''",
}
NAMED = 3  # near-duplicates that a note names


class ContentSketch(Protocol):
    """The sketch of the content of a new row; `sketches.py` implements it."""

    def sealed(self, fingerprint: str) -> bytes:
        """The sketch as the ledger keeps it."""

    def similarity(self, sealed: bytes, fingerprint: str) -> Similarity | None:
        """The similarity to the content of an earlier row; None if that is unknown."""


@dataclass(frozen=True)
class Look:
    """One row: the evaluation by `session` was look number `look` at this content in this home."""

    session: str
    dataset: str  # its name at that time
    dataset_id: str
    fingerprint: str  # hash of all events, 64 hex digits
    look: int  # 1 = first
    at: str  # UTC, ISO 8601
    earlier: tuple[str, ...] = ()  # the sessions of the earlier looks at this content
    note: str = ""  # which other logs with nearly the same content these looks were at


@dataclass(frozen=True)
class Refit:
    """One row: a model of `session` was trained on all events of this content, including the test events."""

    session: str
    dataset: str  # its name at that time
    dataset_id: str
    fingerprint: str  # hash of all events, 64 hex digits
    at: str  # UTC, ISO 8601
    earlier: tuple[str, ...] = ()  # the sessions of the earlier looks at this content
    note: str = ""


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
                "SELECT session, dataset, dataset_id, fingerprint, look, at, earlier, note FROM look ORDER BY id"
            ).fetchall()
        return [Look(*_fields(row)) for row in rows]

    def find(self, session: str) -> Look | None:
        """The row of a session, or None if it has not looked."""
        return next((look for look in self.looks() if look.session == session), None)

    def row_digests(self) -> dict[str, str]:
        """SHA-256 of every row with its sealed sketch, 64 hex digits, by session: what the audit log records of it."""
        if not file_exists(self.path):
            return {}
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT session, dataset, dataset_id, fingerprint, look, at, earlier, note, sketch FROM look"
            ).fetchall()
        return {row[0]: digest_of([*row[:-1], bytes(row[-1]).hex()]) for row in rows}

    def sealed_sketch(self, session: str) -> bytes:
        """The sketch in the row of a session, as ciphertext; empty if the row has none, or if there is no row."""
        if not file_exists(self.path):
            return b""
        with self._connection() as connection:
            row = connection.execute("SELECT sketch FROM look WHERE session = ?", [session]).fetchone()
        return bytes(row[0]) if row else b""

    def record(
        self, session: str, dataset: str, dataset_id: str, fingerprint: str, sketch: ContentSketch | None = None
    ) -> Look:
        """Add a row, synced to disk, and return it. Raises SealError if the session has looked before.

        Without `sketch`, only looks at exactly the same content are counted.
        """
        self._create()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("SELECT 1 FROM look WHERE session = ?", [session]).fetchone():
                connection.execute("ROLLBACK")
                raise SealError(second_look_message(session))
            found = _earlier_looks(connection, fingerprint, sketch)
            # A row without a sketch may have been counted less than an earlier one with the same fingerprint
            highest = max((row.look for row in found if row.fingerprint == fingerprint), default=0)
            number = max(len(found), highest) + 1
            sessions = tuple(row.session for row in found)
            look = Look(session, dataset, dataset_id, fingerprint, number, now, sessions, _note(found))
            connection.execute(
                "INSERT INTO look (session, dataset, dataset_id, fingerprint, look, at, earlier, note, sketch) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [session, dataset, dataset_id, fingerprint, number, now, *_further(look, sketch)],
            )
            connection.execute("COMMIT")
        return look

    def refits(self) -> list[Refit]:
        """All refits, oldest first."""
        if not file_exists(self.path):
            return []
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT session, dataset, dataset_id, fingerprint, at, earlier, note FROM refit ORDER BY id"
            ).fetchall()
        return [Refit(*_fields(row)) for row in rows]

    def record_refit(
        self, session: str, dataset: str, dataset_id: str, fingerprint: str, sketch: ContentSketch | None = None
    ) -> Refit:
        """Add a refit, synced to disk, and return it; a session may be refitted several times."""
        self._create()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            found = _earlier_looks(connection, fingerprint, sketch)
            sessions = tuple(row.session for row in found)
            refit = Refit(session, dataset, dataset_id, fingerprint, now, sessions, _note(found))
            connection.execute(
                "INSERT INTO refit (session, dataset, dataset_id, fingerprint, at, earlier, note, sketch) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [session, dataset, dataset_id, fingerprint, now, *_further(refit, sketch)],
            )
            connection.execute("COMMIT")
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
            _add_columns(connection)
            yield connection
        except sqlite3.Error as error:
            raise SealError(f"the look ledger {str(self.path)!r} cannot be used ({error}); restore it") from None
        finally:
            connection.close()


class _Earlier(NamedTuple):
    """An earlier look at the same content as a new row."""

    session: str
    dataset: str
    fingerprint: str
    look: int
    similarity: Similarity | None  # None: exactly the same content


def _earlier_looks(
    connection: sqlite3.Connection, fingerprint: str, sketch: ContentSketch | None
) -> list[_Earlier]:
    rows = connection.execute("SELECT session, dataset, fingerprint, look, sketch FROM look ORDER BY id").fetchall()
    found = []
    for session, dataset, other, number, sealed in rows:
        equal = other == fingerprint
        similar = sketch.similarity(sealed, other) if sketch and not equal else None
        if equal or (similar and similar.share >= SAME_CONTENT):
            found.append(_Earlier(session, dataset, other, number, similar))
    return found


def _note(found: Sequence[_Earlier]) -> str:
    """What is said about the looks at near-duplicates of a content: the logs, the most similar first."""
    near: dict[str, list[Similarity]] = {}
    for row in found:
        if row.similarity:
            near.setdefault(row.dataset, []).append(row.similarity)
    best = {name: max(each, key=lambda one: one.share) for name, each in near.items()}
    names = sorted(near, key=lambda name: -best[name].share)
    parts = [f"{best[name].in_words(name)}, {counted(len(near[name]), 'look')}" for name in names[:NAMED]]
    rest = len(names) - NAMED
    return "; ".join([*parts, f"and {counted(rest, 'more log')}"] if rest > 0 else parts)


def _fields(row: Sequence[Any]) -> list[Any]:
    """The fields of a row that ends with the columns earlier and note."""
    *first, earlier, note = row
    return [*first, tuple(json.loads(earlier)), note]


def _further(row: Look | Refit, sketch: ContentSketch | None) -> list[object]:
    """The values of the columns earlier, note and sketch."""
    return [json.dumps(row.earlier), row.note, sketch.sealed(row.fingerprint) if sketch else b""]


def _add_columns(connection: sqlite3.Connection) -> None:
    """Bring the tables of an older ledger up to date; existing rows get the defaults."""
    if not any(_missing(connection)):
        return
    connection.execute("BEGIN IMMEDIATE")  # another process may be doing the same
    for table, column in list(_missing(connection)):
        connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {_ADDED[column]}")
    connection.execute("COMMIT")


def _missing(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    for table in ("look", "refit"):
        present = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        yield from ((table, column) for column in _ADDED if column not in present)


def looks_at(looks: Sequence[Look], dataset_ids: Collection[str]) -> list[Look]:
    """The looks at the content of any of these datasets, and at contents that were counted together with it."""
    sessions = {look.session for look in looks if look.dataset_id in dataset_ids}
    contents = {look.fingerprint for look in looks if look.session in sessions}
    sessions |= {look.session for look in looks if look.fingerprint in contents}
    before = {session for look in looks if look.session in sessions for session in look.earlier}
    return [look for look in looks if look.session in sessions | before or sessions & {*look.earlier}]


def second_look_message(session: str) -> str:
    """The error message for a second look."""
    return f"session {session} has used its one look at the test set; open a new session to continue"
