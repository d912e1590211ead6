"""Receipts: what the vault of a home signs about one session, so that it can be checked on another machine.

A receipt is a JSON value. It holds an excerpt of the audit log from the registration of the dataset to the last entry
of the session: the session's own entries in full, and the digests of all others, so that the chain can be recomputed.
After the freeze it states the choice; after the look also the result, with the opening of the commitment to the test
targets. It is signed with an Ed25519 key (RFC 8032) of the vault, whose public half is in it.

Proven to whoever trusts the key: nothing in the receipt was changed; the test set and the choice were fixed before the
look; the session took one look; no trial ran between the choice and the look. With the raw log, its owner also sees
that these test targets were meant. Not proven: that the vault's owner kept no second home beside this one, or that the
clock of the machine was right. A receipt that is given away at the freeze rules out another choice.
"""

from collections.abc import Sequence
from typing import Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, ValidationError

from ..data.errors import SealError
from .entries import Entry, canonical
from .request import TestResult
from .vault import Vault
from .vault_keys import RECEIPT_KEY, new_key, store_once, stored_key

DOMAIN = b"VMLE-RECEIPT-1\n"

Stage = Literal["frozen", "revealed", "void"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Excerpt(_Part):
    """A part of the audit log that ends with its head at some moment."""

    first: int  # number of the first item
    before: str  # hash before it
    items: list[Entry | str]  # an entry, or the digest of one
    length: int  # number of the last item
    head: str  # its hash


class Receipt(_Part):
    """The receipt of one session."""

    format: Literal["virtualmle receipt 1"] = "virtualmle receipt 1"
    virtualmle: str  # version that wrote it
    session: str
    stage: Stage
    issued_at: str  # UTC, ISO 8601
    dataset: dict[str, Any]  # as its entry has it: name, id, commitment, hashes, options of its preparation
    choice: dict[str, Any]  # as the entry of the freeze has it: trial, configuration, checkpoints, code
    result: TestResult | None = None  # only of stage "revealed"
    log: Excerpt
    public_key: str  # Ed25519, 64 hex digits
    signature: str = ""  # 128 hex digits


def issue(vault: Vault, receipt: Receipt) -> Receipt:
    """The receipt with the key of the vault and its signature. Raises SealError, HomeError."""
    private = _private(vault)
    named = receipt.model_copy(update={"public_key": private.public_key().public_bytes_raw().hex(), "signature": ""})
    return named.model_copy(update={"signature": private.sign(_signed(named)).hex()})


def is_signed(receipt: Receipt) -> bool:
    """Whether the signature is that of the receipt's own public key."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(receipt.public_key))
        key.verify(bytes.fromhex(receipt.signature), _signed(receipt))
    except (ValueError, InvalidSignature):
        return False
    return True


def public_key(vault: Vault) -> str:
    """The public half of the key that signs the receipts of a vault; it is created on first use."""
    return _private(vault).public_key().public_bytes_raw().hex()


def known_public_key(vault: Vault) -> str | None:
    """The same, or None if the vault has no such key yet."""
    return public_key(vault) if stored_key(vault.directory / RECEIPT_KEY) else None


def parse(content: bytes) -> Receipt:
    """The receipt in a file. Raises SealError if it is not one."""
    try:
        return Receipt.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise SealError(f"this is not a receipt of virtualmle: {where}: {first['msg']}") from None


def to_bytes(receipt: Receipt) -> bytes:
    """The file of a receipt."""
    return (receipt.model_dump_json(indent=1) + "\n").encode()


def excerpt(entries: Sequence[Entry], session: str, registration: Entry) -> Excerpt:
    """The log from the registration of the dataset to the last entry of the session. `entries`: the whole log."""
    last = max(entry.seq for entry in entries if entry.session == session)
    part = [entry for entry in entries if registration.seq <= entry.seq <= last]
    shown = [entry if entry.session == session or entry == registration else entry.digest for entry in part]
    return Excerpt(first=part[0].seq, before=part[0].prev, items=shown, length=part[-1].seq, head=part[-1].hash)


def _private(vault: Vault) -> Ed25519PrivateKey:
    path = vault.directory / RECEIPT_KEY
    key = stored_key(path)
    if key is None:
        vault.create_directory()
        key = store_once(path, new_key())
    return Ed25519PrivateKey.from_private_bytes(key)


def _signed(receipt: Receipt) -> bytes:
    return DOMAIN + canonical(receipt.model_dump(exclude={"signature"}))
