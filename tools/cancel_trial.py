"""cancel_trial: the only way for an agent to stop a trial."""

from typing import Annotated

from pydantic import Field

from ..trials.launcher import cancel
from .observation import observe
from .results import TrialObservation
from .sync import sync_session
from .workspace import Workspace


def cancel_trial(
    ws: Workspace,
    session: Annotated[str, Field(description="session id")],
    trial: Annotated[str, Field(description="trial handle, e.g. 't003'")],
) -> TrialObservation:
    """Stop a running trial; the budget it used stays used. A trial that is already over is returned unchanged."""
    record = ws.memory.sessions.get(session)
    ws.memory.trials.get(session, trial)
    running = sync_session(ws, session)
    if running and running.handle == trial:
        cancel(ws.trial_directory(session, trial))
        sync_session(ws, session)
    return observe(ws, record, trial)
