"""A wire format: how a request is written for a provider, and how its reply is read."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .messages import Message, Reply, Request, ToolCall

Json = Mapping[str, Any]

MAX_DEPTH = 32
"""Nesting of arguments, far below what JSON and pydantic can store and read back."""
MAX_COUNT = 10**12
"""A larger token count is a fault of the server, and the sums of the ledger would overflow."""


class UnreadableReply(ValueError):
    """A reply with status 200 that is not in the wire format."""


@dataclass(frozen=True)
class Call:
    """A request to a model, the quirks of the model, and whether the tools go natively."""

    model: str
    request: Request
    quirks: frozenset[str]


class Wire(ABC):
    """One provider's format."""

    @abstractmethod
    def url(self, address: str) -> str:
        """The address to post to."""

    @abstractmethod
    def headers(self, key: str | None) -> dict[str, str]:
        """The headers of a request."""

    @abstractmethod
    def body(self, call: Call) -> dict[str, Any]:
        """The JSON body of a request."""

    @abstractmethod
    def reply(self, body: Json, request: Request) -> Reply:
        """The reply in a body; the usage is that of the provider, or zero and marked as estimated if it sent none.

        Raises UnreadableReply.
        """


def parse_arguments(raw: Any) -> Mapping[str, Any] | None:
    """The arguments of a call: a JSON object, or the text of one; None for anything else. No text is no arguments.

    None also for what could not be stored and read back unchanged: deep nesting, NaN, infinities, lone surrogates.
    """
    if isinstance(raw, str):
        if not raw.strip():
            return {}
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError):  # recursion: nested thousands deep
            return None
    return raw if isinstance(raw, dict) and _is_storable(raw, MAX_DEPTH) else None


def valid_unicode(text: str) -> str:
    """`text` with every lone surrogate, which UTF-8 cannot encode, as a question mark."""
    return text.encode("utf-8", "replace").decode()


def make_call(number: int, identity: Any, name: Any, raw: Any, offered: Collection[str]) -> ToolCall:
    """A call as the model wrote it. Its arguments are None if they are no object, or if no such tool was offered."""
    known = isinstance(name, str) and name in offered
    arguments = parse_arguments(raw) if known else None
    own = identity if isinstance(identity, str) and identity else f"call_{number}"
    return ToolCall(id=own, name=name if isinstance(name, str) else "", arguments=arguments, raw=_as_text(raw))


def without_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages for a model that knows no system role: its text goes before the first other message."""
    system = "\n\n".join(message.text for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    if not system:
        return tuple(rest)
    if rest and rest[0].role == "user":
        return (Message("user", f"{system}\n\n{rest[0].text}"), *rest[1:])
    return (Message("user", system), *rest)


def count(value: Any) -> int:
    """A token count of a provider; 0 if it is missing or no count."""
    return value if is_count(value) else 0


def is_count(value: Any) -> bool:
    """Whether a provider's figure can be a token count."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _is_storable(value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(_is_storable(part, depth - 1) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return depth > 0 and all(_is_storable(part, depth - 1) for part in value)
    if isinstance(value, str):
        return valid_unicode(value) == value
    return not isinstance(value, float) or math.isfinite(value)


def _as_text(raw: Any) -> str:
    try:
        return raw if isinstance(raw, str) else json.dumps(raw)
    except RecursionError:
        return "(nested too deeply)"
