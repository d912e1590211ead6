"""The workspace that every tool acts on: a home directory, its memory, its datasets and the user's settings."""

import functools
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..data.catalogue import Catalogue
from ..data.dataset_signature import check_dataset
from ..data.errors import ConfigError, DataError, HomeError, ReplayError, SessionError, TrialError
from ..data.permissions import make_private
from ..data.prepared import Manifest, PreparedDataset
from ..data.safe_open import refuse_links
from ..examiner.request import looks
from ..examiner.vault import Vault
from ..memory.records import SessionRecord, TrialRecord
from ..memory.store import Memory
from ..sandbox.protocol import Protocol, load_protocol, parse_protocol
from ..training.signature import RESCORED, check_trial
from ..training.spec import CHECKPOINT
from ..trials.launching import Launcher, LocalLauncher, launcher_of
from ..trials.ray_launcher import RayLauncher
from ..trials.replay import REPLAYED
from .replaying import Replay, open_replay

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Settings that a person chooses when starting the server or a command; agents cannot change them."""

    max_trials: int | None = None  # None = from SANDBOX.md
    max_train_seconds: float | None = None
    max_sessions: int | None = None  # on the same content, opened by the tool
    parallel: int | Literal["auto"] | None = None  # trials of a session at a time
    seed: int = 0
    with_reflection: bool = True
    with_memory: bool = True
    memory_from: tuple[str, ...] = ()  # datasets whose cognition new sessions may use; () = all
    device: str = "auto"
    threads: int = 0
    keep_warm: float = 0.0  # seconds that a worker waits for the session's next trial; 0 = it exits
    ray_address: str | None = None  # of the Ray cluster on which trials run; None = they run on this machine
    client: str = ""
    protocol_path: Path | None = None
    replay: Path | None = None  # new sessions are served from this table instead of being trained


class Workspace:
    """An open home directory. All persistent state is on disk below `home`."""

    def __init__(
        self, home: Path, memory: Memory, protocol: Protocol, settings: Settings, replay: Replay | None = None
    ) -> None:
        self.home = home
        self.replay = replay
        self.memory = memory
        self.protocol = protocol
        self.settings = settings
        self.catalogue = Catalogue(home)
        self.vault = Vault(home)

    @classmethod
    def open(cls, home: Path, *, settings: Settings | None = None) -> "Workspace":
        """Open `home` and create what is missing.

        Raises HomeError if the directory cannot be written, ProtocolError for a malformed SANDBOX.md, ReplayError for
        an unusable replay table, and MemoryStoreError for an unusable memory.db.
        """
        settings = settings or Settings()
        replay = open_replay(settings.replay) if settings.replay else None
        home = home.expanduser().resolve()
        refuse_links(home, ".virtualmle")
        try:
            make_private(home / ".virtualmle")
        except OSError as error:
            raise HomeError(
                f"home={str(home)!r} cannot be written ({error.strerror}); choose another with --home"
            ) from None
        own = home / "SANDBOX.md"
        page = settings.protocol_path or (own if own.exists() else None)
        protocol = _replayed_protocol(replay, settings) if replay else load_protocol(page)
        return cls(home, Memory(home / "memory.db"), protocol, settings, replay)

    def dataset(self, name: str) -> PreparedDataset:
        """The prepared dataset `name`; the bundled demo is generated on first use.

        DataError if there is none, or if it is not the one that was prepared.
        """
        if name == "demo":
            self.catalogue.ensure_demo(self.vault.public_key())
        check_dataset(self.catalogue.path(name), self.vault.mac_key())
        return self.catalogue.load(name)

    def manifest(self, name: str) -> Manifest:
        """The manifest of a new session's dataset: a verified one, or that of the replay table. Raises DataError."""
        if self.replay is None:
            return self.dataset(name).manifest
        if name != self.replay.dataset.name:
            raise DataError(
                f"{self.replay.table.path.name} replays dataset {self.replay.dataset.name!r}, not {name!r:.60}; "
                "give this name, or leave --replay out"
            )
        return self.replay.dataset

    def replay_of(self, session: SessionRecord) -> Replay | None:
        """The replay table of a session; None if its trials are trained. Raises ReplayError if it has changed."""
        if not session.replay:
            return None
        path, digest = Path(session.replay["path"]), session.replay["digest"]
        given = self.replay if self.replay and self.replay.table.footer.digest == digest else None
        replay = given or open_replay(path)
        if replay.table.footer.digest != digest:
            raise ReplayError(f"{str(path)!r} is not the table that session {session.id} was opened with; restore it")
        return replay

    def session_dataset(self, session: SessionRecord) -> Path:
        """The directory of a session's dataset, or the file of its replay table.

        DataError or ReplayError if it was replaced after the session was opened, DataError as well if it was changed,
        and SessionError if a server that replays is asked for a session that is trained.
        """
        if replay := self.replay_of(session):
            return replay.table.path
        if self.replay:
            raise SessionError(f"session {session.id} is not a replay; continue it without --replay")
        path = self.dataset_path(session)
        check_dataset(path, self.vault.mac_key())
        return path

    def dataset_path(self, session: SessionRecord) -> Path:
        """The directory of a trained session's dataset, unchecked. DataError if it was replaced since it was opened."""
        path = self.catalogue.path(session.dataset)
        if self.catalogue.manifest(session.dataset).dataset_id != session.dataset_id:
            raise DataError(
                f"dataset {session.dataset!r} was replaced since session {session.id} was opened; "
                "restore it, or open a new session"
            )
        return path

    def session_key(self, session: str) -> bytes:
        """The key with which the trials of a session are signed."""
        return self.vault.session_key(session)

    def session_protocol(self, session: SessionRecord) -> Protocol:
        """The protocol that a session was opened under, even if SANDBOX.md has changed since."""
        if session.protocol_hash == self.protocol.sha256:
            return self.protocol
        return _page_of_session(session.protocol_text, f"SANDBOX.md of session {session.id}")

    def settings_of(self, session: SessionRecord, trial: TrialRecord) -> dict[str, Any]:
        """The knob values in which a trial differs from the default of the session's protocol."""
        return self.session_protocol(session).space.differences(trial.configuration)

    def trial_directory(self, session: str, handle: str) -> Path:
        """The directory of a trial's files."""
        return trial_directory(self.home, session, handle)

    def inbox(self, session: str, place: int = 0) -> Path:
        """The directory in which the warm worker of a place of the session looks for its next trial."""
        name = f"worker-{place}" if place else "worker"
        return refuse_links(self.home, ".virtualmle", "sessions", session, name, error=TrialError)

    def inboxes(self, session: SessionRecord) -> list[Path]:
        """The inboxes of all places that the session has, or had before it was given fewer."""
        current = {self.inbox(session.id, place) for place in range(session.parallel)}
        return sorted(current | set(self.inbox(session.id).parent.glob("worker*")))

    def launcher(self, trial: TrialRecord) -> Launcher:
        """The launcher of a new trial; `launcher_of` returns that of an earlier one."""
        if self.settings.ray_address is not None:
            return RayLauncher(self.settings.ray_address, key=self.session_key(trial.session))
        inbox, key = self.inbox(trial.session, trial.place), self.session_key(trial.session)
        return LocalLauncher(inbox, self.settings.keep_warm, self.home, key)

    def launcher_of(self, session: str, directory: Path) -> Launcher:
        """The launcher of an earlier trial of a session, from the trial's files."""
        return launcher_of(directory, self.session_key(session))

    def session_names_on_disk(self) -> set[str]:
        """Ids of sessions with files here, even if memory.db was deleted since; new sessions must not reuse them."""
        state = self.home / ".virtualmle"
        folders = {path.name for path in (state / "sessions").glob("*")}
        return folders | {look.session for look in looks(self.home)}

    def close(self) -> None:
        """Close memory.db."""
        self.memory.close()

    def checkpoint_directory(self, session: str, train_hash: str) -> Path | None:
        """The directory of a finished trial with this training hash whose checkpoint still exists unchanged, if any.

        One that trained to its end, if there is one.
        """
        records = [r for r in self.memory.trials.all(session) if r.status == "finished" and r.train_hash == train_hash]
        for record in sorted(records, key=lambda record: record.ended_after is not None):
            if self._has_model(session, record.handle):
                return self.trial_directory(session, record.handle)
        return None

    def _has_model(self, session: str, handle: str) -> bool:
        """Whether a finished trial has its model and the files beside it, as they were signed; a replay needs none."""
        directory = self.trial_directory(session, handle)
        if (directory / REPLAYED).exists() or not (directory / CHECKPOINT).exists():
            return (directory / REPLAYED).exists()
        try:
            check_trial(directory, self.session_key(session), session, handle, names=RESCORED)
        except TrialError as error:
            logger.warning("the model of %s/%s is not used: %s", session, handle, error)
            return False
        return True


