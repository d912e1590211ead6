"""The vault of a home: the key pair for sealing, the look ledger, and revealed test results.

    vault/                   0700, and all files 0600
      public_key             32 bytes; test splits are encrypted for it
      private_key            32 bytes; absent in operator mode, where a person keeps it elsewhere
      verify_key             32 bytes, in operator mode: verifies what the holder of the private key answers
      mac_key                32 bytes: signs datasets; a session's key, which signs its trials, derives from it
      adopted.json           only if the home is older than its mac_key: when its files were signed, unchecked
      looks.db               the ledger (`ledger.py`)
      revealed/SESSION.json  test metrics of finished sessions
      names/SESSION.json     original ids of the items without a visible event, of examined sessions
      audit.jsonl            the audit log (`audit.py`), with audit_head and audit_key
      receipts/SESSION.json  receipts (`receipts.py`), signed with receipt_key

The keys are created on first use, mac_key first. In `operator` mode only the public key and mac_key are here, so this
machine can encrypt but not decrypt. Tools and server read public_key, mac_key and revealed results; a trial worker is
given the key of its session and reads nothing here.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import ValidationError

from ..data.atomic import write_bytes, write_json
from ..data.errors import HomeError, SealError
from ..data.locks import take_lock
from ..data.mac import derive
from ..data.permissions import OTHERS, make_private
from ..data.safe_open import read_beneath, refuse_links, split_beneath
from ..data.seal import KEY_BYTES
from .adoption import Adoption, adopt_home

PUBLIC, PRIVATE, VERIFY = "public_key", "private_key", "verify_key"
MAC_KEY, ADOPTED = "mac_key", "adopted.json"
LOCK_POLL_SECONDS = 0.02
OWNER_ONLY, OWNER_ONLY_DIRECTORY = 0o600, 0o700


class Vault:
    """The vault below `home`; the constructor creates no file."""

    def __init__(self, home: Path) -> None:
        self._state = home / ".virtualmle"
        self.directory = self._state / "vault"

    @property
    def mode(self) -> str:
        """`auto` (the private key is here or will be created) or `operator` (the private key is kept elsewhere)."""
        is_operator = file_exists(self.directory / PUBLIC) and not file_exists(self.directory / PRIVATE)
        return "operator" if is_operator else "auto"

    def public_key(self) -> bytes:
        """The encryption key, 32 raw bytes; the key pair is created on first use. Raises SealError, HomeError."""
        self.mac_key()
        if not file_exists(self.directory / PUBLIC):
            self._create_pair()
        return self._key(PUBLIC)

    def mac_key(self) -> bytes:
        """The key that signs the datasets of this home, 32 bytes, created on first use. Raises SealError, HomeError.

        In a home that is older than the key, everything that exists is signed as it is at that moment (`adoption.py`).
        The key is written last: a process that is killed before leaves a home without a key, and the next one signs
        everything again.
        """
        path = self.directory / MAC_KEY
        if not file_exists(path):
            self.create_directory()
            with self._locked():
                if not file_exists(path):
                    self._adopt_and_write(path)
        return self._key(MAC_KEY)

    def session_key(self, session: str) -> bytes:
        """The key that signs the trials of a session, 32 bytes; the vault's key cannot be computed from it."""
        return derive(self.mac_key(), "session", session)

    def adoption(self) -> Adoption | None:
        """What was signed without having been checked, because it is older than the key; None if nothing was."""
        path = self.directory / ADOPTED
        try:
            return Adoption.model_validate_json(path.read_bytes()) if file_exists(path) else None
        except ValidationError:
            raise SealError(f"{str(path)!r} is damaged; restore it from a backup") from None

    def _adopt_and_write(self, path: Path) -> None:
        key = secrets.token_bytes(KEY_BYTES)
        try:
            adoption = adopt_home(self._state, key)
        except OSError as error:
            raise HomeError(
                f"{str(error.filename)!r} cannot be signed ({error.strerror}); make it writable, or choose another home"
            ) from None
        if adoption is not None:
            write_json(self.directory / ADOPTED, adoption.model_dump(), OWNER_ONLY)
        _write_once(path, key, OWNER_ONLY)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock on the vault's directory, waiting for another process that has it."""
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks
                while not take_lock(descriptor):
                    time.sleep(LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def private_key(self) -> bytes:
        """The decryption key, 32 raw bytes; only for the examiner. Raises SealError if it is not in this vault."""
        path = self.directory / PRIVATE
        if not file_exists(path):
            raise SealError("the private key is not on this machine; only its holder can decrypt the test split")
        if os.name == "posix" and path.stat().st_mode & OTHERS:
            raise SealError(f"{str(path)!r} is readable by other users; run chmod 600 on it, or choose a new home")
        return self._key(PRIVATE)

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
        return _write_once(self.directory / name, key, OWNER_ONLY) or self._key(name) == key

    def verify_key(self) -> bytes | None:
        """The key that verifies the answers of the private key's holder; None if this home has none."""
        return self._key(VERIFY) if file_exists(self.directory / VERIFY) else None

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
