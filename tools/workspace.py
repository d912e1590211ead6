"""The workspace that every tool acts on: a home directory, its memory, its datasets, and what people have set."""

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
    """What people choose when they start the server or a command; an agent can change none of it."""

    max_trials: int | None = None  # None = as SANDBOX.md says
    max_train_seconds: float | None = None
    seed: int = 0
    with_reflection: bool = True
    with_memory: bool = True
    memory_from: tuple[str, ...] = ()  # datasets whose cognition alone new sessions may use; () = all
    placebo: bool = False  # new sessions get the memory of a shuffled dataset
    device: str = "auto"
    threads: int = 0
    keep_warm: float = 0.0  # seconds that a worker waits for the next trial of its session; 0 = it leaves
    client: str = ""
    protocol_path: Path | None = None


class Workspace:
    """A home directory, opened. Everything that outlives a process lies on disk below `home`."""

    def __init__(self, home: Path, memory: Memory, protocol: Protocol, settings: Settings) -> None:
        self.home = home
        self.memory = memory
        self.protocol = protocol
        self.settings = settings
        self.catalogue = Catalogue(home)

    @classmethod
    def open(cls, home: Path, *, settings: Settings | None = None) -> "Workspace":
        """Open `home`, creating what is missing.

        Raises HomeError where the directory cannot be written, ProtocolError for a malformed SANDBOX.md, and
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
        """The directory of a session's dataset; DataError if another dataset bears its name since it was opened."""
        path = self.catalogue.path(session.dataset)
        if self.catalogue.manifest(session.dataset).dataset_id != session.dataset_id:
            raise DataError(
                f"dataset {session.dataset!r} was replaced since session {session.id} was opened; "
                "restore it, or open a new session"
            )
        return path

    def session_protocol(self, session: SessionRecord) -> Protocol:
        """The protocol under which a session was opened, whatever SANDBOX.md says today."""
        if session.protocol_hash == self.protocol.sha256:
            return self.protocol
        return parse_protocol(session.protocol_text, source=f"SANDBOX.md of session {session.id}")

    def settings_of(self, session: SessionRecord, trial: TrialRecord) -> dict[str, Any]:
        """The knobs in which a trial differs from the default of the session's protocol."""
        return self.session_protocol(session).space.differences(trial.configuration)

    def trial_directory(self, session: str, handle: str) -> Path:
        """Where a trial's files lie."""
        return self.home / ".virtualmle" / "sessions" / session / handle

    def inbox(self, session: str) -> Path:
        """Where the session's warm worker finds its next trial."""
        return self.home / ".virtualmle" / "sessions" / session / "worker"

    def session_names_on_disk(self) -> set[str]:
        """Ids that left files here, also where memory.db was deleted since: they are not given out again."""
        state = self.home / ".virtualmle"
        folders = {path.name for path in (state / "sessions").glob("*")}
        return folders | {look.session for look in looks(self.home)}

    def close(self) -> None:
        """Close memory.db."""
        self.memory.close()

    def checkpoint_directory(self, session: str, train_hash: str) -> Path | None:
        """The directory of a finished trial with this training part and its checkpoint, if there is one."""
        for record in self.memory.trials.all(session):
            directory = self.trial_directory(session, record.handle)
            if record.status == "finished" and record.train_hash == train_hash and (directory / CHECKPOINT).exists():
                return directory
        return None

    def state_directory(self, session: str, train_hash: str) -> Path | None:
        """The directory of the latest unfinished trial with this training part that left a state to go on from."""
        for record in reversed(self.memory.trials.all(session)):
            directory = self.trial_directory(session, record.handle)
            if record.train_hash == train_hash and (directory / STATE).exists():
                return directory
        return None


def trial_seed(session_seed: int, dataset_id: str, train_hash: str) -> int:
    """The one seed of a configuration in a session: nobody can pick it, so nobody can hunt for a lucky one.

    It depends on the training part only, so that re-scoring a checkpoint equals training it again.
    """
    repetition = 0  # part of the text, so that later repetitions of a configuration leave the seed of this one as it is
    text = f"{session_seed}:{dataset_id}:{train_hash}:{repetition}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") & 0x7FFFFFFF
