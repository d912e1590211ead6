"""A commitment to the test targets of a dataset, made when it is prepared and opened after the look.

The commitment is SHA-256(DOMAIN, nonce, digest), where the nonce is 32 random bytes and the digest is SHA-256 over the
dataset's id and the test events. It is hiding: without the nonce, not even a guess of all targets can be checked
against it. It is binding: two openings of one commitment would be a collision of SHA-256. (Boneh and Shoup, A Graduate
Course in Applied Cryptography, chapter 8, "commitments and auctions".)

The nonce lies inside the seal, and the commitment stands in front of the ciphertext in `test.sealed`, so that it is
stored, copied and replaced together with it. An opening states nonce and digest, never a target: who has the raw log
prepares it again and compares the digest.
"""

import hashlib
import hmac
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import SealError

DOMAIN, TARGETS_DOMAIN = b"VMLE-COMMITMENT-1\n", b"VMLE-TARGETS-1\n"
HEADER = b"VMLE-COMMITTED-1\n"
NONCE_BYTES = HASH_BYTES = 32


def new_nonce() -> bytes:
    """32 random bytes."""
    return os.urandom(NONCE_BYTES)


def targets_digest(dataset_id: str, items: npt.NDArray[Any], timestamps: npt.NDArray[Any]) -> str:
    """The SHA-256 of the test events, 64 hex digits; equal on every machine that prepares the log with equal options.

    items int (num_users,), NO_TARGET for users without a test event; timestamps int (num_users,).
    """
    digest = hashlib.sha256(TARGETS_DOMAIN + dataset_id.encode() + b"\n" + str(len(items)).encode() + b"\n")
    digest.update(np.ascontiguousarray(items, "<i4").tobytes())
    digest.update(np.ascontiguousarray(timestamps, "<i8").tobytes())
    return digest.hexdigest()


def commitment_of(nonce: bytes, digest: str) -> str:
    """The commitment to a digest of test events, 64 hex digits. Raises ValueError for a digest that is not hexadecimal.

    The nonce and the digest have fixed lengths, so that no two pairs are one input of the hash.
    """
    content = bytes.fromhex(digest)
    if len(nonce) != NONCE_BYTES or len(content) != HASH_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes and a digest {HASH_BYTES}")
    return hashlib.sha256(DOMAIN + nonce + content).hexdigest()


def with_commitment(sealed: bytes, commitment: str) -> bytes:
    """The content of `test.sealed`: the commitment, then the ciphertext."""
    return HEADER + bytes.fromhex(commitment) + sealed


def parted(file: bytes) -> tuple[str | None, bytes]:
    """The commitment and the ciphertext of a `test.sealed`; the first is None in those of earlier versions."""
    if not file.startswith(HEADER):
        return None, file
    end = len(HEADER) + HASH_BYTES
    return file[len(HEADER) : end].hex(), file[end:]


def check_opening(commitment: str, nonce: bytes, digest: str) -> None:
    """Raise SealError unless nonce and digest open the commitment."""
    if len(nonce) != NONCE_BYTES or not hmac.compare_digest(commitment_of(nonce, digest), commitment):
        raise SealError(
            "the sealed test split is not the one that its commitment was made for: it was replaced after the dataset "
            "was prepared; register the log again with `virtualmle data replace`"
        )
