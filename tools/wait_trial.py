"""The tool wait_trial. Waiting never stops a trial; only cancel_trial or a limit of the protocol does."""

import time
from typing import Annotated

from pydantic import Field

from .observation import observe
from .results import TrialObservation
from .sync import sync_session
from .workspace import Workspace

POLL_SECONDS = 0.05

WaitSeconds = Annotated[
    float | None,
    Field(description="seconds to wait before returning with status 'running'; null = as long as allowed", ge=0),
]


def wait_trial(
    ws: Workspace,
    session: Annotated[str, Field(description="session id, as open_session returned it")],
    trial: Annotated[str, Field(description="trial handle, e.g. 't003'")],
    wait_seconds: WaitSeconds = None,
) -> TrialObservation:
    """Wait for a running trial and return its observation; returns at once if the trial has ended.

    A wait that is up returns status 'running'; the trial continues, so call wait_trial again.
    """
    record = ws.memory.sessions.get(session)
    ws.memory.trials.get(session, trial)
    deadline = None if wait_seconds is None else time.monotonic() + wait_seconds
    while True:
        running = sync_session(ws, session)
        out_of_time = deadline is not None and time.monotonic() >= deadline
        if running is None or running.handle != trial or out_of_time:
            return observe(ws, record, trial)
        time.sleep(POLL_SECONDS)
