"""The server's proposals for the next trial, for the state view and for the record of the trial that follows one."""

from typing import Any

from ..memory.records import FollowedProposal, SessionRecord, TrialRecord
from ..sandbox.proposal_scores import followed
from ..sandbox.proposals import propose
from ..sandbox.surrogate import Surrogate
from .transfer import HeuristicCheck, history_of
from .workspace import Workspace


def proposals_of(
    ws: Workspace,
    session: SessionRecord,
    trials: list[TrialRecord],
    incumbent: TrialRecord | None,
    model: Surrogate | None = None,
) -> list[dict[str, Any]]:
    """Up to six proposals over the incumbent; none for a session that is closed or has no memory."""
    if incumbent is None or session.state != "open" or not session.with_memory:
        return []
    refused = HeuristicCheck(ws, session, incumbent.configuration)
    space = ws.session_protocol(session).space
    return propose(trials, incumbent, space, history_of(ws, session), refused, session.profile.get("items"), model)


def followed_proposal(
    ws: Workspace, session: SessionRecord, trials: list[TrialRecord], base: str, changes: dict[str, Any]
) -> FollowedProposal | None:
    """The proposal that a trial over `base` (a handle) is about to follow; computed anew, as the state view would."""
    incumbent = ws.memory.trials.incumbent(session.id)
    if incumbent is None or base != incumbent.handle or not changes:
        return None
    return followed(proposals_of(ws, session, trials, incumbent), changes, incumbent.configuration)
