"""The audit log of a home: what happened to datasets, sessions, trials and looks, as a chain that only grows.

    vault/audit.jsonl    one entry per line (`entries.py`), each with a MAC
    vault/audit_head     the anchor: number of entries, hash of the last one, size of the file, with a MAC
    vault/audit_key      the key of both MACs, 32 bytes

An append holds the lock of the log, writes its lines with one call, syncs them, and then replaces the anchor. A process
that is killed in between leaves an incomplete last line, which the next append removes, or an anchor that is behind the
log, which is no damage because each line has a MAC. The anchor is one sector, overwritten in place: after a power cut
it is the old or the new one, so it need not be synced. If the log is shorter than its anchor, or something else does
not fit, the append goes on from the anchor and first records an entry of the kind `damaged`: the gap stays visible.

Covered: entries that were changed, removed, added, reordered or cut off by anyone who does not have the key. Not
covered: a process of the vault's owner, which can read the key and write another log. The head in a receipt that was
given away (`receipts.py`) contradicts such a log.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ..data.atomic import write_bytes
from ..data.errors import HomeError, SealError
from ..data.locks import take_lock
from .entries import (
    GENESIS,
    SALT_BYTES,
    Anchor,
    Draft,
    Entry,
    Line,
    entry_of,
    followed,
    read_anchor,
    read_line,
    to_anchor,
    to_line,
)
from .vault import OWNER_ONLY, OWNER_ONLY_DIRECTORY, file_exists, other_owner_error
from .vault_keys import AUDIT_KEY, new_key, store_once, stored_key

LOG, ANCHOR = "audit.jsonl", "audit_head"
LOCK_SECONDS = 30.0
POLL_SECONDS = 0.002
NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


class _End(NamedTuple):
    """Where the next entry goes."""

    key: bytes
    length: int
    head: str
    size: int  # bytes of complete lines
    damage: str  # what does not fit; empty if all does


class AuditLog:
    """The log in a vault's directory; reading creates no file."""

    def __init__(self, vault_directory: Path) -> None:
        self.directory = vault_directory
        self.path = vault_directory / LOG
        self._anchor_path, self._key_path = vault_directory / ANCHOR, vault_directory / AUDIT_KEY

    @property
    def has_begun(self) -> bool:
        """Whether the log has an entry."""
        return file_exists(self.path) and self.path.stat().st_size > 0

    def begin(self, drafts: Callable[[], Sequence[Draft]]) -> None:
        """Begin the log with `drafts`, which are made outside the lock; no effect if it has entries.

        Raises SealError, HomeError.
        """
        if self.has_begun:
            return
        first = list(drafts())
        with self._locked() as descriptor:
            if os.fstat(descriptor).st_size == 0:
                self._write(descriptor, first)

    def append(self, draft: Draft) -> Entry:
        """Append one entry, synced to disk, and return it. Raises SealError, HomeError."""
        with self._locked() as descriptor:
            return self._write(descriptor, [draft])[-1]

    @contextmanager
    def snapshot(self) -> Iterator[tuple[list[Line], Anchor | None]]:
        """All lines and the anchor, while nothing is appended. Raises SealError, HomeError if they cannot be read.

        What the block reads elsewhere belongs to the same moment, except for the row of the last entry, whose
        transaction may not be over yet.
        """
        if not file_exists(self.path):
            yield [], self._anchor()
            return
        with self._locked():
            yield self.lines(), self._anchor()

    def lines(self) -> list[Line]:
        """All lines, without an incomplete last one. Raises HomeError if the log cannot be read."""
        key = self._key()
        try:
            content = self.path.read_bytes() if file_exists(self.path) else b""
        except OSError as error:
            raise self._unusable(error) from None
        return [read_line(number, line, key) for number, line in enumerate(content.split(b"\n")[:-1], 1)]

    def entries(self) -> list[Entry]:
        """The entries of all lines that are entries; `walk.py` says whether they are authentic."""
        return [line.entry for line in self.lines() if line.entry]

    def _anchor(self) -> Anchor | None:
        """The anchor; None if it is missing, damaged, or of another key."""
        try:
            return read_anchor(self._anchor_path.read_bytes(), self._key())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from None

    def _key(self) -> bytes:
        return stored_key(self._key_path) or new_key()  # without the key, no MAC is valid

    def _write(self, descriptor: int, drafts: Sequence[Draft]) -> list[Entry]:
        """Append under the lock: first what does not fit, if anything does not."""
        try:
            end = self._end(descriptor)
            damage = [Draft(kind="damaged", body={"found": end.damage})] if end.damage else []
            start = [Draft(kind="began")] if end.length == 0 and drafts[0].kind not in ("began", "adopted") else []
            entries = _entries([*damage, *start, *drafts], end)
            content = b"".join(to_line(entry, end.key) for entry in entries)
            if os.fstat(descriptor).st_size > end.size:
                os.ftruncate(descriptor, end.size)  # removes an incomplete last line
            os.lseek(descriptor, 0, os.SEEK_END)
            _write_all(descriptor, content)
            os.fsync(descriptor)
            anchor = Anchor(length=entries[-1].seq, head=entries[-1].hash, size=end.size + len(content))
            self._set_anchor(anchor, end.key)
        except OSError as error:
            raise self._unusable(error) from None
        return entries

    def _end(self, descriptor: int) -> _End:
        """Where the next entry goes. Only what is behind the anchor is read, unless the anchor is lost."""
        key, anchor, size = stored_key(self._key_path), self._anchor(), os.fstat(descriptor).st_size
        is_cut = anchor is not None and size < anchor.size
        start = anchor.size if anchor and not is_cut else 0
        lines = complete_lines(os.pread(descriptor, size - start, start))
        size = start + len(lines)
        if key is None:
            return _End(self._first_key(), 0, GENESIS, size, "the key of the audit log was removed" if lines else "")
        if is_cut and anchor:
            damage = f"the audit log was cut off: its anchor counts {anchor.length} entries"
            return _End(key, anchor.length, anchor.head, size, damage)
        rest = [read_line(0, line, key) for line in lines.split(b"\n")[:-1]]
        before = (anchor.length, anchor.head) if anchor else (0, GENESIS)
        length, head = followed(*before, rest)
        strange = len(rest) - (length - before[0])
        damage = f"the last {strange} lines of the audit log do not follow on those before them" if strange else ""
        return _End(key, length, head, size, damage if anchor else "the anchor of the audit log was removed or changed")

    def _first_key(self) -> bytes:
        """A new key. The anchor is written before it, so that a kill never leaves a key without an anchor."""
        key = new_key()
        write_bytes(self._anchor_path, to_anchor(Anchor(length=0, head=GENESIS, size=0), key), OWNER_ONLY)
        return store_once(self._key_path, key)

    def _set_anchor(self, anchor: Anchor, key: bytes) -> None:
        content = to_anchor(anchor, key)
        if not file_exists(self._anchor_path):
            write_bytes(self._anchor_path, content, OWNER_ONLY)
            return
        descriptor = os.open(self._anchor_path, os.O_WRONLY | NO_LINKS)
        try:
            os.pwrite(descriptor, content, 0)
        finally:
            os.close(descriptor)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """An open descriptor of the log, locked against other processes and threads."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY_DIRECTORY)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | NO_LINKS, OWNER_ONLY)
        except PermissionError:
            raise other_owner_error(self.path) from None
        except OSError as error:
            raise self._unusable(error) from None
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while not take_lock(descriptor):
                if time.monotonic() > deadline:
                    raise SealError(f"{str(self.path)!r} is locked by another process; end it and try again")
                time.sleep(POLL_SECONDS)
            yield descriptor
        finally:
            os.close(descriptor)

    def _unusable(self, error: OSError) -> HomeError:
        return HomeError(
            f"the audit log {str(self.path)!r} cannot be used ({error.strerror}); free some disk space, or restore it"
        )


def complete_lines(content: bytes) -> bytes:
    """`content` without an incomplete last line."""
    return content[: content.rfind(b"\n") + 1]


def _entries(drafts: Sequence[Draft], end: _End) -> list[Entry]:
    """The entries that `drafts` become after `end`."""
    entries: list[Entry] = []
    length, head = end.length, end.head
    for draft in drafts:
        salt, at = secrets.token_hex(SALT_BYTES), datetime.now(UTC).isoformat(timespec="milliseconds")
        entries.append(entry_of(draft, length + 1, at, salt, head))
        length, head = entries[-1].seq, entries[-1].hash
    return entries


def _write_all(descriptor: int, content: bytes) -> None:
    """Write all bytes; os.write may write fewer, e.g. on a nearly full disk."""
    while content:
        content = content[os.write(descriptor, content) :]
