"""The keys of operator mode, whose private half is not on the machine that tunes.

    private_key    32 bytes, 0600: the X25519 key that opens test splits; kept by its holder
    public_key     64 bytes: the X25519 public key, and the Ed25519 key that verifies the holder's answers

The signing key is derived from the private key, so that the holder keeps one file. A file of 32 bytes, the X25519 key
alone, is accepted as a public key too; answers of its holder cannot be verified then.
"""

from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..data.atomic import write_bytes
from ..data.errors import SealError
from ..data.seal import KEY_BYTES
from .vault import OWNER_ONLY, OWNER_ONLY_DIRECTORY, PRIVATE, PUBLIC

SIGNING = b"VMLE-ANSWER-1"  # domain of the derivation: the signing key says nothing about the sealing key


class PublicKeys(NamedTuple):
    """The public half: what test splits are sealed for, and what verifies answers (None: not known)."""

    sealing: bytes
    verifying: bytes | None


def create_keys(directory: Path) -> tuple[Path, Path]:
    """Write a new key pair; returns the paths of the private and of the public file. Raises SealError.

    Neither file is ever overwritten: what was sealed for a lost private key cannot be opened again.
    """
    private = X25519PrivateKey.generate()
    raw = private.private_bytes_raw()
    public = private.public_key().public_bytes_raw() + _signing_key(raw).public_key().public_bytes_raw()
    paths = directory / PRIVATE, directory / PUBLIC
    existing = [str(path) for path in paths if path.exists()]
    if existing:
        raise SealError(f"{existing[0]!r} exists; a key is never overwritten, so choose another directory with --out")
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY_DIRECTORY)
        write_bytes(paths[0], raw, OWNER_ONLY, replace=False)
        write_bytes(paths[1], public, 0o644, replace=False)
    except OSError as error:
        raise SealError(f"no key can be written to {str(directory)!r} ({error.strerror}); choose another") from None
    return paths


def read_public_keys(path: Path) -> PublicKeys:
    """Read the public file of `create_keys`, or a raw X25519 public key. Raises SealError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SealError(f"{str(path)!r} cannot be read ({error.strerror}); check the path of the key") from None
    if len(content) not in (KEY_BYTES, 2 * KEY_BYTES):
        raise SealError(
            f"{str(path)!r} has {len(content)} bytes, but a public key file has {2 * KEY_BYTES}; "
            "give the file public_key that `virtualmle keygen` has written"
        )
    return PublicKeys(content[:KEY_BYTES], content[KEY_BYTES:] or None)


def public_key_of(private_key: bytes) -> bytes:
    """The X25519 public key that belongs to a private key, 32 raw bytes each."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def sign(private_key: bytes, message: bytes) -> bytes:
    """The Ed25519 signature of the holder of `private_key` (32 raw bytes)."""
    return _signing_key(private_key).sign(message)


def is_signed(verifying: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder whose verifying key this is has signed the message."""
    try:
        Ed25519PublicKey.from_public_bytes(verifying).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _signing_key(private_key: bytes) -> Ed25519PrivateKey:
    seed = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=SIGNING).derive(private_key)
    return Ed25519PrivateKey.from_private_bytes(seed)
