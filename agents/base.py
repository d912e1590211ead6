"""The agent interface: a function from the current situation to the next actions.

An agent keeps no state that a session needs: all its information is in the `Situation`, and its random numbers come
from a generator seeded by (seed, number of trials). A session that is resumed in another process therefore continues
identically.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from pydantic import TypeAdapter

from ..memory.records import Hypothesis
from ..sandbox.action_space import Knob
from ..sandbox.reflection import Helped
from ..tools.results import Budget, OpenedSession, TrialObservation
from ..tools.views import KnobRow, KnobValues, PriorEntry, StateView, TrajectoryView
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
class Sweep:
    """Score several settings of scoring knobs over one trained base, as one trial."""

    settings: tuple[KnobValues, ...]
    base: str = "incumbent"
    hypothesis: Hypothesis | None = None

    @property
    def changes(self) -> KnobValues:
        """The swept knobs, each with all its values, for displays."""
        knobs = dict.fromkeys(knob for setting in self.settings for knob in setting)
        return {knob: [setting[knob] for setting in self.settings if knob in setting] for knob in knobs}


@dataclass(frozen=True)
class ReadMemory:
    """Read a view of the memory; its content is among the outcomes of the next situation."""

    view: str
    query: str = ""
    trial: str = ""


@dataclass(frozen=True)
class WaitTrial:
    """Wait for the running trial; of several, for the first one to end."""

    trial: str | tuple[str, ...]

    @property
    def trials(self) -> tuple[str, ...]:
        """The trials that are waited for."""
        return (self.trial,) if isinstance(self.trial, str) else self.trial


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
    """End the session. `note`: what a person should know about the summary."""

    summary: str
    rules: tuple[RuleInput, ...] = ()
    note: str = ""


Action = RunTrial | Sweep | ReadMemory | WaitTrial | Reflect | Finalize


@dataclass(frozen=True)
class Refusal:
    """A trial that the server refused, and the reason; forgotten when the server runs the next trial."""

    changes: KnobValues
    base: str
    reason: str
    swept: bool = False  # a sweep was refused; `changes` has the list of values of each knob


SKIPPED = "not executed, because the call before it was refused"
"""The text of the outcome of an action that was not executed."""


@dataclass(frozen=True)
class Outcome:
    """What came of an action: the text that a language model reads, and whether the server refused the action."""

    action: Action
    text: str
    refused: bool = False


@dataclass(frozen=True)
class Brief:
    """The brief of a session, from open_session or, if the session is resumed by its id, from read_memory."""

    session: str
    resumed: bool
    dataset: str
    backbone: str
    budget: Budget
    knobs: Sequence[Knob]
    prior: Sequence[PriorEntry] = ()
    profile: Mapping[str, Any] = field(default_factory=dict)  # train-only statistics
    rules: Sequence[str] = ()
    tools: frozenset[str] = frozenset()  # the names of the server's tools
    max_sweep: int = 0  # settings of one sweep; 0 = the server has no such tool
    parallel: int = 1  # trials that may run at a time

    @classmethod
    def of(cls, opened: OpenedSession, tools: frozenset[str] = frozenset()) -> "Brief":
        """The brief as the server gave it."""
        return cls(
            session=opened.session,
            resumed=opened.resumed,
            dataset=opened.dataset,
            backbone=opened.backbone,
            budget=opened.budget,
            knobs=[row.to_knob(opened.backbone) for row in _KNOBS.validate_python(opened.action_space)],
            prior=_PRIOR.validate_python(opened.prior),
            profile=opened.profile,
            rules=opened.rules,
            tools=tools,
            max_sweep=opened.max_sweep if "sweep" in tools else 0,
            parallel=opened.parallel,
        )


@dataclass(frozen=True)
class Situation:
    """All that an agent knows: the brief, two views of read_memory, and what this process has seen.

    refused: the trials refused since a trial last ran. last: the observation of the last trial that has ended, if the
    session has one. outcomes: what came of all actions of this process, oldest first.
    """

    brief: Brief
    state: StateView
    trajectory: TrajectoryView
    refused: tuple[Refusal, ...] = ()
    last: TrialObservation | None = None
    outcomes: tuple[Outcome, ...] = ()

    @property
    def running(self) -> tuple[str, ...]:
        """The running trials, in the order of their start."""
        first = (self.state.running,) if self.state.running else ()
        return tuple(self.state.running_trials) or first

    @property
    def has_free_place(self) -> bool:
        """Whether a further trial may start now."""
        return not self.running or self.state.free_places > 0


class Agent:
    """Base class of the agents: it chooses actions, and the loop executes them.

    It is asked again after every action, also while trials run: an agent that leaves free places unused waits. A
    planner implements `act`. An agent that waits for something else, such as a language model, overrides `decide`.
    """

    reflects: ClassVar[bool] = True
    """Whether the agent reflects; the sessions of an agent that does not are opened without required reflections."""
    corrects: bool = False
    """Whether the agent reads the refusals of calls other than trials and corrects them; for others they are errors."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def act(self, situation: Situation) -> Action:
        """The next action; deterministic given (seed, situation)."""
        raise TypeError(f"{type(self).__name__} has no act(): await decide()")

    async def decide(self, situation: Situation) -> Sequence[Action]:
        """The next actions, at least one; the loop executes them in order and then asks again."""
        return (self.act(situation),)

    def generator(self, situation: Situation) -> np.random.Generator:
        """The random generator of this step; repeating the step gives the same random numbers."""
        return np.random.default_rng([self.seed, situation.state.budget.trials_used])
