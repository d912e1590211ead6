"""The end of a session for a person who writes no Cognition Summary: the one that the built-in agents would write."""

from ..tools.read_memory import read_memory
from ..tools.results import OpenedSession
from ..tools.views import StateView, TrajectoryView
from ..tools.workspace import Workspace
from .base import Brief, Finalize, Situation
from .reflecting import closing_rules, summarise


def computed_closing(ws: Workspace, session: str) -> Finalize:
    """The summary and the rules that are computed from the trials of an open session."""
    brief = OpenedSession.model_validate(read_memory(ws, session, view="brief").content)
    state = StateView.model_validate(read_memory(ws, session, view="state").content)
    trajectory = TrajectoryView.model_validate(read_memory(ws, session, view="trajectory").content)
    situation = Situation(Brief.of(brief), state, trajectory)
    return Finalize(summarise(situation), closing_rules(situation))
