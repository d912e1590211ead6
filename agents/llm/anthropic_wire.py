"""Anthropic messages, https://docs.anthropic.com/en/api/messages. Not covered: streaming, images."""

from typing import Any

from .messages import Message, Reply, Request, StopReason, ToolCall, Usage
from .quirks import NO_TEMPERATURE
from .wire import Call, Json, UnreadableReply, Wire, count, is_count, make_call, parse_arguments

VERSION = "2023-06-01"
_STOPS: dict[str, StopReason] = {
    "end_turn": "end", "stop_sequence": "end", "pause_turn": "end", "tool_use": "tool_calls",
    "max_tokens": "length", "model_context_window_exceeded": "length", "refusal": "refusal",
}  # fmt: skip
_CACHED = {"cache_control": {"type": "ephemeral"}}


class AnthropicWire(Wire):
    """Messages. The stable prefix, tools and system prompt, is marked to be cached."""

    def url(self, address: str) -> str:
        return f"{address}/messages" if address.endswith("/v1") else f"{address}/v1/messages"

    def headers(self, key: str | None) -> dict[str, str]:
        return {"anthropic-version": VERSION, **({"x-api-key": key} if key else {})}

    def body(self, call: Call) -> dict[str, Any]:
        request = call.request
        system = "\n\n".join(message.text for message in request.messages if message.role == "system")
        body: dict[str, Any] = {
            "model": call.model,
            "max_tokens": request.max_output_tokens,
            "messages": _turns([message for message in request.messages if message.role != "system"]),
        }
        if system:
            body["system"] = [{"type": "text", "text": system, **_CACHED}]
        if request.tools:
            body["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": dict(tool.parameters)}
                for tool in request.tools
            ]
            if not system:  # one mark is enough: the tools come before the system prompt
                body["tools"][-1].update(_CACHED)
        if request.temperature is not None and NO_TEMPERATURE not in call.quirks:
            body["temperature"] = request.temperature
        return body

    def reply(self, body: Json, request: Request) -> Reply:
        content = body.get("content")
        if not isinstance(content, list):
            raise UnreadableReply("the reply has no content")
        blocks = [block for block in content if isinstance(block, dict)]
        text = "".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")
        calls = _calls([block for block in blocks if block.get("type") == "tool_use"], request)
        stop = _STOPS.get(str(body.get("stop_reason")), "end")
        return Reply(text, calls, _usage(body.get("usage")), stop, str(body.get("model") or ""))


def _turns(messages: list[Message]) -> list[dict[str, Any]]:
    """The messages as turns of user and assistant; results of tools are the user's, and equal roles are joined."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": message.call_id, "content": message.text}]
    texts = [{"type": "text", "text": message.text}] if message.text else []  # Anthropic refuses empty texts
    # A call with malformed arguments cannot be repeated as it was; the result that follows says what was wrong.
    return texts + [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": dict(parse_arguments(call.raw) or {})}
        for call in message.calls
    ]


def _calls(blocks: list[dict[str, Any]], request: Request) -> tuple[ToolCall, ...]:
    offered = {tool.name for tool in request.tools}
    return tuple(
        make_call(number, block.get("id"), block.get("name"), block.get("input"), offered)
        for number, block in enumerate(blocks)
    )


def _usage(usage: Any) -> Usage:
    """Anthropic's kinds of input do not overlap. Its output includes the thinking; only newer replies tell it apart."""
    if not isinstance(usage, dict) or not is_count(usage.get("output_tokens")):
        return Usage(estimated=True)
    if not any(count(usage.get(f"{kind}input_tokens")) for kind in ("", "cache_read_", "cache_creation_")):
        return Usage(estimated=True)
    details = usage.get("output_tokens_details")
    output = count(usage.get("output_tokens"))
    reasoning = min(count(details.get("thinking_tokens")) if isinstance(details, dict) else 0, output)
    return Usage(
        input=count(usage.get("input_tokens")),
        cached=count(usage.get("cache_read_input_tokens")),
        cache_write=count(usage.get("cache_creation_input_tokens")),
        output=output - reasoning,
        reasoning=reasoning,
    )
