"""The tool wait_trial. Waiting never stops a trial; only cancel_trial or a limit of the protocol does."""

import time
from typing import Annotated

from pydantic import Field

from ..data.errors import SessionError
from .guidance import pending_reflection
from .help_text import described
from .observation import observe
from .results import TrialObservation
from .sync import sync_session
from .workspace import Workspace

POLL_SECONDS = 0.05

WaitSeconds = Annotated[
    float | None,
    Field(description="most seconds to wait, up to what this client allows", ge=0),
]


@described
def wait_trial(
    ws: Workspace,
    session: Annotated[str, Field(description="session id")],
    trial: Annotated[
        str | list[str] | None,
        Field(description="e.g. t003; several (t003, t004): the first to end"),
    ] = None,
    wait_seconds: WaitSeconds = None,
) -> TrialObservation:
    """Wait until a trial ends, and get its observation.

    Without trial: the one that needs its reflection, or the first to end. Status 'running': the wait is up, the trial
    goes on; call wait_trial again.
    """
    record = ws.memory.sessions.get(session)
    handles = awaited(ws, session, trial)
    deadline = None if wait_seconds is None else time.monotonic() + wait_seconds
    while True:
        sync_session(ws, session)
        trials = [ws.memory.trials.get(session, handle) for handle in handles]
        ended = [found for found in trials if found.status != "running"]
        if ended:
            return observe(ws, record, min(ended, key=lambda found: found.order).handle)
        if deadline is not None and time.monotonic() >= deadline:
            return observe(ws, record, handles[0])
        time.sleep(POLL_SECONDS)


def awaited(ws: Workspace, session: str, trial: str | list[str] | None) -> list[str]:
    """The trials of which the first one to end is waited for, at least one; SessionError for an unknown trial.

    A wait that consists of several calls must ask once: a trial that ends in between would be left out the next time.
    """
    named = trial.replace(",", " ").split() if isinstance(trial, str) else trial
    if named:
        return [ws.memory.trials.get(session, name).handle for name in named]
    running = [record.handle for record in sync_session(ws, session)]
    trials = ws.memory.trials.all(session)
    pending = pending_reflection(ws, ws.memory.sessions.get(session), trials)
    if pending or running:
        return [pending] if pending else running
    if not trials:
        raise SessionError(f"session {session!r} has no trial to wait for; call run_trial first")
    return [max(trials, key=lambda record: record.order).handle]
