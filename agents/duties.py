"""What every agent owes before it may plan a trial: wait, reflect, stop. Agents differ in planning only."""

from .base import Action, Finalize, Situation, WaitTrial
from .reflecting import closing_rules, reflect_on, summarise


def duty(situation: Situation) -> Action | None:
    """The action that comes before any planning, or None when a trial may be planned."""
    state = situation.state
    if state.state != "open":
        return close(situation)
    if state.running:
        return WaitTrial(state.running)
    if state.pending_reflection:
        return reflect_on(situation, state.pending_reflection)
    return close(situation) if state.stop.stop else None


def close(situation: Situation) -> Finalize:
    """End the session with what its numbers say."""
    return Finalize(summarise(situation), closing_rules(situation))
