"""Decryption of sealed test splits. Only the examiner's process imports this module."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ..data.commitment import check_opening, parted, targets_digest
from ..data.errors import SealError
from ..data.item_names import opened_names
from ..data.prepared import SEALED, read_file
from ..data.seal import KEY_BYTES, MAGIC, NO_TARGET, NONCE_BYTES, PAYLOAD_VERSION, REQUIRED, as_text, derive_key


@dataclass(frozen=True)
class Targets:
    """The test event of every user, and the fingerprint of the complete content of the dataset."""

    items: npt.NDArray[np.int32]  # (num_users,), NO_TARGET for users without a test event
    timestamps: npt.NDArray[np.int64]  # (num_users,)
    fingerprint: str
    further: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)  # arrays that a newer layout has in addition

    @property
    def nonce(self) -> bytes:
        """The nonce of the commitment; empty if the dataset was prepared by an earlier version."""
        return self.further["nonce"].tobytes() if "nonce" in self.further else b""

    @property
    def users(self) -> npt.NDArray[np.int64]:
        """The users who have a test event, ascending; with leave-one-out, all users."""
        return np.flatnonzero(self.items != NO_TARGET)

    @property
    def item_names(self) -> dict[int, str]:
        """The original ids of the items that have no visible event, by item."""
        return opened_names(self.further)


def unseal(sealed: bytes, private_key: bytes, bound_to: str) -> bytes:
    """Decrypt what `seal` encrypted. Raises SealError for another key, another `bound_to`, or changed bytes."""
    start = len(MAGIC) + KEY_BYTES + NONCE_BYTES
    if not sealed.startswith(MAGIC) or len(sealed) < start:
        raise SealError("this is not a sealed test split; register the dataset again with `virtualmle data add`")
    sender, nonce = sealed[len(MAGIC) : start - NONCE_BYTES], sealed[start - NONCE_BYTES : start]
    try:
        private = X25519PrivateKey.from_private_bytes(private_key)
        shared = private.exchange(X25519PublicKey.from_public_bytes(sender))
        cipher = ChaCha20Poly1305(derive_key(shared, sender, private.public_key().public_bytes_raw()))
        return cipher.decrypt(nonce, sealed[start:], bound_to.encode())
    except (InvalidTag, ValueError):  # ValueError: a sender key of small order, or a private key of the wrong length
        raise SealError(
            "the sealed test split cannot be decrypted: it was sealed for another key, belongs to another dataset, or "
            "was changed; check the key (--key-file), or register the dataset again with `virtualmle data add`"
        ) from None


def public_key_of(private_key: bytes) -> bytes:
    """The public half of a private key, 32 raw bytes."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def open_test(directory: Path, private_key: bytes, dataset_id: str, num_users: int) -> Targets:
    """Decrypt the test targets of the prepared dataset in `directory`, and check its commitment. Raises SealError."""
    try:
        sealed = read_file(directory, SEALED, SealError)
    except OSError as error:
        raise SealError(f"{str(directory / SEALED)!r} cannot be read ({error.strerror}); register it again") from None
    commitment, ciphertext = parted(sealed)
    targets = _targets(unseal(ciphertext, private_key, dataset_id))
    if targets.items.shape != (num_users,):
        raise SealError(
            f"the sealed test split has {len(targets.items)} users, the dataset {num_users}; register it again"
        )
    if commitment is not None or targets.nonce:
        check_opening(commitment or "", targets.nonce, targets_digest(dataset_id, targets.items, targets.timestamps))
    return targets


def _targets(payload: bytes) -> Targets:
    """The content of a decrypted test split. Raises SealError for a layout of a newer version."""
    with np.load(io.BytesIO(payload), allow_pickle=False) as found:
        arrays = dict(found)
    version = int(arrays.pop("version", 1))
    if version > PAYLOAD_VERSION:
        raise SealError(
            f"the sealed test split has layout {version}, and this version of virtualmle reads {PAYLOAD_VERSION}; "
            "update virtualmle"
        )
    further = {name: array for name, array in arrays.items() if name not in REQUIRED}
    return Targets(arrays["items"], arrays["timestamps"], as_text(arrays["fingerprint"]), further)
