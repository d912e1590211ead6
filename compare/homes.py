"""The homes of the sessions of a comparison: a dataset linked from the base home, its keys, and a memory to start with.

The base home prepares each dataset once, so that all sessions use the same ids. A session's home has hard links to its
files, and a copy of the vault's keys, with which the examiner takes the session's one look at the test set.
"""

import hashlib
import os
import shutil
from pathlib import Path

from ..data.atomic import write_bytes
from ..data.catalogue import Catalogue
from ..data.errors import HomeError
from ..examiner.vault import MAC_KEY, OWNER_ONLY, PRIVATE, PUBLIC, Vault, file_exists
from ..memory.portable import collect
from ..memory.store import Memory

SESSIONS = "sessions"  # the folder of all homes
PRICES = "prices.toml"  # of language models, which a user may add to the home


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hex digits. Raises HomeError if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise HomeError(f"{path} cannot be read ({error.strerror}); check the path") from None


def home_of(out: Path, key: str, digest: str) -> Path:
    """The home of a job below `out`: named after its key, and ending with the digest of what determines it."""
    slug = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in key)
    return out / SESSIONS / f"{slug}.{digest}"


def lay_out(home: Path, base: Path, dataset: str) -> None:
    """Create the home of a session, or complete it if a killed process left it unfinished. dataset "": none."""
    home.mkdir(parents=True, exist_ok=True)
    catalogue = Catalogue(base)
    target = home / ".virtualmle" / "data" / dataset
    if dataset in catalogue.names() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{dataset}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(catalogue.path(dataset), part, copy_function=_link)
        part.rename(target)
    _copy_keys(Vault(base), Vault(home))
    if (base / PRICES).exists():
        shutil.copyfile(base / PRICES, home / PRICES)


def _link(source: str, target: str) -> str:
    """A hard link to a file of a prepared dataset, which never changes; or a copy, on a file system without links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _copy_keys(source: Vault, target: Vault) -> None:
    if not file_exists(source.directory / PUBLIC):
        return
    target.create_directory()
    signing = (MAC_KEY,) if not file_exists(target.directory / PUBLIC) else ()  # an older one adopts
    for name in (*signing, PRIVATE, PUBLIC):
        if file_exists(source.directory / name) and not file_exists(target.directory / name):
            write_bytes(target.directory / name, (source.directory / name).read_bytes(), OWNER_ONLY)


def export_cognition(home: Path, file: Path) -> None:
    """Write what the sessions of `home` learnt, as `virtualmle memory export` does."""
    with Memory(home / "memory.db") as memory:
        write_bytes(file, (collect(memory).model_dump_json(indent=1) + "\n").encode())
