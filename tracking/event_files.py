"""A session as TensorBoard event files, one directory per trial. Needs tensorboardX (the extra `track`).

The library makes the summaries and checksums. This module appends records to a file, because the library's own writer
starts a new file each time. Records that are in the file are not written again, and an incomplete record, which an
interrupted process may leave, is cut off, so that TensorBoard can read on.
"""

import struct
import time
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import hparams, scalar

from ..data.errors import TrackingError
from ..data.permissions import as_the_user_set
from .snapshot import Snapshot, TrackedTrial
from .tracker import Tracker

HEADER = struct.Struct("<QI")  # length of the data, checksum of the length
CHECKSUM = struct.Struct("<I")  # of the data
VERSION = "brain.Event:2"  # the first record of every event file


class EventFileTracker(Tracker):
    """Event files below `directory`; TensorBoard is started with --logdir on it."""

    def __init__(self, directory: Path) -> None:
        self.target = f"TensorBoard directory {directory}"
        self._directory = directory

    def sync(self, snapshot: Snapshot) -> None:
        """Append the missing records."""
        folder = self._directory / snapshot.name
        try:
            for trial in snapshot.trials:
                _append(folder / trial.handle / _file_name(trial.started), list(_of_trial(trial)))
            if snapshot.trials:
                _append(folder / _file_name(snapshot.trials[0].started), list(_of_session(snapshot)))
        except OSError as error:
            raise TrackingError(f"{self.target} cannot be written: {error.strerror or error}") from None


def _file_name(started: float) -> str:
    """TensorBoard reads files with this stem, in the order of their names."""
    return f"events.out.tfevents.{int(started):010d}.virtualmle"


def _of_trial(trial: TrackedTrial) -> Iterator[Event]:
    for name, points in trial.series.items():
        times = trial.seconds if len(trial.seconds) == len(points) else [0.0] * len(points)
        for (step, value), seconds in zip(points, times, strict=True):
            yield _event(scalar(name, value), step, trial.started + seconds)
    if trial.is_over:
        for name, value in trial.figures.items():
            yield _event(scalar(name, value), trial.step, trial.ended or trial.started)
        if trial.knobs and trial.value is not None:
            for summary in hparams(dict(trial.knobs), {"validation/ndcg_at_10": trial.value}):
                yield _event(summary, 0, trial.started)


def _of_session(snapshot: Snapshot) -> Iterator[Event]:
    now = time.time()
    for step, value in snapshot.best:
        yield _event(scalar("best_ndcg_at_10", value), step, now)
    last = max(trial.number for trial in snapshot.trials)
    for name, value in (snapshot.figures | snapshot.test).items() if snapshot.is_over else ():
        yield _event(scalar(name, value), last, now)


def _event(summary: Summary, step: int, moment: float) -> Event:
    return Event(wall_time=moment, step=step, summary=summary)


def _append(path: Path, events: list[Event]) -> None:
    """Append the events of tags and steps that the file does not contain."""
    with as_the_user_set():
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    with file:
        file.seek(0)
        content = file.read()
        known, length = _records(content)
        if length < len(content):
            file.truncate(length)
        missing = [event for event in events if not _keys(event) <= known]
        if not length:
            missing.insert(0, Event(wall_time=time.time(), file_version=VERSION))
        file.write(b"".join(_record(event) for event in missing))


def _records(content: bytes) -> tuple[set[tuple[str, int]], int]:
    """The tags and steps in the complete records of a file, and the length of these records."""
    known: set[tuple[str, int]] = set()
    position = 0
    while position + HEADER.size <= len(content):
        size, _ = HEADER.unpack_from(content, position)
        end = position + HEADER.size + size + CHECKSUM.size
        data = content[position + HEADER.size : end - CHECKSUM.size]
        if end > len(content) or masked_crc32c(data) != CHECKSUM.unpack_from(content, end - CHECKSUM.size)[0]:
            break
        try:
            known |= _keys(Event.FromString(data))
        except DecodeError:
            break
        position = end
    return known, position


def _keys(event: Event) -> set[tuple[str, int]]:
    return {(value.tag, event.step) for value in event.summary.value}


def _record(event: Event) -> bytes:
    data: bytes = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join((length, CHECKSUM.pack(masked_crc32c(length)), data, CHECKSUM.pack(masked_crc32c(data))))
