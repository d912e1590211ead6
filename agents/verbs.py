"""The tool calls of a language model: what it may call, and the actions that a call stands for.

The names are those of the server's tools. The session, and the trial that a reflection is about, are filled in, so that
a model can neither forget nor confuse them. A call that cannot be read gives a CallError whose text goes back to the
model.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..memory.records import Hypothesis
from ..models.knobs.declaration import Dimension
from ..sandbox.reflection import Helped
from ..tools.write_reflection import RuleInput
from .base import Action, Finalize, ReadMemory, Reflect, RunTrial, Situation, Sweep, WaitTrial
from .llm.messages import ToolCall, ToolSpec
from .schemas import compact_schema

MAX_CALLS = 4
"""Calls of one reply that are executed; a reply with more is a mistake of the model."""
_RAW_LENGTH = 200
_RULE = "{kind: prefer|avoid|insight, statement, condition: e.g. lr >= 0.001, evidence: trials}"
_OPAQUE = {
    "reflection": "as write_reflection, if you send one call only",
    "hypothesis": "{dimension, direction: better|worse|same, size, reason}",
    "rule": _RULE,
    "rules": _RULE,
}
"""Objects that a short text describes as well as a schema of their own, which every prompt would carry."""


class CallError(ValueError):
    """A call that stands for no action; the text tells the model what to correct."""


class Arguments(BaseModel):
    """Arguments of a call, read leniently: nulls are absent, objects may be encoded as JSON strings."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _lenient(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        known = {name: _decoded(value) for name, value in given.items() if value is not None}
        return {name: value for name, value in known.items() if name != "session" or name in cls.model_fields}


class ReflectionArguments(Arguments):
    """The arguments of write_reflection without session and trial."""

    helped: Helped = Field(description="did it improve on its base?")
    dimension: Dimension = Field(description="what explains the result")
    lesson: str = Field(min_length=1)
    cause: str = Field(default="", description="the mechanism")
    effect: float | None = Field(default=None, description="claimed change of NDCG@10")
    evidence: list[str] = Field(default=[], description="trials")
    next_step: str = ""
    rule: RuleInput | None = None

    def reflect(self, trial: str) -> Reflect:
        """The action."""
        return Reflect(trial=trial, **{**dict(self), "evidence": tuple(self.evidence)})


class Reflecting(Arguments):
    """Arguments of a call that may bring the pending reflection with it."""

    reflection: ReflectionArguments | None = None

    def with_reflection(self, situation: Situation, action: Action) -> list[Action]:
        """The pending reflection, if the call brings one, and then the action."""
        pending = situation.state.pending_reflection
        return [*([self.reflection.reflect(pending)] if self.reflection and pending else []), action]


class RunTrialArguments(Reflecting):
    """The arguments of run_trial."""

    changes: dict[str, Any] = Field(description="knobs to change in the base, e.g. {lr: 0.001}")
    base: str = Field(default="incumbent", description="incumbent (if left out), default or a trial")
    hypothesis: Hypothesis | None = None
    override_reason: str = Field(default="", description="why a refusing heuristic does not apply")


class SweepArguments(Reflecting):
    """The arguments of sweep."""

    settings: list[dict[str, Any]] = Field(description="of scoring knobs only", min_length=1)
    base: str = "incumbent"
    hypothesis: Hypothesis | None = None


class WaitArguments(Arguments):
    """The arguments of wait_trial."""

    trial: str | list[str] | None = Field(default=None, description="if left out: the first of all that run")


class ReadMemoryArguments(Arguments):
    """The arguments of read_memory."""

    view: Literal["trajectory", "trial", "long_term", "protocol"] = Field(description="long_term: search with query")
    query: str = ""
    trial: str = ""


class FinalizeArguments(Reflecting):
    """The arguments of finalize."""

    cognition_summary: str = Field(min_length=1)
    rules: list[RuleInput] = []


def _reflection(arguments: Any, situation: Situation) -> list[Action]:
    pending = situation.state.pending_reflection
    return [arguments.reflect(pending)] if pending else []  # it is written already, perhaps before a kill


