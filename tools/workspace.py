"""The workspace that every tool acts on: a home directory, its memory, its datasets and the user's settings."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.catalogue import Catalogue
from ..data.errors import DataError, HomeError
from ..data.prepared import PreparedDataset
from ..examiner.request import looks
from ..examiner.vault import Vault
from ..memory.records import SessionRecord, TrialRecord
from ..memory.store import Memory
from ..sandbox.protocol import Protocol, load_protocol, parse_protocol
from ..training.spec import CHECKPOINT, STATE


@dataclass(frozen=True)
class Settings:
    """Settings that a person chooses when starting the server or a command; agents cannot change them."""

    max_trials: int | None = None  # None = from SANDBOX.md
    max_train_seconds: float | None = None
    seed: int = 0
    with_reflection: bool = True
    with_memory: bool = True
    memory_from: tuple[str, ...] = ()  # datasets whose cognition new sessions may use; () = all
    device: str = "auto"
    threads: int = 0
    keep_warm: float = 0.0  # seconds that a worker waits for the session's next trial; 0 = it exits
    client: str = ""
    protocol_path: Path | None = None


class Workspace:
    """An open home directory. All persistent state is on disk below `home`."""

    def __init__(self, home: Path, memory: Memory, protocol: Protocol, settings: Settings) -> None:
        self.home = home
        self.memory = memory
        self.protocol = protocol
        self.settings = settings
        self.catalogue = Catalogue(home)

    @classmethod
    def open(cls, home: Path, *, settings: Settings | None = None) -> "Workspace":
        """Open `home` and create what is missing.

        Raises HomeError if the directory cannot be written, ProtocolError for a malformed SANDBOX.md, and
        MemoryStoreError for an unusable memory.db.
        """
        settings = settings or Settings()
        home = home.expanduser().resolve()
        try:
            (home / ".virtualmle").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HomeError(
                f"home={str(home)!r} cannot be written ({error.strerror}); choose another with --home"
            ) from None
        own = home / "SANDBOX.md"
        protocol = load_protocol(settings.protocol_path or (own if own.exists() else None))
        return cls(home, Memory(home / "memory.db"), protocol, settings)

    def dataset(self, name: str) -> PreparedDataset:
        """The prepared dataset `name`; the bundled demo is generated on first use. Raises DataError."""
        if name == "demo":
            self.catalogue.ensure_demo(Vault(self.home).public_key())
        return self.catalogue.load(name)

    def session_dataset(self, session: SessionRecord) -> Path:
        """The directory of a session's dataset; DataError if the dataset was replaced after the session was opened."""
        path = self.catalogue.path(session.dataset)
        if self.catalogue.manifest(session.dataset).dataset_id != session.dataset_id:
            raise DataError(
                f"dataset {session.dataset!r} was replaced since session {session.id} was opened; "
                "restore it, or open a new session"
            )
        return path

    def session_protocol(self, session: SessionRecord) -> Protocol:
        """The protocol that a session was opened under, even if SANDBOX.md has changed since."""
        if session.protocol_hash == self.protocol.sha256:
            return self.protocol
        return parse_protocol(session.protocol_text, source=f"SANDBOX.md of session {session.id}")

    def settings_of(self, session: SessionRecord, trial: TrialRecord) -> dict[str, Any]:
        """The knob values in which a trial differs from the default of the session's protocol."""
        return self.session_protocol(session).space.differences(trial.configuration)

    def trial_directory(self, session: str, handle: str) -> Path:
        """The directory of a trial's files."""
        return self.home / ".virtualmle" / "sessions" / session / handle

    def inbox(self, session: str) -> Path:
        """The directory in which the session's warm worker looks for its next trial."""
        return self.home / ".virtualmle" / "sessions" / session / "worker"

    def session_names_on_disk(self) -> set[str]:
        """Ids of sessions with files here, even if memory.db was deleted since; new sessions must not reuse them."""
        state = self.home / ".virtualmle"
        folders = {path.name for path in (state / "sessions").glob("*")}
        return folders | {look.session for look in looks(self.home)}

    def close(self) -> None:
        """Close memory.db."""
        self.memory.close()

    def checkpoint_directory(self, session: str, train_hash: str) -> Path | None:
        """The directory of a finished trial with this training hash whose checkpoint still exists, if any."""
        for record in self.memory.trials.all(session):
            directory = self.trial_directory(session, record.handle)
            if record.status == "finished" and record.train_hash == train_hash and (directory / CHECKPOINT).exists():
                return directory
        return None

    def state_directory(self, session: str, train_hash: str) -> Path | None:
        """The directory of the latest trial with this training hash that left a state to resume from, if any."""
        for record in reversed(self.memory.trials.all(session)):
            directory = self.trial_directory(session, record.handle)
            if record.train_hash == train_hash and (directory / STATE).exists():
                return directory
        return None


def trial_seed(session_seed: int, dataset_id: str, train_hash: str) -> int:
    """The seed of a configuration in a session. Agents cannot choose it, so they cannot search for a lucky seed.

    Of the configuration, only the training hash enters, so that re-scoring a checkpoint equals training and scoring
    again.
    """
    repetition = 0  # in the hashed text, so that adding repetitions later does not change this seed
    text = f"{session_seed}:{dataset_id}:{train_hash}:{repetition}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") & 0x7FFFFFFF
