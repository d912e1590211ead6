"""The vault of a home: the key pair of the seal, the looks taken, and what they revealed.

    vault/                   0700
      public_key             32 bytes; datasets are sealed to it
      private_key            32 bytes, 0600; absent in operator mode, where a person keeps it elsewhere
      looks.db               the ledger (`ledger.py`)
      revealed/SESSION.json  test metrics of finished sessions, 0600

In `auto` mode the pair is made on first use. In `operator` mode only the public key is here, so this machine can seal
but not open. Trial workers, tools, memory and server read nothing here but the public key and revealed results.
"""

import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ..data.atomic import write_bytes
from ..data.errors import HomeError, SealError
from ..data.seal import KEY_BYTES

PUBLIC, PRIVATE = "public_key", "private_key"
OWNER_ONLY, OWNER_ONLY_DIRECTORY = 0o600, 0o700


class Vault:
    """The vault below `home`; opening it creates nothing."""

    def __init__(self, home: Path) -> None:
        self.directory = home / ".virtualmle" / "vault"

    @property
    def mode(self) -> str:
        """`auto` (the private key is here, or will be made), or `operator` (it is kept elsewhere)."""
        is_operator = present(self.directory / PUBLIC) and not present(self.directory / PRIVATE)
        return "operator" if is_operator else "auto"

    def public_key(self) -> bytes:
        """The key to seal to, 32 raw bytes; the pair is made on first use. Raises SealError, HomeError."""
        path = self.directory / PUBLIC
        if not present(path):
            self._create_pair()
        return read_key(path)

    def private_key(self) -> bytes:
        """The key that opens, 32 raw bytes; for the examiner alone. Raises SealError where it is not here."""
        path = self.directory / PRIVATE
        if not present(path):
            raise SealError("the private key is not on this machine; only whoever holds it can open the test split")
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise SealError(f"{str(path)!r} can be read by others; run chmod 600 on it, or make a new home")
        return read_key(path)

    def use_operator_key(self, public_key: bytes) -> None:
        """Seal to a key whose private half is elsewhere, from the start. Raises SealError if there is a key already."""
        if len(public_key) != KEY_BYTES:
            raise SealError(f"an X25519 public key has {KEY_BYTES} bytes, this one has {len(public_key)}")
        self.create_directory()
        if not _write_once(self.directory / PUBLIC, public_key, 0o644):
            raise SealError("this home has a key already; datasets are sealed to it: choose a new home")

    def create_directory(self) -> Path:
        """The vault's directory, made if need be, closed to others. Raises HomeError."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY_DIRECTORY)
        except OSError as error:
            raise HomeError(
                f"{str(self.directory)!r} cannot be created ({error.strerror}); choose another home with --home"
            ) from None
        try:
            self.directory.chmod(OWNER_ONLY_DIRECTORY)
        except PermissionError:
            raise not_ours(self.directory) from None
        return self.directory

    def revealed_path(self, session: str) -> Path:
        """Where the result of a session lies once it is revealed."""
        if not session or "/" in session or "\\" in session or session.startswith("."):
            raise SealError(f"session id {session!r} is not one; see list_sessions")
        return self.directory / "revealed" / f"{session}.json"

    def _create_pair(self) -> None:
        """The private half first: whoever wins that file (it is made only once) determines the public one."""
        self.create_directory()
        _write_once(self.directory / PRIVATE, X25519PrivateKey.generate().private_bytes_raw(), OWNER_ONLY)
        private = X25519PrivateKey.from_private_bytes(read_key(self.directory / PRIVATE))
        _write_once(self.directory / PUBLIC, private.public_key().public_bytes_raw(), 0o644)


def present(path: Path) -> bool:
    """Whether a file of the vault is there; HomeError where this user may not even ask."""
    try:
        path.stat()  # not exists(): from Python 3.14 on it says False where it may not look
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        raise not_ours(path.parent) from None
    return True


def not_ours(path: Path) -> HomeError:
    """The error for a part of the vault that this user may not use."""
    return HomeError(f"{str(path)!r} belongs to another user; run as that user or choose another --home")


def read_key(path: Path) -> bytes:
    """The raw key in a file. Raises SealError if there is none."""
    try:
        key = path.read_bytes()
    except OSError as error:
        raise SealError(f"{str(path)!r} cannot be read ({error.strerror}); check the path of the key") from None
    if len(key) != KEY_BYTES:
        raise SealError(f"{str(path)!r} has {len(key)} bytes, a key has {KEY_BYTES}; restore it from a copy")
    return key


def _write_once(path: Path, content: bytes, mode: int) -> bool:
    """Create `path` with its whole content in one step; False if it exists, whoever made it."""
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
