"""Trackers, and how a session is followed: each tracker brings what it holds up to date with a snapshot.

A tracker never holds up a session: it only reads the home, and one that is down is tried again later. `sync` adds what
is missing and nothing else, so that it may be repeated, interrupted and run by several commands one after the other.
"""

import contextlib
import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..data.errors import TrackingError
from ..data.locks import take_lock
from ..memory.store import Memory
from .snapshot import Snapshot, read_snapshot

FIRST_RETRY_SECONDS = 5.0
LAST_RETRY_SECONDS = 120.0


class Tracker(ABC):
    """One place that a session is tracked to. `target` names it in messages, without any password in it."""

    target: str

    @abstractmethod
    def sync(self, snapshot: Snapshot) -> None:
        """Add what is missing. Raises TrackingError if the place cannot be reached or refuses."""


class Following:
    """The state of one tracker while a session is followed: it warns once per outage, and waits ever longer."""

    def __init__(self, tracker: Tracker, warn: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self.tracker = tracker
        self.failed: TrackingError | None = None
        self._warn = warn
        self._clock = clock
        self._synced: Snapshot | None = None
        self._pause = FIRST_RETRY_SECONDS
        self._not_before = 0.0

    def step(self, snapshot: Snapshot, *, last: bool = False) -> None:
        """Synchronise if something has changed and no pause is running; `last`: despite a pause."""
        if snapshot == self._synced or (self._clock() < self._not_before and not last):
            return
        try:
            self.tracker.sync(snapshot)
        except TrackingError as error:
            if self.failed is None:
                self._warn(f"{error}; the session goes on, and tracking is tried again later")
            self.failed = error
            self._not_before = self._clock() + self._pause
            self._pause = min(2 * self._pause, LAST_RETRY_SECONDS)
        else:
            if self.failed is not None:
                self._warn(f"{self.tracker.target} answers again; it is up to date")
            self.failed, self._synced, self._pause = None, snapshot, FIRST_RETRY_SECONDS


def follow(
    home: Path,
    session: str,
    trackers: Sequence[Tracker],
    *,
    warn: Callable[[str], None],
    wait: Callable[[], bool],
    export: Path | None = None,
) -> list[TrackingError]:
    """Keep trackers up to date until the session is closed, or `wait`, which pauses, returns False.

    Returns the errors of those that are behind at the end.
    """
    following = [Following(tracker, warn) for tracker in trackers]
    with Memory(home / "memory.db") as memory:
        while True:
            going_on = wait()
            snapshot = read_snapshot(home, memory, session, export)
            for each in following:
                each.step(snapshot, last=not going_on)
            if not going_on or (snapshot.is_over and not any(each.failed for each in following)):
                return [each.failed for each in following if each.failed]


@contextlib.contextmanager
def one_at_a_time(home: Path, session: str, target: str) -> Iterator[None]:
    """Hold the lock on a session's place of tracking; raises TrackingError if another process tracks to it."""
    name = hashlib.blake2b(target.encode(), digest_size=6).hexdigest()
    path = home / ".virtualmle" / "sessions" / session / f"track-{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            taken = take_lock(file.fileno())
        except OSError:  # a file system without locks: a second process is not detected
            taken = True
        if not taken:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise TrackingError(
                f"session {session} is being tracked to {target} by process {holder}; wait for its run to end"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
