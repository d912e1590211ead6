"""Renders the results of the tools as text for a language model: short, whole, and readable without a schema.

Everything comes from the result itself, in which agents' texts are quoted and unverified figures masked already.
"""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from ...tools.results import (
    FinalResult,
    MemoryView,
    OpenedSession,
    ReflectionReceipt,
    SessionList,
    TrialObservation,
)
from ...tools.views import ActionSpaceView, LongTermView, ProtocolView, StateView, TrajectoryView, TrialView
from .brief import brief_text
from .closing import final_text, receipt_text, sessions_text
from .history import trajectory_text, trial_text
from .knobs import action_space_text
from .knowledge import long_term_text
from .observation import observation_text
from .state import state_text


def text_of(result: BaseModel) -> str:
    """The result of a tool as text."""
    if isinstance(result, MemoryView):
        model, text = _VIEWS[result.view]
        return text(model.model_validate(result.content))
    return _TEXTS[type(result)](result)


def _protocol_text(view: ProtocolView) -> str:
    whole = view.text or "The whole SANDBOX.md: query='full'."
    return "\n".join([*view.rules, whole])


_TEXTS: dict[type[BaseModel], Callable[[Any], str]] = {
    OpenedSession: brief_text,
    TrialObservation: observation_text,
    ReflectionReceipt: receipt_text,
    FinalResult: final_text,
    SessionList: sessions_text,
}

_VIEWS: dict[str, tuple[type[BaseModel], Callable[[Any], str]]] = {
    "brief": (OpenedSession, brief_text),
    "state": (StateView, state_text),
    "trajectory": (TrajectoryView, trajectory_text),
    "trial": (TrialView, trial_text),
    "long_term": (LongTermView, long_term_text),
    "action_space": (ActionSpaceView, action_space_text),
    "protocol": (ProtocolView, _protocol_text),
}
