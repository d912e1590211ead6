"""The export that the endpoint answers from, and its replacement by a new one in the same directory."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from ..data.errors import VirtualMLEError
from .layout import MANIFEST, ExportManifest
from .recommender import Recommender

logger = logging.getLogger(__name__)

LOADING_ERRORS = (VirtualMLEError, OSError, MemoryError, RuntimeError)
"""What may go wrong while a new export loads beside the current one; torch raises RuntimeError if memory runs out."""


@dataclass(frozen=True)
class ServedExport:
    """A loaded export and the hash by which answers name it."""

    recommender: Recommender
    sha256: str  # of manifest.json, which contains the hashes of all other files

    @classmethod
    def load(cls, directory: Path, device: str) -> "ServedExport":
        """Load an export and score one user with it, so that the first request finds everything prepared."""
        recommender = Recommender.load(directory, device)
        recommender.recommend(recommender.index.ids.drop_nulls().head(1))
        return cls(recommender, manifest_hash(recommender.export.manifest))


class LiveExport:
    """Always has a complete export in `current`, a reference that is replaced as a whole."""

    def __init__(self, directory: Path, device: str) -> None:
        """Load the export in `directory`. Raises ExportError or MachineError."""
        self._directory, self._device = directory, device
        self.current = ServedExport.load(directory, device)
        self._seen = self._manifest()
        self.num_loads, self.num_failures = 1, 0

    def reload(self, force: bool = False) -> None:
        """Load the export in the directory if its manifest has changed since the last attempt, or anyway with `force`.

        The new one is loaded beside the current one, which stays if the new one cannot be used.
        """
        found = self._manifest()
        if found == self._seen and not force:
            return
        self._seen = found
        try:
            served = ServedExport.load(self._directory, self._device)
        except LOADING_ERRORS as error:
            self.num_failures += 1
            logger.error("the export in use stays, because the new one cannot be loaded: %s", error)
            return
        self.num_loads += 1
        self.current = served
        logger.info("answering from export %s", served.sha256)

    def _manifest(self) -> bytes | None:
        try:
            return (self._directory / MANIFEST).read_bytes()
        except OSError:
            return None


def manifest_hash(manifest: ExportManifest) -> str:
    """The SHA-256 of manifest.json as this version of the format writes it, 64 hex digits."""
    return hashlib.sha256((manifest.model_dump_json(indent=1) + "\n").encode()).hexdigest()
