"""OpenAI-compatible chat completions: OpenAI, vLLM, llama.cpp, Ollama, LM Studio, DeepSeek, Kimi, Mistral, OpenRouter.

https://platform.openai.com/docs/api-reference/chat. Not covered: streaming, the responses API.
"""

import re
from typing import Any

from .messages import Message, Reply, Request, StopReason, ToolCall, ToolSpec, Usage
from .quirks import MAX_COMPLETION_TOKENS, NO_SYSTEM, NO_TEMPERATURE
from .wire import Call, Json, UnreadableReply, Wire, count, is_count, make_call, without_system

_STOPS: dict[str, StopReason] = {
    "stop": "end", "tool_calls": "tool_calls", "function_call": "tool_calls",
    "length": "length", "content_filter": "refusal",
}  # fmt: skip
_THINKING = re.compile(r"^\s*<think>.*?</think>\s*", re.DOTALL)  # hidden reasoning, which some local servers leave in


class OpenAIWire(Wire):
    """Chat completions."""

    def url(self, address: str) -> str:
        return f"{address}/chat/completions"

    def headers(self, key: str | None) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"} if key else {}

    def body(self, call: Call) -> dict[str, Any]:
        request, quirks = call.request, call.quirks
        messages = without_system(request.messages) if NO_SYSTEM in quirks else request.messages
        limit = "max_completion_tokens" if MAX_COMPLETION_TOKENS in quirks else "max_tokens"
        body: dict[str, Any] = {
            "model": call.model,
            "messages": [_message(message) for message in messages],
            limit: request.max_output_tokens,
        }
        if request.temperature is not None and NO_TEMPERATURE not in quirks:
            body["temperature"] = request.temperature
        if request.tools:
            body["tools"] = [{"type": "function", "function": _tool(tool)} for tool in request.tools]
        return body

    def reply(self, body: Json, request: Request) -> Reply:
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise UnreadableReply("the reply has no choices[0].message")
        calls = _calls(message.get("tool_calls"), request)
        refusal = message.get("refusal")
        text = refusal if isinstance(refusal, str) and refusal else _text(message.get("content"))
        stop = "refusal" if refusal else _STOPS.get(str(choice.get("finish_reason")), "end")
        if calls and stop == "end":
            stop = "tool_calls"
        return Reply(_THINKING.sub("", text), calls, _usage(body.get("usage")), stop, str(body.get("model") or ""))


def _message(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.call_id, "content": message.text}
    written: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.calls:
        written["content"] = message.text or None
        written["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.raw or "{}"}}
            for call in message.calls
        ]
    return written


def _tool(tool: ToolSpec) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}


def _calls(written: Any, request: Request) -> tuple[ToolCall, ...]:
    offered = {tool.name for tool in request.tools}
    functions = [
        (item.get("id"), item["function"])
        for item in (written if isinstance(written, list) else ())
        if isinstance(item, dict) and isinstance(item.get("function"), dict)
    ]
    return tuple(
        make_call(number, identity, function.get("name"), function.get("arguments"), offered)
        for number, (identity, function) in enumerate(functions)
    )


def _text(content: Any) -> str:
    """The text of a message; Mistral's reasoning models send a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part["text"]) for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _usage(usage: Any) -> Usage:
    """Tokens without overlap: OpenAI's prompt includes what was read from the cache and written to it, and its
    completion includes the reasoning. DeepSeek names the cached part prompt_cache_hit_tokens, Kimi cached_tokens."""
    if not isinstance(usage, dict) or not count(usage.get("prompt_tokens")):
        return Usage(estimated=True)
    if not is_count(usage.get("completion_tokens")):
        return Usage(estimated=True)
    prompt, completion = count(usage.get("prompt_tokens")), count(usage.get("completion_tokens"))
    inside, outside = _details(usage, "prompt"), _details(usage, "completion")
    cached = count(inside.get("cached_tokens"))
    cached = cached or count(usage.get("prompt_cache_hit_tokens")) or count(usage.get("cached_tokens"))
    cached = min(cached, prompt)
    cache_write = min(count(inside.get("cache_write_tokens")), prompt - cached)
    reasoning = min(count(outside.get("reasoning_tokens")), completion)
    return Usage(prompt - cached - cache_write, cached, cache_write, completion - reasoning, reasoning)


def _details(usage: dict[str, Any], kind: str) -> dict[str, Any]:
    details = usage.get(f"{kind}_tokens_details")
    return details if isinstance(details, dict) else {}
