"""What happens in a session, as values for whoever displays it."""

from collections.abc import Callable
from dataclasses import dataclass

from ..tools.results import FinalResult, ReflectionReceipt, TrialObservation
from .base import Brief, Reflect, RunTrial


@dataclass(frozen=True)
class SessionOpened:
    """The session is open."""

    brief: Brief


@dataclass(frozen=True)
class TrialStarted:
    """A trial's process is running, or was found running; `action` is None for one that an earlier process started."""

    trial: str
    action: RunTrial | None


@dataclass(frozen=True)
class TrialProgress:
    """News of a running trial: epochs done of epochs at most, and the same in words."""

    trial: str
    done: float
    total: float | None
    message: str


@dataclass(frozen=True)
class TrialFinished:
    """A trial is over."""

    observation: TrialObservation


@dataclass(frozen=True)
class TrialRefused:
    """The server did not run a trial: a duplicate, a discard heuristic, a rule of the protocol."""

    action: RunTrial
    reason: str


@dataclass(frozen=True)
class Reflected:
    """A reflection is stored; `receipt` says whether the numbers support it."""

    action: Reflect
    receipt: ReflectionReceipt


@dataclass(frozen=True)
class Finalized:
    """The session is over."""

    result: FinalResult


Event = SessionOpened | TrialStarted | TrialProgress | TrialFinished | TrialRefused | Reflected | Finalized
OnEvent = Callable[[Event], None]


def ignore(_: Event) -> None:
    """For callers that display nothing."""
