"""A sealed choice: what a frozen session has selected, as one file that the holder of the private key can examine.

The bundle is an uncompressed tar. Its first entry is choice.json (`Choice`); the others are the files that it lists,
below `data/` and `sessions/` as in a home, so that an ensemble finds its members. memory.db is not in it, and the test
split is in it as ciphertext only.

Reading trusts nothing: only regular files that choice.json lists are written, each once, below a new directory, up to
`MAX_BYTES` in all, and their hashes are checked. Not covered: whether `test.sealed` is the one that was prepared from
the log. Its hash is printed, and the holder compares it with the one noted at preparation.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from ..data.errors import SealError
from ..data.hashing import sha256_of
from ..data.prepared import SEALED
from .vault import OWNER_ONLY, OWNER_ONLY_DIRECTORY

CHOICE = "choice.json"
MAX_FILES, MAX_BYTES, MAX_CHOICE_BYTES = 400, 16 << 30, 1 << 20
CHUNK = 1 << 20
NAME = r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]*"  # no path, no hidden file, no control character
PATH = re.compile(rf"(data/{NAME}|sessions/{NAME}/{NAME})/{NAME}")


class Choice(BaseModel):
    """The content of choice.json; its digest identifies the choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    session: str
    origin: str  # 8 hex digits that tell sessions of equal names apart
    trial: str
    models: list[str]  # directories in the bundle: that of the trial, or of its repetitions
    dataset: str  # its directory in the bundle
    dataset_id: str
    files: dict[str, str]  # SHA-256 by path in the bundle
    beside: str = ""  # the default's trial, which is compared in the same look; empty if there is none
    beside_models: list[str] = []  # its directories in the bundle

    @field_validator("session", "trial", "beside")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not re.fullmatch(NAME, value):
            raise ValueError("is not the name of a session or trial")
        return value

    @field_validator("origin")
    @classmethod
    def _is_hexadecimal(cls, value: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{8}", value):
            raise ValueError("has not 8 hexadecimal digits")
        return value

    @field_validator("files")
    @classmethod
    def _are_below_the_two_folders(cls, value: dict[str, str]) -> dict[str, str]:
        wrong = [path for path in value if not PATH.fullmatch(path)]
        if wrong or not 0 < len(value) <= MAX_FILES:
            raise ValueError(f"has {len(value)} files (at most {MAX_FILES}) or a path outside: {wrong[:1]}")
        return value

    @property
    def name(self) -> str:
        """The session's name in the holder's ledger, where sessions of several homes meet."""
        return f"{self.session}~{self.origin}"

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON, 64 hex digits."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    @property
    def sealed_digest(self) -> str:
        """SHA-256 of the sealed test split."""
        return self.files.get(f"{self.dataset}/{SEALED}", "")

    def text(self) -> str:
        """The canonical JSON; without the default if there is none, as earlier versions wrote it."""
        left_out = set() if self.beside else {"beside", "beside_models"}
        return json.dumps(self.model_dump(exclude=left_out), sort_keys=True, separators=(",", ":"))


def pack(out: Path, choice: Choice, sources: Mapping[str, Path]) -> None:
    """Write the bundle `out` atomically; `sources` has the file of each path in `choice.files`. Raises SealError."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                _write(file, choice, sources)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, out)  # mkstemp made it readable by its owner only
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise SealError(f"{str(out)!r} cannot be written ({error.strerror}); choose another path with --out") from None


def _write(file: IO[bytes], choice: Choice, sources: Mapping[str, Path]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as bundle:
        content = choice.text().encode()
        bundle.addfile(_entry(CHOICE, len(content)), io.BytesIO(content))
        for path in sorted(choice.files):
            with sources[path].open("rb") as source:
                bundle.addfile(_entry(path, os.fstat(source.fileno()).st_size), source)


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)  # no owner, no time: equal choices give equal bundles
    entry.size, entry.mode = size, OWNER_ONLY
    return entry


def unpack(bundle: Path, directory: Path) -> Choice:
    """Write the files of a bundle below the empty `directory`; returns the choice. Raises SealError."""
    try:
        with tarfile.open(bundle, "r:") as tar:  # "r:" takes no compressed archive, which could grow without bound
            choice = _read_choice(tar)
            missing = dict(choice.files)
            left = MAX_BYTES
            while entry := tar.next():
                left -= entry.size
                if not entry.isreg() or entry.name not in missing or left < 0:
                    raise SealError(f"{bundle.name} has an entry that it does not list, or is too large; pack it again")
                if _extract(tar, entry, directory / entry.name) != missing.pop(entry.name):
                    raise SealError(f"{entry.name} in {bundle.name} was changed after it was packed; pack it again")
    except tarfile.TarError as error:
        raise SealError(f"{str(bundle)!r} is not a sealed choice ({error}); pack it again") from None
    except OSError as error:
        raise SealError(f"{str(bundle)!r} cannot be unpacked ({error.strerror}); check path and free space") from None
    if missing:
        raise SealError(f"{bundle.name} lacks {sorted(missing)[0]}; pack it again")
    return choice


def _read_choice(tar: tarfile.TarFile) -> Choice:
    first = tar.next()
    file = tar.extractfile(first) if first and first.name == CHOICE and first.size <= MAX_CHOICE_BYTES else None
    if file is None:
        raise SealError(f"the first entry is not {CHOICE}, so this is not a sealed choice; pack it again")
    try:
        return Choice.model_validate_json(file.read())
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise SealError(f"{CHOICE} cannot be used ({reason:.200}); pack it again") from None


def _extract(tar: tarfile.TarFile, entry: tarfile.TarInfo, path: Path) -> str:
    """Write one regular file and return its SHA-256; O_EXCL: an entry overwrites nothing and follows no link."""
    source = tar.extractfile(entry)
    assert source is not None  # it is a regular file
    path.parent.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY_DIRECTORY)
    digest = hashlib.sha256()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "wb") as target:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


def hashes_of(sources: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 by path in the bundle. Raises SealError for a file that is missing or a link."""
    found = {}
    for path, source in sources.items():
        if source.is_symlink() or not source.is_file():
            raise SealError(f"{str(source)!r} is missing or a link, so the choice cannot be packed; restore it")
        found[path] = sha256_of(source)
    return found
