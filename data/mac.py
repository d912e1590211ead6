"""Keyed message authentication codes (MACs): who holds the key can tell whether a file is the one that was signed.

A MAC is HMAC-SHA256 (RFC 2104) over the canonical JSON of a purpose, the SHA-256 of each file by name, and facts, e.g.
which trial the files belong to. JSON strings are escaped and delimited and keys are sorted, so two different values
never have the same encoding. Keys for one purpose are derived with HKDF-Expand (RFC 5869, section 2.3).

Not covered: keeping the key secret, which is the vault's part, and reading the files.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass

KEY_BYTES = 32
_LABEL = b"VMLE-MAC-1\n"

Fact = str | int | bool | list[str] | None


@dataclass(frozen=True)
class Signature:
    """A MAC."""

    hex: str  # 64 hex digits


def sign(key: bytes, purpose: str, files: Mapping[str, str], facts: Mapping[str, Fact]) -> Signature:
    """The MAC of `files` (SHA-256 in hexadecimal by file name) and `facts` for `purpose`, with a key of 32 bytes."""
    assert len(key) == KEY_BYTES
    text = json.dumps([purpose, dict(files), dict(facts)], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return Signature(hmac.digest(key, _LABEL + text.encode("ascii"), hashlib.sha256).hex())


def is_valid(
    signature: Signature, key: bytes, purpose: str, files: Mapping[str, str], facts: Mapping[str, Fact]
) -> bool:
    """Whether `signature` is the MAC of these values under `key`; takes equally long for every wrong signature."""
    expected = sign(key, purpose, files, facts).hex
    return hmac.compare_digest(expected.encode(), signature.hex.encode("utf-8", "replace"))


def derive(key: bytes, purpose: str, name: str) -> bytes:
    """A key of 32 bytes for one purpose and one name, e.g. a session, from which `key` cannot be computed."""
    assert len(key) == KEY_BYTES
    info = _LABEL + json.dumps([purpose, name]).encode("ascii")
    return hmac.digest(key, info + b"\x01", hashlib.sha256)  # the first block of HKDF-Expand
