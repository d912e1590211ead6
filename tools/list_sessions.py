"""The tool list_sessions: all sessions of this home and their states."""

from .help_text import described
from .results import SessionList, SessionSummary
from .workspace import Workspace


@described
def list_sessions(ws: Workspace) -> SessionList:
    """List all sessions of this home with dataset, backbone, state, number of trials and best validation NDCG@10.

    open_session resumes an open session.
    """
    return SessionList(sessions=[SessionSummary(**row) for row in ws.memory.sessions.overview()])
