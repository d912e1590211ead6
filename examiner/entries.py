"""The entries of the audit log and the arithmetic of their chain. No file is read or written here.

An entry's content is its number, time, kind, session, body and 16 random bytes of salt, as canonical JSON. Its hash is
SHA-256 over the hash of the entry before it and the SHA-256 of its content:

    hash(n) = SHA-256(hash(n - 1), SHA-256(content(n)))        hash(0) = 32 zero bytes

An excerpt can therefore leave out the content of an entry and state its digest only, and the chain can still be
recomputed. The salt keeps anyone from checking a guess of a content against its digest. (Chained hashes as in Schneier
and Kelsey, Secure Audit Logs to Support Computer Forensics, ACM TISSEC 2(2), 1999; the log has no forward security,
because its key stays in the vault.)
"""

import hashlib
import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

GENESIS = "0" * 64  # the hash before the first entry
SALT_BYTES = 16
ANCHOR_BYTES = 512  # of its file: one sector
ENTRY_DOMAIN, ANCHOR_DOMAIN = b"VMLE-AUDIT-ENTRY-1\n", b"VMLE-AUDIT-ANCHOR-1\n"

Kind = Literal[
    "began",  # the log begins with the home
    "adopted",  # the log begins in a home that was used before; and, for each of its sessions, what was there
    "damaged",  # what did not fit when an entry was appended
    "keys",  # public keys of the vault
    "registered", "replaced", "removed",  # a dataset
    "opened", "extended",  # a session and its budget
    "admitted", "verdict",  # a trial
    "frozen",  # the choice
    "look", "revealed", "void",  # the examination
    "refit",  # the seal was opened to train on test events
]  # fmt: skip


class Draft(BaseModel):
    """What an entry says, before it has a place in the log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    session: str = ""  # empty: of the home
    body: dict[str, Any] = {}


class Entry(Draft):
    """One entry of the log. Hashes are 64 hex digits."""

    seq: int  # counts from 1
    at: str  # UTC, ISO 8601 with milliseconds
    salt: str  # 32 hex digits
    prev: str  # hash of the entry before it
    hash: str

    @property
    def content(self) -> dict[str, Any]:
        """What the hash covers, besides the entry before it."""
        return self.model_dump(include={"seq", "at", "kind", "session", "body", "salt"})

    @property
    def digest(self) -> str:
        """The SHA-256 of the content."""
        return digest_of(self.content)

    @property
    def fits(self) -> bool:
        """Whether the hash is the one of the content and of `prev`."""
        return self.hash == chained(self.prev, self.digest)


class Anchor(BaseModel):
    """The length and head of the log at some moment, and its size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int  # entries
    head: str  # hash of the last one, GENESIS without any
    size: int  # bytes


@dataclass(frozen=True)
class Line:
    """A line of the log as it was read: its entry, unless it is not one, and whether its MAC is valid."""

    number: int  # counts from 1
    entry: Entry | None
    is_ours: bool  # written by a holder of the key


def canonical(value: Any) -> bytes:
    """One representation for equal JSON values: sorted names, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def digest_of(value: Any) -> str:
    """The SHA-256 of a JSON value."""
    return hashlib.sha256(canonical(value)).hexdigest()


def chained(prev: str, digest: str) -> str:
    """The hash of an entry. Raises ValueError for arguments that are not hexadecimal."""
    return hashlib.sha256(bytes.fromhex(prev) + bytes.fromhex(digest)).hexdigest()


def entry_of(draft: Draft, seq: int, at: str, salt: str, prev: str) -> Entry:
    """The entry that `draft` becomes at its place."""
    fields = {"seq": seq, "at": at, "salt": salt, **draft.model_dump()}
    return Entry(**fields, prev=prev, hash=chained(prev, digest_of(fields)))


def to_line(entry: Entry, key: bytes) -> bytes:
    """An entry as a line of the log, with its MAC (HMAC-SHA256 over its hash)."""
    return canonical({**entry.model_dump(), "mac": _mac(key, ENTRY_DOMAIN, entry.hash)}) + b"\n"


def read_line(number: int, line: bytes, key: bytes) -> Line:
    """Read a line of the log; never raises."""
    try:
        fields = json.loads(line)
        mac = fields.pop("mac")
        entry = Entry.model_validate(fields)
        bytes.fromhex(entry.prev)
    except (ValueError, ValidationError, KeyError, AttributeError, TypeError, RecursionError):
        return Line(number, None, is_ours=False)
    return Line(number, entry, is_ours=_is_mac(mac, _mac(key, ENTRY_DOMAIN, entry.hash)))


def to_anchor(anchor: Anchor, key: bytes) -> bytes:
    """The file of an anchor, with its MAC; always of the same size."""
    mac = _mac(key, ANCHOR_DOMAIN, canonical(anchor.model_dump()).decode())
    return canonical({**anchor.model_dump(), "mac": mac}).ljust(ANCHOR_BYTES - 1) + b"\n"


def read_anchor(content: bytes, key: bytes) -> Anchor | None:
    """The anchor in a file, or None if it is damaged or its MAC is not valid."""
    try:
        fields = json.loads(content)
        mac = fields.pop("mac")
        anchor = Anchor.model_validate(fields)
    except (ValueError, ValidationError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return anchor if _is_mac(mac, _mac(key, ANCHOR_DOMAIN, canonical(anchor.model_dump()).decode())) else None


def followed(length: int, head: str, lines: Iterable[Line]) -> tuple[int, str]:
    """The length and head after those of `lines` that follow on `length` and `head`, as far as they do."""
    for line in lines:
        entry = line.entry
        if entry is None or not line.is_ours or (entry.seq, entry.prev) != (length + 1, head) or not entry.fits:
            break
        length, head = entry.seq, entry.hash
    return length, head


def _mac(key: bytes, domain: bytes, text: str) -> str:
    return hmac.new(key, domain + text.encode(), hashlib.sha256).hexdigest()


def _is_mac(given: object, expected: str) -> bool:
    return isinstance(given, str) and hmac.compare_digest(given.encode(), expected.encode())
