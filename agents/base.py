"""What an agent is: a function from the situation to the next action, and nothing else.

An agent keeps no state between calls: everything it may know is in the `Situation`, and its randomness is drawn from
a generator seeded by (seed, number of trials). A session that is resumed in another process goes on identically.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    override: str = ""  # why a discard heuristic does not hold here; empty = it is respected


@dataclass(frozen=True)
class WaitTrial:
    """Wait for the trial that is running."""

    trial: str


@dataclass(frozen=True)
class Reflect:
    """Write the reflection that a finished trial still needs."""

    trial: str
    helped: Helped
    dimension: str
    lesson: str
    next_step: str = ""
    evidence: tuple[str, ...] = ()
    rule: RuleInput | None = None
    cause: str = ""  # the mechanism that is thought to lie behind the outcome
    effect: float | None = None  # claimed change of NDCG@10 against the base


@dataclass(frozen=True)
class Finalize:
    """End the session."""

    summary: str
    rules: tuple[RuleInput, ...] = ()


Action = RunTrial | WaitTrial | Reflect | Finalize


@dataclass(frozen=True)
class Refusal:
    """A trial that the server did not run since the last trial that it ran, and why."""

    changes: KnobValues
    base: str
    reason: str


@dataclass(frozen=True)
class Brief:
    """What a session starts from: the answer of open_session, or the same from the views of one that is taken up."""

    session: str
    resumed: bool
    dataset: str
    backbone: str
    budget: Budget
    knobs: Sequence[Knob]
    prior: Sequence[PriorEntry] = ()
    profile: Mapping[str, Any] = field(default_factory=dict)  # train-only statistics; the views do not have them

    @classmethod
    def of(cls, opened: OpenedSession) -> "Brief":
        """The brief of a session that open_session has opened."""
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
        """The brief of a session that is taken up by its id."""
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
    """All that an agent knows: the brief, two views of read_memory, and what was refused since the last trial ran."""

    brief: Brief
    state: StateView
    trajectory: TrajectoryView
    refused: tuple[Refusal, ...] = ()


class Agent(ABC):
    """Whoever drives the tools."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @abstractmethod
    def act(self, situation: Situation) -> Action:
        """The next action. Deterministic given (seed, situation)."""

    def generator(self, situation: Situation) -> np.random.Generator:
        """The randomness of this step: the same again when the step is taken again."""
        return np.random.default_rng([self.seed, situation.state.budget.trials_used])
