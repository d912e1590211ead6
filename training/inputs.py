"""The dataset of a trial. Every trial verifies it, although a process keeps it in memory from one trial to the next.

The arrays are memory-mapped, so a file that is overwritten in place changes under a process that has it open. A file is
known by its inode, size and times; a change of any of them means that all arrays are hashed again before they are used,
and that a trial which has used them ends without a result. Nobody can set the time of an inode's last change.

Not covered: whoever had a page of a file mapped for writing before it was verified can change it for some seconds
without a change of these times.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from ..data.errors import DataError
from ..data.prepared import ARRAYS, MANIFEST, TIME_ARRAYS, PreparedDataset, array_file

FILES = (MANIFEST, *(array_file(name) for name in ARRAYS | TIME_ARRAYS))
SETTLED_SECONDS = 2.0  # file systems may give two changes that are this close the same time

Identity = tuple[int, ...]
"""Device, inode, size, and times of the last change of content and inode in ns; empty if there is no such file."""


@dataclass(frozen=True)
class Verified:
    """A dataset whose arrays had the hashes of its manifest when its files were known as `identities`."""

    dataset: PreparedDataset
    identities: dict[str, Identity]
    settled: bool  # whether any later change of a file would change its identity

    def stands_for(self, identities: dict[str, Identity]) -> bool:
        """Whether the files, known as `identities` now, need not be hashed again."""
        return self.settled and self.identities == identities


_verified: dict[Path, Verified] = {}


def load_dataset(directory: Path) -> PreparedDataset:
    """The dataset in `directory`, whose arrays have the hashes of its manifest. Raises DataError if they do not.

    The files that hold original ids are not read, because a trial does not need them.
    """
    identities = _identities(directory)
    kept = _verified.get(directory)
    if kept is not None and kept.stands_for(identities):
        return kept.dataset
    _verified.clear()
    settled = all(_changed_at(identity) < time.time() - SETTLED_SECONDS for identity in identities.values())
    dataset = PreparedDataset.load(directory, arrays_only=True)
    _verified[directory] = Verified(dataset, identities, settled)
    return dataset


def check_unchanged(directory: Path) -> None:
    """Raise DataError if a file of the dataset in `directory` has changed since `load_dataset` verified it."""
    kept = _verified.get(directory)
    if kept is None:
        return
    now = _identities(directory)
    changed = [name for name in FILES if now[name] != kept.identities[name]]
    if changed:
        _verified.clear()
        raise DataError(
            f"{str(directory / changed[0])!r} was changed while the trial used it, so its figures mean nothing; "
            "find out what writes there, and run the trial again"
        )


def _identities(directory: Path) -> dict[str, Identity]:
    return {name: _identity(directory / name) for name in FILES}


def _identity(path: Path) -> Identity:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _changed_at(identity: Identity) -> float:
    return max(identity[-2:]) / 1e9 if identity else 0.0
