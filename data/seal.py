"""Sealing: test targets are encrypted so that only the holder of the private key can read them.

Scheme: X25519 key agreement between an ephemeral key and the recipient's public key; HKDF-SHA256 derives a
ChaCha20-Poly1305 key from the shared secret; `bound_to` (the dataset_id) is the associated data, so that a sealed file
cannot be moved to another dataset. Layout: MAGIC, ephemeral public key (32 bytes), nonce (12), ciphertext, tag (16).

Not covered: decryption, which is in `examiner/unseal.py`. Only the examiner imports that module.
"""

import io
import os
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .errors import SealError

MAGIC = b"VMLE-SEAL-1\n"
KEY_BYTES, NONCE_BYTES = 32, 12
PAYLOAD_VERSION = 2  # of the layout of the plaintext; version 1 had no field for it, and only the required arrays
REQUIRED = {"items", "timestamps", "fingerprint"}
NO_TARGET = -1  # in place of an item: the user has no test event


def seal(payload: bytes, public_key: bytes, bound_to: str) -> bytes:
    """Encrypt `payload` for `public_key` (32 raw bytes); decryption needs the same `bound_to`.

    Raises SealError if the key is not an X25519 public key.
    """
    if len(public_key) != KEY_BYTES:
        raise SealError(f"an X25519 public key has {KEY_BYTES} bytes, this one has {len(public_key)}")
    ephemeral = X25519PrivateKey.generate()
    sender = ephemeral.public_key().public_bytes_raw()
    try:
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError:  # a point of small order: the shared secret would be zero
        raise SealError("the public key is not a usable X25519 key; create a new one") from None
    nonce = os.urandom(NONCE_BYTES)
    cipher = ChaCha20Poly1305(derive_key(shared, sender, public_key))
    return MAGIC + sender + nonce + cipher.encrypt(nonce, payload, bound_to.encode())


def derive_key(shared: bytes, sender: bytes, recipient: bytes) -> bytes:
    """Derive the encryption key of one sealed file; the salt contains both public keys."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=sender + recipient, info=MAGIC).derive(shared)


def pack_test(**arrays: npt.NDArray[Any]) -> bytes:
    """The plaintext of `test.sealed`: the named arrays, as .npz without pickles, with the version of their layout.

    Always there: items int32 (num_users,), NO_TARGET for a user without a test event; timestamps int64 (num_users,);
    fingerprint, the bytes of its hexadecimal digits (`as_bytes`). A reader passes over names that it does not know. The
    size depends only on the names, shapes and dtypes of the arrays, so none of them may have a shape that tells
    something about the test events. Equal arrays give equal bytes.
    """
    missing = REQUIRED - set(arrays)
    assert not missing, f"a test split needs {sorted(missing)}"
    buffer = io.BytesIO()
    named: dict[str, Any] = {"version": np.int64(PAYLOAD_VERSION), **arrays}
    np.savez(buffer, **named)
    return buffer.getvalue()


def as_bytes(text: str) -> npt.NDArray[np.uint8]:
    """A text as an array of its UTF-8 bytes, (length,)."""
    return np.frombuffer(text.encode(), np.uint8)


def as_text(array: npt.NDArray[np.uint8]) -> str:
    """The inverse of `as_bytes`."""
    return array.tobytes().decode()
