"""wait_trial: wait for a running trial again. Waiting never stops a trial; only cancel_trial or a limit does."""

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
    Field(description="how long to wait before returning with status 'running'; null = as long as allowed", ge=0),
]


def wait_trial(
    ws: Workspace,
    session: Annotated[str, Field(description="session id")],
    trial: Annotated[str, Field(description="trial handle, e.g. 't003'")],
    wait_seconds: WaitSeconds = None,
) -> TrialObservation:
    """Wait for a running trial and return its observation; returns at once when it is already over."""
    record = ws.memory.sessions.get(session)
    ws.memory.trials.get(session, trial)
    deadline = None if wait_seconds is None else time.monotonic() + wait_seconds
    while True:
        running = sync_session(ws, session)
        out_of_time = deadline is not None and time.monotonic() >= deadline
        if running is None or running.handle != trial or out_of_time:
            return observe(ws, record, trial)
        time.sleep(POLL_SECONDS)
