"""The actions that every agent must take before it plans a trial: wait, reflect, finalize."""

from .base import Action, Finalize, Situation, WaitTrial
from .reflecting import closing_rules, reflect_on, summarise


def required_action(situation: Situation) -> Action | None:
    """The action that must come before planning, or None if the agent may plan a trial."""
    state = situation.state
    if state.state != "open":
        return close(situation)
    if state.running:
        return WaitTrial(state.running)
    if state.pending_reflection:
        return reflect_on(situation, state.pending_reflection)
    return close(situation) if state.stop.stop else None


def close(situation: Situation, note: str = "") -> Finalize:
    """End the session with a summary and rules computed from its trials. `note`: what a person should know about it."""
    return Finalize(summarise(situation), closing_rules(situation), note)
