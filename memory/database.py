"""The connection to memory.db: schema migrations, sharing between threads, transactions, and error messages.

Every process has its own connection; the threads of a process share it, each holding its lock for milliseconds. Writers
take the write lock first (BEGIN IMMEDIATE), so that the rows they read cannot change before they write.

`Repository` is the base class of the classes that query memory.db (`Sessions`, `Trials`, `Rules`, ...). Each of their
public methods is marked `@reads` or `@writes` and is one transaction; nested calls join the transaction of the caller.
"""

import functools
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from sqlite_utils import Database

from ..data.errors import MemoryStoreError
from .migrations import MIGRATIONS

ADVICE = {
    sqlite3.SQLITE_BUSY: "another process has it locked; wait for that process to finish and try again",
    sqlite3.SQLITE_LOCKED: "another process has it locked; wait for that process to finish and try again",
    sqlite3.SQLITE_FULL: "the disk is full; free some space and try again; this call stored nothing",
    sqlite3.SQLITE_READONLY: "it is read-only; give this user write access to the file and its directory, "
    "or choose another home with --home",
    sqlite3.SQLITE_PERM: "access is denied; give this user write access to the file and its directory",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; its directory must exist and be writable, "
    "or choose another home with --home",
    sqlite3.SQLITE_IOERR: "the disk reports an input/output error; check the disk, then try again",
    sqlite3.SQLITE_NOTADB: "it is not an SQLite database; move it away, or restore it from a backup",
    sqlite3.SQLITE_CORRUPT: "it is damaged; move it away together with its -wal and -shm files, "
    "or restore it from a backup",
}
"""Advice by primary SQLite result code. Any other error is a bug in this package and is raised unchanged."""


class MemoryDatabase:
    """memory.db at `path`, or an in-memory database if `path` is None.

    A call waits up to `busy_seconds` for a lock of another process. Raises MemoryStoreError for a file that cannot be
    used: locked, read-only, damaged, of another program, or written by a newer VirtualMLE.
    """

    def __init__(self, path: Path | None, busy_seconds: float) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._file: tuple[int, int] | None = None  # (device, inode) of the open file, known once it exists
        with self._translated_errors():
            if path:
                _create_private(path)
            connection = sqlite3.connect(
                path or ":memory:", timeout=busy_seconds, check_same_thread=False, isolation_level=None
            )
            with ExitStack() as on_failure:
                on_failure.callback(connection.close)
                self.db = Database(connection)
                self._prepare()
                self._file = self._identity()
                on_failure.pop_all()

    @contextmanager
    def reading(self) -> Iterator[Database]:
        """Lock the connection for reads."""
        with self._lock, self._translated_errors():
            yield self.db

    @contextmanager
    def writing(self) -> Iterator[Database]:
        """Run an atomic transaction that holds the write lock; it is rolled back on any exception.

        Inside another `writing` of the same thread, it joins the outer transaction.
        """
        with self._lock, self._translated_errors():
            if self.db.conn.in_transaction:
                yield self.db
                return
            self._refuse_replaced()
            self.db.execute("BEGIN IMMEDIATE")
            with self.db.conn:  # commits, or rolls back on any exception, also on one of the commit
                yield self.db

    def close(self) -> None:
        """Close the connection; the object cannot be used afterwards."""
        with self._lock:
            self.db.close()

    def _prepare(self) -> None:
        self.db.execute("PRAGMA foreign_keys = ON")
        self._refuse_foreign()
        self._refuse_newer()
        self._use_wal()
        if MIGRATIONS.pending(self.db):
            with self.writing() as db:  # if several processes open a new file at once, one creates the schema
                MIGRATIONS.apply(db)

    def _use_wal(self) -> None:
        """Allow reads during a write. WAL mode is a persistent property of the file, so any process may set it."""
        if self.db.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            return
        try:
            self.db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:  # busy: another process is setting it right now
                raise

    def _identity(self) -> tuple[int, int] | None:
        """(device, inode) of the file at `path` now, or None if there is none."""
        if self.path is None or not self.path.exists():
            return None
        status = self.path.stat()
        return status.st_dev, status.st_ino

    def _refuse_replaced(self) -> None:
        """Raise if the file was replaced, because SQLite would silently write to the deleted file."""
        if self._file is not None and self._identity() != self._file:
            raise MemoryStoreError(f"{self.path} was removed or replaced while it was in use; restart to continue")

    def _refuse_newer(self) -> None:
        with Database(memory=True) as empty:
            known = {migration.name for migration in MIGRATIONS.pending(empty)}
        newer = [m.name for m in MIGRATIONS.applied(self.db) if m.name not in known]
        if newer:
            raise MemoryStoreError(
                f"{self.path} was written by a newer VirtualMLE (it has {', '.join(newer)}); "
                "upgrade VirtualMLE, or choose another home with --home"
            )

    def _refuse_foreign(self) -> None:
        tables = self.db.table_names()  # read first: another process may be creating the schema
        if tables and not MIGRATIONS.applied(self.db):
            raise MemoryStoreError(
                f"{self.path} belongs to another program (it has the tables {', '.join(tables[:5])}); "
                "move it away, or choose another home with --home"
            )

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            advice = ADVICE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)  # the low byte is the primary code
            if advice is None:
                raise
            raise MemoryStoreError(f"{self.path or 'the memory database'}: {error}: {advice}") from error


def _create_private(path: Path) -> None:
    """Create the file for its owner only, as SQLite then creates -wal and -shm; if it fails, SQLite says why."""
    with suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


class Repository:
    """Queries on one kind of row. Only methods marked `@reads` or `@writes`, and their callees, may use `db`."""

    def __init__(self, database: MemoryDatabase) -> None:
        self.database = database
        self.db = database.db


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Repository)


def reads(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Decorator: the method runs while no other thread uses the connection."""

    @functools.wraps(method)
    def locked(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.database.reading():
            return method(self, *args, **kwargs)

    return locked


def writes(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Decorator: the method runs in a transaction that holds the write lock."""

    @functools.wraps(method)
    def in_transaction(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.database.writing():
            return method(self, *args, **kwargs)

    return in_transaction
