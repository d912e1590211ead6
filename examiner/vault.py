"""The vault of a home: the key pair for sealing, the look ledger, and revealed test results.

    vault/                   0700
      public_key             32 bytes; test splits are encrypted for it
      private_key            32 bytes, 0600; absent in operator mode, where a person keeps it elsewhere
      verify_key             32 bytes, in operator mode: verifies what the holder of the private key answers
      looks.db               the ledger (`ledger.py`)
      revealed/SESSION.json  test metrics of finished sessions, 0600

In `auto` mode the key pair is created on first use. In `operator` mode only the public key is here, so this machine can
encrypt but not decrypt. Trial workers, tools, memory and server read only the public key and revealed results.
"""

import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ..data.atomic import write_bytes
from ..data.errors import HomeError, SealError
from ..data.seal import KEY_BYTES

PUBLIC, PRIVATE, VERIFY = "public_key", "private_key", "verify_key"
OWNER_ONLY, OWNER_ONLY_DIRECTORY = 0o600, 0o700


class Vault:
    """The vault below `home`; the constructor creates no file."""

    def __init__(self, home: Path) -> None:
        self.directory = home / ".virtualmle" / "vault"

    @property
    def mode(self) -> str:
        """`auto` (the private key is here or will be created) or `operator` (the private key is kept elsewhere)."""
        is_operator = file_exists(self.directory / PUBLIC) and not file_exists(self.directory / PRIVATE)
        return "operator" if is_operator else "auto"

    def public_key(self) -> bytes:
        """The encryption key, 32 raw bytes; the key pair is created on first use. Raises SealError, HomeError."""
        path = self.directory / PUBLIC
        if not file_exists(path):
            self._create_pair()
        return read_key(path)

    def private_key(self) -> bytes:
        """The decryption key, 32 raw bytes; only for the examiner. Raises SealError if it is not in this vault."""
        path = self.directory / PRIVATE
        if not file_exists(path):
            raise SealError("the private key is not on this machine; only its holder can decrypt the test split")
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise SealError(f"{str(path)!r} is readable by other users; run chmod 600 on it, or choose a new home")
        return read_key(path)

    def use_operator_key(self, public_key: bytes, verify_key: bytes | None = None) -> None:
        """Use a public key whose private key is kept elsewhere; a second call with the same keys has no effect.

        verify_key: the Ed25519 key of the same holder (`operator_keys.py`). Raises SealError if this vault has another
        key already.
        """
        if len(public_key) != KEY_BYTES:
            raise SealError(f"an X25519 public key has {KEY_BYTES} bytes, this one has {len(public_key)}")
        self.create_directory()
        if file_exists(self.directory / PRIVATE) or not self._is_or_becomes(PUBLIC, public_key):
            raise SealError("this home has a key already, and its datasets are sealed for it; choose a new home")
        if verify_key is not None and not self._is_or_becomes(VERIFY, verify_key):
            raise SealError("this home verifies the answers of another key; choose a new home")

    def _is_or_becomes(self, name: str, key: bytes) -> bool:
        """Whether the file `name` has this key; it is written if it is missing."""
        path = self.directory / name
        return _write_once(path, key, 0o644) or read_key(path) == key

    def verify_key(self) -> bytes | None:
        """The key that verifies the answers of the private key's holder; None if this home has none."""
        path = self.directory / VERIFY
        return read_key(path) if file_exists(path) else None

    def create_directory(self) -> Path:
        """Create the vault's directory if it is missing, with access for its owner only. Raises HomeError."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY_DIRECTORY)
        except OSError as error:
            raise HomeError(
                f"{str(self.directory)!r} cannot be created ({error.strerror}); choose another home with --home"
            ) from None
        try:
            self.directory.chmod(OWNER_ONLY_DIRECTORY)
        except PermissionError:
            raise other_owner_error(self.directory) from None
        return self.directory

    def revealed_path(self, session: str) -> Path:
        """The path of a session's revealed result. Raises SealError for an invalid session id."""
        if not session or "/" in session or "\\" in session or session.startswith("."):
            raise SealError(f"session id {session!r} is invalid; see list_sessions")
        return self.directory / "revealed" / f"{session}.json"

    def _create_pair(self) -> None:
        """Write the private key first: only one process can create that file, and its key determines the public key."""
        self.create_directory()
        _write_once(self.directory / PRIVATE, X25519PrivateKey.generate().private_bytes_raw(), OWNER_ONLY)
        private = X25519PrivateKey.from_private_bytes(read_key(self.directory / PRIVATE))
        _write_once(self.directory / PUBLIC, private.public_key().public_bytes_raw(), 0o644)


def file_exists(path: Path) -> bool:
    """Whether a file of the vault exists. Raises HomeError if this user has no permission to check."""
    try:
        path.stat()  # not exists(): since Python 3.14 it returns False without permission
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        raise other_owner_error(path.parent) from None
    return True


def other_owner_error(path: Path) -> HomeError:
    """The error for a file of the vault that belongs to another user."""
    return HomeError(f"{str(path)!r} belongs to another user; run as that user or choose another --home")


def read_key(path: Path) -> bytes:
    """Read a raw key from a file. Raises SealError if the file is unreadable or has the wrong size."""
    try:
        key = path.read_bytes()
    except OSError as error:
        raise SealError(f"{str(path)!r} cannot be read ({error.strerror}); check the path of the key") from None
    if len(key) != KEY_BYTES:
        raise SealError(f"{str(path)!r} has {len(key)} bytes, but a key has {KEY_BYTES}; restore it from a copy")
    return key


def _write_once(path: Path, content: bytes, mode: int) -> bool:
    """Create `path` atomically with its complete content; returns False if the file exists already."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_bytes(temporary, content, mode)
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise HomeError(f"{str(path)!r} cannot be written ({error.strerror}); choose another home") from None
    finally:
        temporary.unlink(missing_ok=True)
    return True
