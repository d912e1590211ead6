"""The agent interface: a function from the current situation to the next action.

An agent keeps no state between calls: all its information is in the `Situation`, and its random numbers come from a
generator seeded by (seed, number of trials). A session that is resumed in another process therefore continues
identically.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from pydantic import TypeAdapter

from ..memory.records import Hypothesis
from ..sandbox.action_space import Knob
from ..sandbox.reflection import Helped
from ..tools.results import Budget, OpenedSession
from ..tools.views import (
    ActionSpaceView,
    KnobRow,
    KnobValues,
    LongTermView,
    PriorEntry,
    StateView,
    TrajectoryView,
)
from ..tools.write_reflection import RuleInput

_KNOBS = TypeAdapter(list[KnobRow])
_PRIOR = TypeAdapter(list[PriorEntry])


@dataclass(frozen=True)
class RunTrial:
    """Run `changes` over `base` ('incumbent', 'default' or a trial handle)."""

    changes: KnobValues
    base: str = "incumbent"
    hypothesis: Hypothesis | None = None
    override: str = ""  # why a discard heuristic does not apply here; empty = no override


@dataclass(frozen=True)
class WaitTrial:
    """Wait for the running trial."""

    trial: str


@dataclass(frozen=True)
class Reflect:
    """Write the missing reflection on a finished trial."""

    trial: str
    helped: Helped
    dimension: str
    lesson: str
    next_step: str = ""
    evidence: tuple[str, ...] = ()
    rule: RuleInput | None = None
    cause: str = ""  # the mechanism that probably explains the outcome
    effect: float | None = None  # claimed change in NDCG@10 against the base


@dataclass(frozen=True)
class Finalize:
    """End the session."""

    summary: str
    rules: tuple[RuleInput, ...] = ()


Action = RunTrial | WaitTrial | Reflect | Finalize


@dataclass(frozen=True)
class Refusal:
    """A trial that the server refused, and the reason; forgotten when the server runs the next trial."""

    changes: KnobValues
    base: str
    reason: str


@dataclass(frozen=True)
class Brief:
    """The brief of a session, from open_session or, if the session is resumed by its id, from views of read_memory."""

    session: str
    resumed: bool
    dataset: str
    backbone: str
    budget: Budget
    knobs: Sequence[Knob]
    prior: Sequence[PriorEntry] = ()
    profile: Mapping[str, Any] = field(default_factory=dict)  # train-only statistics; not part of the views

    @classmethod
    def of(cls, opened: OpenedSession) -> "Brief":
        """The brief of a session that open_session has returned."""
        return cls(
            session=opened.session,
            resumed=opened.resumed,
            dataset=opened.dataset,
            backbone=opened.backbone,
            budget=opened.budget,
            knobs=[row.to_knob(opened.backbone) for row in _KNOBS.validate_python(opened.action_space)],
            prior=_PRIOR.validate_python(opened.prior),
            profile=opened.profile,
        )

    @classmethod
    def from_views(cls, state: StateView, space: ActionSpaceView, long_term: LongTermView) -> "Brief":
        """The brief of a session that is resumed by its id."""
        return cls(
            session=state.session,
            resumed=True,
            dataset=state.dataset,
            backbone=state.backbone,
            budget=state.budget,
            knobs=[row.to_knob(space.backbone) for row in space.knobs],
            prior=long_term.prior,
        )


@dataclass(frozen=True)
class Situation:
    """All that an agent knows: the brief, two views of read_memory, and the trials refused since a trial last ran."""

    brief: Brief
    state: StateView
    trajectory: TrajectoryView
    refused: tuple[Refusal, ...] = ()


class Agent(ABC):
    """Base class of the agents: it chooses actions, and the loop executes them."""

    reflects: ClassVar[bool] = True
    """Whether the agent reflects; the sessions of an agent that does not are opened without required reflections."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @abstractmethod
    def act(self, situation: Situation) -> Action:
        """The next action; deterministic given (seed, situation)."""

    async def decide(self, situation: Situation) -> Action:
        """The next action; the loop awaits it, so that an agent may ask a language model."""
        return self.act(situation)

    def generator(self, situation: Situation) -> np.random.Generator:
        """The random generator of this step; repeating the step gives the same random numbers."""
        return np.random.default_rng([self.seed, situation.state.budget.trials_used])