def _run(arguments: Any, situation: Situation) -> list[Action]:
    run = RunTrial(arguments.changes, arguments.base, arguments.hypothesis, arguments.override_reason)
    return arguments.with_reflection(situation, run)  # type: ignore[no-any-return]


def _sweep(arguments: Any, situation: Situation) -> list[Action]:
    sweep = Sweep(tuple(arguments.settings), arguments.base, arguments.hypothesis)
    return arguments.with_reflection(situation, sweep)  # type: ignore[no-any-return]


def _wait(arguments: Any, situation: Situation) -> list[Action]:
    named = [arguments.trial] if isinstance(arguments.trial, str) else arguments.trial or situation.running
    known = [row.trial for row in situation.trajectory.trials]
    unknown = [handle for handle in named if handle not in known]
    if unknown or not named:
        running = ", ".join(situation.running) or "none"
        raise CallError(f"wait_trial: no trial {', '.join(unknown) or 'is running'}; those that run: {running}")
    return [WaitTrial(named[0] if len(named) == 1 else tuple(named))]


def _read(arguments: Any, _: Situation) -> list[Action]:
    return [ReadMemory(arguments.view, arguments.query, arguments.trial)]


def _finalize(arguments: Any, situation: Situation) -> list[Action]:
    finalize = Finalize(arguments.cognition_summary, tuple(arguments.rules))
    return arguments.with_reflection(situation, finalize)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Verb:
    """A tool as a model sees it: its description, its arguments, and the actions that a call stands for."""

    description: str
    arguments: type[Arguments]
    actions: Callable[[Any, Situation], list[Action]]


VERBS = {
    "write_reflection": Verb("Say what the last trial taught.", ReflectionArguments,
                             _reflection),
    "run_trial": Verb("Train and judge one configuration.", RunTrialArguments, _run),
    "sweep": Verb("Score many settings of scoring knobs over one trained model, as one trial.", SweepArguments, _sweep),
    "wait_trial": Verb("Wait for a running trial, or for the first one of several to end.", WaitArguments, _wait),
    "read_memory": Verb("Read more than the state shows; costs no budget.", ReadMemoryArguments, _read),
    "finalize": Verb("End the session and use its only look at the test set.", FinalizeArguments, _finalize),
}  # fmt: skip


def tool_specs(names: Sequence[str]) -> tuple[ToolSpec, ...]:
    """The specifications of tools by their names, each schema without what a model does not need."""
    return tuple(
        ToolSpec(name, VERBS[name].description, compact_schema(VERBS[name].arguments, _OPAQUE)) for name in names
    )


def actions_of(calls: Sequence[ToolCall], situation: Situation, allowed: Sequence[str]) -> list[Action]:
    """The actions of a reply's calls, in order. Raises CallError for a call that cannot be read or is not allowed."""
    if len(calls) > MAX_CALLS:
        raise CallError(f"{len(calls)} calls in one reply; send at most {MAX_CALLS}, they are executed in order")
    return [action for call in calls for action in _actions(call, situation, allowed)]


def _actions(call: ToolCall, situation: Situation, allowed: Sequence[str]) -> list[Action]:
    if call.name not in (*allowed, "write_reflection"):  # a reflection that is not due is no mistake
        raise CallError(f"there is no tool {call.name!r:.40} now; call one of {', '.join(allowed)}")
    if call.arguments is None:
        raise CallError(f"the arguments of {call.name} are no JSON object: {call.raw[:_RAW_LENGTH]!r}")
    verb = VERBS[call.name]
    try:
        return verb.actions(verb.arguments.model_validate(call.arguments), situation)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise CallError(f"{call.name}: {problems}") from None


def _decoded(value: Any) -> Any:
    """A JSON object or list that the model has sent as a string; any other value as it is."""
    if not isinstance(value, str) or value[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):  # malformed, a number of thousands of digits, or nested thousands deep
        return value