def trial_directory(home: Path, session: str, handle: str) -> Path:
    """The directory of a trial's files in `home`. Raises TrialError if it or one above it is a symbolic link."""
    return refuse_links(home, ".virtualmle", "sessions", session, handle, error=TrialError)


@functools.lru_cache(maxsize=32)
def _page_of_session(text: str, source: str) -> Protocol:
    """The protocol in a session's own page; cached, because a tool asks for it many times and parsing takes long."""
    return parse_protocol(text, source=source)


def _replayed_protocol(replay: Replay, settings: Settings) -> Protocol:
    """The protocol of a replay: the table's page, or one that differs from it in its budgets only."""
    if settings.protocol_path is None:
        return replay.protocol
    protocol = load_protocol(settings.protocol_path)
    if protocol.space != replay.protocol.space:
        raise ConfigError(
            f"{settings.protocol_path} has other knobs than {replay.table.path.name}, which contains its page; leave "
            "--sandbox out, or change only the table of rules"
        )
    return protocol


def trial_seed(session_seed: int, dataset_id: str, repetition: int = 0) -> int:
    """The seed of all trials of a session: agents cannot choose it, nor get another one by changing a knob.

    Configurations that share a seed share its random streams: initial weights by name and shape, order of the
    examples, negatives, augmentation and dropout. Paired differences between them are therefore less noisy.
    `repetition` > 0 gives the fresh seeds of a confirmation.
    """
    text = f"{session_seed}:{dataset_id}:{repetition}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") & 0x7FFFFFFF
