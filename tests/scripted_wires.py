"""The wire formats of `tests/scripted_endpoint.py`: how the providers spell replies, usage and errors.

Written from the providers' documents, independently of agents/llm, so that the tests compare two readings of them.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.scripted_endpoint import Answer, Failure


class Wire(ABC):
    """A wire format."""

    name = ""
    path = ""

    @abstractmethod
    def key_of(self, headers: Mapping[str, str]) -> str | None:
        """The API key of a request."""

    @abstractmethod
    def reply(self, model: str, number: int, answer: "Answer", tokens: Mapping[str, int]) -> dict[str, Any]:
        """The body of a reply."""

    @abstractmethod
    def error(self, failure: "Failure") -> dict[str, Any]:
        """The body of an error."""

    @abstractmethod
    def temperature_complaint(self, value: float) -> "Failure":
        """The error for a model that accepts no temperature."""

    @abstractmethod
    def cached_prefix(self, body: Mapping[str, Any]) -> str:
        """The text up to the last part that is marked to be cached."""


class OpenAI(Wire):
    """Chat completions (https://platform.openai.com/docs/api-reference/chat)."""

    name = "openai"
    path = "/chat/completions"
    STOPS = {"end": "stop", "tool_calls": "tool_calls", "length": "length", "refusal": "stop"}

    def key_of(self, headers: Mapping[str, str]) -> str | None:
        return headers.get("authorization", "").removeprefix("Bearer ") or None

    def reply(self, model: str, number: int, answer: "Answer", tokens: Mapping[str, int]) -> dict[str, Any]:
        refused = answer.stopped == "refusal"
        message: dict[str, Any] = {"role": "assistant", "content": None if refused else answer.text}
        if refused:
            message["refusal"] = answer.text
        if answer.calls:
            message["tool_calls"] = [
                {"id": f"call_{number}_{i}", "type": "function", "function": {"name": c.name, "arguments": c.raw}}
                for i, c in enumerate(answer.calls)
            ]
        reply: dict[str, Any] = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "model": f"{model}-2026-01-01",
            "choices": [{"index": 0, "message": message, "finish_reason": self.STOPS[answer.stopped]}],
        }
        if answer.report_usage:
            prompt = tokens["input"] + tokens["cached"]
            completion = tokens["output"] + tokens["reasoning"]
            reply["usage"] = {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "prompt_tokens_details": {"cached_tokens": tokens["cached"]},
                "completion_tokens_details": {"reasoning_tokens": tokens["reasoning"]},
            }
        return reply

    def error(self, failure: "Failure") -> dict[str, Any]:
        content = {"message": failure.message, "type": failure.type, "param": failure.param, "code": failure.code}
        return {"error": content}

    def temperature_complaint(self, value: float) -> "Failure":
        from tests.scripted_endpoint import Failure  # noqa: PLC0415 - the two modules need each other

        text = f"'temperature' does not support {value} with this model. Only the default (1) value is supported."
        code = "unsupported_value"
        return Failure(400, f"Unsupported value: {text}", "invalid_request_error", code, "temperature")

    def cached_prefix(self, body: Mapping[str, Any]) -> str:
        return ""


class Anthropic(Wire):
    """Messages (https://docs.anthropic.com/en/api/messages)."""

    name = "anthropic"
    path = "/v1/messages"
    STOPS = {"end": "end_turn", "tool_calls": "tool_use", "length": "max_tokens", "refusal": "refusal"}

    def key_of(self, headers: Mapping[str, str]) -> str | None:
        return headers.get("x-api-key")

    def reply(self, model: str, number: int, answer: "Answer", tokens: Mapping[str, int]) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": answer.text}] if answer.text else []
        for i, call in enumerate(answer.calls):
            given = {"id": f"toolu_{number}_{i}", "name": call.name, "input": _parsed(call.raw)}
            content.append({"type": "tool_use", **given})
        reply: dict[str, Any] = {
            "id": f"msg_{number}",
            "type": "message",
            "role": "assistant",
            "model": f"{model}-20260101",
            "content": content,
            "stop_reason": self.STOPS[answer.stopped],
        }
        if answer.report_usage:
            reply["usage"] = {
                "input_tokens": tokens["input"],
                "cache_read_input_tokens": tokens["cached"],
                "cache_creation_input_tokens": tokens["cache_write"],
                "output_tokens": tokens["output"] + tokens["reasoning"],
            }
        return reply

    def error(self, failure: "Failure") -> dict[str, Any]:
        kind = failure.type or "api_error"
        return {"type": "error", "error": {"type": kind, "message": failure.message}, "request_id": "req_1"}

    def temperature_complaint(self, value: float) -> "Failure":
        from tests.scripted_endpoint import Failure  # noqa: PLC0415

        return Failure(400, "`temperature` is deprecated for this model.", "invalid_request_error")

    def cached_prefix(self, body: Mapping[str, Any]) -> str:
        """Tools come first, then the system prompt, then the messages; the mark closes the prefix."""
        texts = [json.dumps(tool) for tool in body.get("tools", ())]
        marked = len(texts) if any("cache_control" in tool for tool in body.get("tools", ())) else 0
        system = body.get("system", [])
        for block in [{"text": system}] if isinstance(system, str) else system:
            texts.append(block["text"])
            marked = len(texts) if "cache_control" in block else marked
        for message in body["messages"]:
            for block in [message] if isinstance(message["content"], str) else message["content"]:
                texts.append(_text_of(block))
                marked = len(texts) if "cache_control" in block else marked
        return "\n".join(texts[:marked])


WIRES: dict[str, Wire] = {"openai": OpenAI(), "anthropic": Anthropic()}


def prompt_of(body: Mapping[str, Any]) -> str:
    """All text of a request that the model reads."""
    texts = [json.dumps(_without_marks(tool)) for tool in body.get("tools", ())]
    system = body.get("system", "")
    texts += [system] if isinstance(system, str) else [block["text"] for block in system]
    for message in body["messages"]:
        content = message.get("content") or ""
        texts += [content] if isinstance(content, str) else [_text_of(block) for block in content]
        texts += [call["function"]["name"] + call["function"]["arguments"] for call in message.get("tool_calls", ())]
    return "\n".join(texts)


def _text_of(block: Mapping[str, Any]) -> str:
    """The text of a content block: text, a tool call, or the result of one."""
    if "text" in block:
        return str(block["text"])
    if block.get("type") == "tool_use":
        return str(block["name"]) + json.dumps(block["input"])
    content = block.get("content", "")
    return content if isinstance(content, str) else "\n".join(_text_of(inner) for inner in content)


def _without_marks(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tool.items() if name != "cache_control"}


def _parsed(text: str) -> Any:
    """Anthropic sends arguments as JSON; what is no JSON (cut off, malformed) can only arrive as another type."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
