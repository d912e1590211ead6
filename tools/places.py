"""The places of a session: how many of its trials may run now, and what a trial that starts gets of the machine."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from ..memory.records import SessionRecord, TrialRecord
from ..sandbox.costs import estimate_seconds
from ..sandbox.program import Occupation, seconds_used, trials_used
from ..trials.lease import read_lease
from ..trials.places import device_of, fitting, free_bytes, held_bytes, num_cores, num_gpus, threads_of
from ..trials.warm import worker_of
from .workspace import Workspace


class Share(NamedTuple):
    """What a trial gets: the device, and the torch threads on a CPU (0 = torch's choice)."""

    device: str
    threads: int


def places_of(ws: Workspace, session: SessionRecord, running: Sequence[TrialRecord]) -> int:
    """How many trials of the session may run now.

    A session with `auto_parallel` on this machine's CPU runs as many as fit into memory, by the peaks that trials on
    its dataset have reached; until one is known, a single one.
    """
    elsewhere = ws.settings.ray_address is not None or num_gpus(ws.settings.device)
    if session.parallel == 1 or not session.auto_parallel or elsewhere:
        return session.parallel
    leases = [read_lease(ws.trial_directory(session.id, trial.handle)) for trial in running]
    leases += [worker_of(inbox) for inbox in ws.inboxes(session)]
    held = held_bytes(lease.pid for lease in leases if lease)
    return fitting(session.parallel, ws.memory.trials.peak_bytes(session.id), free_bytes() + held)


def free_places(ws: Workspace, session: SessionRecord, trials: Sequence[TrialRecord]) -> int:
    """How many more trials may start now, as far as places and budget are concerned."""
    running = [trial for trial in trials if trial.status == "running"]
    seconds = seconds_used(trials) + reserved_seconds(session, trials)
    if session.state != "open" or seconds >= session.max_train_seconds:
        return 0
    return max(0, min(places_of(ws, session, running) - len(running), session.max_trials - trials_used(trials)))


def occupation(
    ws: Workspace, session: SessionRecord, running: Sequence[TrialRecord], trials: Sequence[TrialRecord]
) -> Occupation:
    """What the running ones among the `trials` of a session occupy, for the Program's admission."""
    handles = [trial.handle for trial in running]
    return Occupation(handles, places_of(ws, session, running), reserved_seconds(session, trials))


def reserved_seconds(session: SessionRecord, trials: Sequence[TrialRecord]) -> float:
    """The training seconds that running trials are expected to use, or have used already if that is more.

    0 for a session of one place, whose running trial keeps every other one from starting.
    """
    if session.parallel == 1:
        return 0.0
    now, items = time.time(), session.profile.get("items")
    return sum(
        max(now - started_at(trial), estimate_seconds(trial.configuration, trials, items) or 0.0)
        for trial in trials
        if trial.status == "running"
    )


def started_at(trial: TrialRecord) -> float:
    """When the trial was started, in seconds since the epoch."""
    return datetime.fromisoformat(trial.created_at).timestamp()


def share_of(ws: Workspace, session: SessionRecord, trial: TrialRecord) -> Share:
    """The device and the threads of a trial, by its place."""
    settings = ws.settings
    if settings.ray_address is not None:  # the cluster deals out its own devices
        return Share(settings.device, max(1, settings.threads))
    if session.parallel == 1:
        return Share(settings.device, settings.threads)
    places = places_of(ws, session, ws.memory.trials.running(session.id))
    device = device_of(settings.device, trial.place, num_gpus(settings.device))
    return Share(device, threads_of(settings.threads, places, num_cores()))
