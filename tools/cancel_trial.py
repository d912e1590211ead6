"""The tool cancel_trial, the only way for an agent to stop a running trial, or to end it early with what it has."""

from typing import Annotated

from pydantic import Field

from ..data.errors import SessionError
from ..trials.launcher import ask_to_end
from .help_text import described
from .observation import observe
from .results import TrialObservation
from .sync import sync_session
from .wait_trial import WaitSeconds, wait_trial
from .workspace import Workspace


@described
def cancel_trial(
    ws: Workspace,
    session: Annotated[str, Field(description="session id")],
    trial: Annotated[str, Field(description="the running trial, e.g. t003")],
    keep_best: Annotated[
        bool, Field(description="true: end it as finished after this epoch, with its best checkpoint")
    ] = False,
    wait_seconds: WaitSeconds = None,
) -> TrialObservation:
    """Stop a running trial; what it has used is not refunded.

    With keep_best it is judged like any finished trial. The same configuration again continues the training.
    """
    record = ws.memory.sessions.get(session)
    target = ws.memory.trials.get(session, trial)
    if target.repeats:
        raise SessionError(
            f"{target.handle} repeats {target.repeats} for the confirmation, which runs to its end; call finalize again"
        )
    running = sync_session(ws, session)
    if any(record.handle == target.handle for record in running):
        directory = ws.trial_directory(session, target.handle)
        if keep_best:
            ask_to_end(directory)
            return wait_trial(ws, session, target.handle, wait_seconds)
        ws.launcher_of(session, directory).cancel(directory)
        sync_session(ws, session)
    return observe(ws, record, target.handle)
