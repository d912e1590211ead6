"""The actions that every agent must take before it plans a trial: reflect, wait, finalize."""

from .base import Action, Finalize, Situation, WaitTrial
from .reflecting import closing_rules, reflect_on, summarise


def required_action(situation: Situation) -> Action | None:
    """The action that must come before planning, or None if the agent may plan a trial."""
    state = situation.state
    if state.state != "open":
        return close(situation)
    if state.pending_reflection:
        return reflect_on(situation, state.pending_reflection)
    if situation.running and (state.stop.stop or not situation.has_free_place):
        return wait(situation)
    return close(situation) if state.stop.stop else None


def wait(situation: Situation) -> WaitTrial:
    """Wait for the running trial, or for the first one of several to end."""
    running = situation.running
    return WaitTrial(running[0] if len(running) == 1 else running)


def end(situation: Situation) -> Action:
    """What an agent does that has nothing to run: wait as long as trials run, because they may change that; then
    close."""
    return wait(situation) if situation.running else close(situation)


def close(situation: Situation, note: str = "") -> Finalize:
    """End the session with a summary and rules computed from its trials. `note`: what a person should know about it."""
    return Finalize(summarise(situation), closing_rules(situation), note)
