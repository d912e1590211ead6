"""list_sessions: what has been tuned here, and what is still open."""

from .results import SessionList, SessionSummary
from .workspace import Workspace


def list_sessions(ws: Workspace) -> SessionList:
    """List the sessions of this home with their states; an open one can be taken up again with open_session."""
    return SessionList(sessions=[SessionSummary(**row) for row in ws.memory.sessions.overview()])
