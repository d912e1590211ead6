"""The tool list_sessions: all sessions of this home and their states."""

from .help_text import described
from .results import SessionList, SessionSummary
from .withholding import shown_state
from .workspace import Workspace


@described
def list_sessions(ws: Workspace) -> SessionList:
    """List the sessions of this home with their states and best validation NDCG@10.

    State 'withheld': the test result is shown once no session on the same data is open.
    """
    rows = [SessionSummary(**row) for row in ws.memory.sessions.overview()]
    states = {record.id: shown_state(ws.home, ws.memory, record) for record in ws.memory.sessions.in_state("revealed")}
    return SessionList(sessions=[row.model_copy(update={"state": states.get(row.session, row.state)}) for row in rows])
