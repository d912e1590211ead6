"""What an agent is: a function from the situation to the next action, and nothing else.

An agent keeps no state between calls: everything it may know is in the `Situation`, and its randomness is drawn from
a generator seeded by (seed, number of trials). A session that is resumed in another process goes on identically.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

Knobs = dict[str, Any]
"""Knob name → value: a partial configuration."""


@dataclass(frozen=True)
class RunTrial:
    """Run `changes` over `base` ('incumbent', 'default' or a trial handle)."""

    changes: Knobs
    base: str = "incumbent"
    hypothesis: Mapping[str, Any] | None = None  # dimension, direction, size, reason: as tools.run_trial takes them
    override: str = ""  # why a discard heuristic does not hold here; empty = it is respected


@dataclass(frozen=True)
class WaitTrial:
    """Wait for the trial that is running."""

    trial: str


@dataclass(frozen=True)
class Reflect:
    """Write the reflection that a finished trial still needs."""

    trial: str
    helped: Literal["yes", "no", "unclear"]
    dimension: str
    lesson: str
    next_step: str = ""
    evidence: tuple[str, ...] = ()
    rule: Mapping[str, Any] | None = None  # kind, statement, condition, evidence
    cause: str = ""  # the mechanism that is thought to lie behind the outcome
    effect: float | None = None  # claimed change of NDCG@10 against the base


@dataclass(frozen=True)
class Finalize:
    """End the session."""

    summary: str
    rules: tuple[Mapping[str, Any], ...] = ()


Action = RunTrial | WaitTrial | Reflect | Finalize


@dataclass(frozen=True)
class Refusal:
    """A trial that the server did not run since the last trial that it ran, and why."""

    changes: Knobs
    base: str
    reason: str


@dataclass(frozen=True)
class Situation:
    """All that an agent knows: dicts exactly as the tools return them."""

    brief: Mapping[str, Any]  # open_session
    state: Mapping[str, Any]  # read_memory(view="state").content
    trajectory: Mapping[str, Any]  # read_memory(view="trajectory").content
    refused: tuple[Refusal, ...] = ()

    def without_memory(self) -> "Situation":
        """The same situation for a session without memory: only the last trial is remembered, and no prior."""
        last = {name: list(rows)[-1:] for name, rows in self.trajectory.items() if name in ("trials", "reflections")}
        blank: dict[str, Any] = {
            "effects": {}, "history_effects": {}, "best": [], "untried": {}, "coverage": {}, "proposals": [],
        }  # fmt: skip
        return replace(
            self,
            brief={**self.brief, "prior": []},
            state={**self.state, **blank},
            trajectory={**self.trajectory, **last},
        )


class Agent(ABC):
    """Whoever drives the tools."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @abstractmethod
    def act(self, situation: Situation) -> Action:
        """The next action. Deterministic given (seed, situation)."""

    def generator(self, situation: Situation) -> np.random.Generator:
        """The randomness of this step: the same again when the step is taken again."""
        return np.random.default_rng([self.seed, situation.state["budget"]["trials_used"]])
