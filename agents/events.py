"""The events of a session, for displays and logs."""

from collections.abc import Callable
from dataclasses import dataclass

from ..tools.results import FinalResult, ReflectionReceipt, TrialObservation
from .base import Brief, ReadMemory, Reflect, RunTrial, Sweep


@dataclass(frozen=True)
class SessionOpened:
    """The session is open."""

    brief: Brief


@dataclass(frozen=True)
class TrialStarted:
    """A trial is running; `action` is None if an earlier process started it."""

    trial: str
    action: RunTrial | Sweep | None


@dataclass(frozen=True)
class TrialProgress:
    """Progress of a running trial: epochs done, maximum number of epochs (if known), and a message."""

    trial: str
    done: float
    total: float | None
    message: str


@dataclass(frozen=True)
class TrialFinished:
    """A trial has ended."""

    observation: TrialObservation


@dataclass(frozen=True)
class TrialRefused:
    """The server did not run a trial: a duplicate, a match of a discard heuristic, or a violated protocol rule."""

    action: RunTrial | Sweep
    reason: str


@dataclass(frozen=True)
class MemoryRead:
    """The agent has read a view of the memory."""

    action: ReadMemory


@dataclass(frozen=True)
class Refused:
    """The server refused something else than a trial, and the reason; the agent may correct it."""

    tool: str
    reason: str


@dataclass(frozen=True)
class Noted:
    """Something that a person should know."""

    text: str


@dataclass(frozen=True)
class Answered:
    """The language model has answered; `cost`: what the session has cost so far, in words."""

    cost: str


@dataclass(frozen=True)
class Reflected:
    """A reflection was stored; `receipt` says whether the numbers support it."""

    action: Reflect
    receipt: ReflectionReceipt


@dataclass(frozen=True)
class Confirming:
    """The best trials are trained again before the selection: repetitions that are over, of how many."""

    done: float
    total: float | None
    message: str


@dataclass(frozen=True)
class Finalized:
    """The session was finalized."""

    result: FinalResult


@dataclass(frozen=True)
class LeftOpen:
    """The run is over and the session stays open: why, and the Cognition Summary of an agent that would finalize."""

    session: str
    reason: str
    summary: str = ""


Event = (
    SessionOpened
    | TrialStarted
    | TrialProgress
    | TrialFinished
    | TrialRefused
    | MemoryRead
    | Refused
    | Noted
    | Answered
    | Reflected
    | Confirming
    | Finalized
    | LeftOpen
)
OnEvent = Callable[[Event], None]


def ignore(_: Event) -> None:
    """Event handler of callers that display nothing."""
