"""The tool cancel_trial, the only way for an agent to stop a running trial."""

from typing import Annotated

from pydantic import Field

from ..data.errors import SessionError
from .help_text import described
from .observation import observe
from .results import TrialObservation
from .sync import sync_session
from .workspace import Workspace


@described
def cancel_trial(
    ws: Workspace,
    session: Annotated[str, Field(description="session id")],
    trial: Annotated[str, Field(description="the running trial, e.g. t003")],
) -> TrialObservation:
    """Stop a running trial. The budget that it has used is not refunded."""
    record = ws.memory.sessions.get(session)
    target = ws.memory.trials.get(session, trial)
    if target.repeats:
        raise SessionError(
            f"{trial} repeats {target.repeats} for the confirmation, which runs to its end; call finalize again"
        )
    running = sync_session(ws, session)
    if any(record.handle == trial for record in running):
        directory = ws.trial_directory(session, trial)
        ws.launcher_of(session, directory).cancel(directory)
        sync_session(ws, session)
    return observe(ws, record, trial)
