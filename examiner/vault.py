"""The vault of a home: the key pair for sealing, the look ledger, and revealed test results.

    vault/                   0700, and all files 0600
      public_key             32 bytes; test splits are encrypted for it
      private_key            32 bytes; absent in operator mode, where a person keeps it elsewhere
      looks.db               the ledger (`ledger.py`)
      revealed/SESSION.json  test metrics of finished sessions
      names/SESSION.json     original ids of the items without a visible event, of examined sessions
      audit.jsonl            the audit log (`audit.py`), with audit_head and audit_key
      receipts/SESSION.json  receipts (`receipts.py`), signed with receipt_key

In `auto` mode the key pair is created on first use. In `operator` mode only the public key is here, so this machine can
encrypt but not decrypt. Trial workers, tools, memory and server read only the public key and revealed results.
"""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ..data.atomic import write_bytes
from ..data.errors import HomeError, SealError
from ..data.permissions import OTHERS, make_private
from ..data.safe_open import read_beneath, refuse_links, split_beneath
from ..data.seal import KEY_BYTES

PUBLIC, PRIVATE = "public_key", "private_key"
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
        if not file_exists(self.directory / PUBLIC):
            self._create_pair()
        return self._key(PUBLIC)

    def private_key(self) -> bytes:
        """The decryption key, 32 raw bytes; only for the examiner. Raises SealError if it is not in this vault."""
        path = self.directory / PRIVATE
        if not file_exists(path):
            raise SealError("the private key is not on this machine; only its holder can decrypt the test split")
        if os.name == "posix" and path.stat().st_mode & OTHERS:
            raise SealError(f"{str(path)!r} is readable by other users; run chmod 600 on it, or choose a new home")
        return self._key(PRIVATE)

    def use_operator_key(self, public_key: bytes) -> None:
        """Use a public key whose private key is kept elsewhere. Raises SealError if this vault has a key already."""
        if len(public_key) != KEY_BYTES:
            raise SealError(f"an X25519 public key has {KEY_BYTES} bytes, this one has {len(public_key)}")
        self.create_directory()
        if not _write_once(self.directory / PUBLIC, public_key, OWNER_ONLY):
            raise SealError("this home has a key already, and its datasets are sealed for it; choose a new home")

    def read(self, *parts: str) -> bytes | None:
        """The content of a file of the vault, None if there is none. Raises SealError for a symbolic link, OSError."""
        if not file_exists(self.directory.joinpath(*parts)):
            return None
        root, own = split_beneath(self.directory, 2)
        return read_beneath(root, *own, *parts, error=SealError)

    def _key(self, name: str) -> bytes:
        root, parts = split_beneath(self.directory / name, 3)
        return _checked_key(self.directory / name, lambda: read_beneath(root, *parts, error=SealError))

    def create_directory(self) -> Path:
        """Create the vault's directory if it is missing, with access for its owner only. Raises HomeError."""
        root, parts = split_beneath(self.directory, 2)
        refuse_links(root, *parts)
        try:
            make_private(self.directory.parent)
            self.directory.mkdir(exist_ok=True, mode=OWNER_ONLY_DIRECTORY)
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
        return self._of_session("revealed", session)

    def names_path(self, session: str) -> Path:
        """The path of the item names that a session's look has opened. Raises SealError for an invalid session id."""
        return self._of_session("names", session)

    def _of_session(self, folder: str, session: str) -> Path:
        if not session or "/" in session or "\\" in session or session.startswith("."):
            raise SealError(f"session id {session!r} is invalid; see list_sessions")
        return self.directory / folder / f"{session}.json"

    def _create_pair(self) -> None:
        """Write the private key first: only one process can create that file, and its key determines the public key."""
        self.create_directory()
        _write_once(self.directory / PRIVATE, X25519PrivateKey.generate().private_bytes_raw(), OWNER_ONLY)
        private = X25519PrivateKey.from_private_bytes(self._key(PRIVATE))
        _write_once(self.directory / PUBLIC, private.public_key().public_bytes_raw(), OWNER_ONLY)


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
    """Read a raw key from a file of a person. Raises SealError if the file is unreadable or has the wrong size."""
    return _checked_key(path, path.read_bytes)


def _checked_key(path: Path, read: Callable[[], bytes]) -> bytes:
    try:
        key = read()
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
