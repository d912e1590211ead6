"""What is said to a language model and what it answers, independent of any provider's wire format."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
StopReason = Literal["end", "tool_calls", "length", "refusal"]


@dataclass(frozen=True)
class ToolSpec:
    """A tool that the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asked for. `arguments` is None if `raw`, the text of the arguments, is no JSON object."""

    id: str
    name: str
    arguments: Mapping[str, Any] | None
    raw: str = ""


@dataclass(frozen=True)
class Message:
    """One message. `calls`: of the assistant; `call_id`: of a tool's result, the id of the call that it answers."""

    role: Role
    text: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""


@dataclass(frozen=True)
class Request:
    """One call of a language model. `temperature` None: the provider's default.

    `session` and `step` name the decision that the call is for: a reply that the ledger already holds for the same
    session, step and request is returned again without a call, so that a killed process pays no reply twice.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    max_output_tokens: int = 2000
    temperature: float | None = None
    session: str = ""
    step: str = ""


@dataclass(frozen=True)
class Usage:
    """Tokens of one call by kind, which do not overlap: `input` excludes cached and cache-write tokens, `output`
    excludes reasoning tokens. `estimated`: the provider reported none, and these are counted from the text."""

    input: int = 0
    cached: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    estimated: bool = False


@dataclass(frozen=True)
class Reply:
    """The answer of a language model; `model` is the name that the provider reported."""

    text: str
    calls: tuple[ToolCall, ...]
    usage: Usage
    stop: StopReason
    model: str


class LanguageModel(ABC):
    """A language model behind any wire format."""

    @abstractmethod
    async def complete(self, request: Request) -> Reply:
        """The model's answer; raises LanguageModelError if there is none, however often it is asked."""

    def recall(self, session: str, step: str) -> Reply | None:
        """The reply that was paid for this step of a session, also by an earlier process; None if there is none."""
        return None
