"""list_sessions: what has been tuned here, and what is still open."""

from ..memory.records import SessionRecord
from .results import SessionList, SessionSummary
from .workspace import Workspace


def list_sessions(ws: Workspace) -> SessionList:
    """List the sessions of this home with their states; an open one can be taken up again with open_session."""
    return SessionList(sessions=[_summary(ws, session) for session in ws.memory.sessions()])


def _summary(ws: Workspace, session: SessionRecord) -> SessionSummary:
    trials = ws.memory.trials(session.id)
    scores = [t.outcome.metrics["ndcg@10"] for t in trials if t.outcome and t.outcome.status == "finished"]
    return SessionSummary(
        session=session.id,
        dataset=session.dataset,
        backbone=session.backbone,
        state=session.state,
        trials=len(trials),
        best_ndcg10=max(scores) if scores else None,
        opened_at=session.opened_at,
    )
