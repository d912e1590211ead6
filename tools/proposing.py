"""The server's proposals for the next trial, for the state view and for the record of the trial that follows one."""

from typing import Any

from ..memory.records import FollowedProposal, SessionRecord, TrialRecord
from ..sandbox.proposal_scores import followed
from ..sandbox.proposals import propose
from ..sandbox.surrogate import Surrogate
from .cognition import best_first
from .transfer import HeuristicCheck, history_of
from .workspace import Workspace


def proposals_of(
    ws: Workspace,
    session: SessionRecord,
    trials: list[TrialRecord],
    incumbent: TrialRecord | None,
    model: Surrogate | None = None,
) -> list[dict[str, Any]]:
    """Up to six proposals over the incumbent; if it used models of others, over the best trial that used none.

    None for a session that is closed or has no memory.
    """
    trained = [trial for trial in trials if not trial.uses_models]
    start = next(iter(best_first(trained)), None) if incumbent and incumbent.uses_models else incumbent
    if start is None or session.state != "open" or not session.with_memory:
        return []
    refused = HeuristicCheck(ws, session, start.configuration)
    space = ws.session_protocol(session).space
    rows = propose(trained, start, space, history_of(ws, session), refused, session.profile.get("items"), model)
    if start is incumbent:
        return rows
    return [{**row, "base": start.handle if row["base"] == "incumbent" else row["base"]} for row in rows]


def followed_proposal(
    ws: Workspace, session: SessionRecord, trials: list[TrialRecord], base: str, changes: dict[str, Any]
) -> FollowedProposal | None:
    """The proposal that a trial over `base` (a handle) is about to follow; computed anew, as the state view would.

    Only proposals over the incumbent are recorded.
    """
    incumbent = ws.memory.trials.incumbent(session.id)
    if incumbent is None or base != incumbent.handle or not changes or incumbent.uses_models:
        return None
    return followed(proposals_of(ws, session, trials, incumbent), changes, incumbent.configuration)
