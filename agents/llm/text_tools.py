"""Tool calls as JSON in the text, for models and servers without native tool calls.

The tools are described in the system prompt; the model answers with a JSON object, fenced or bare, that names a tool
and its arguments. Forms that models are known to write are read as well: a list of calls, `name` for `tool`,
`parameters` for `arguments`, the form of OpenAI, and <tool_call> tags.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from .messages import Message, Reply, Request, ToolCall
from .wire import make_call

_FENCED = re.compile(r"```[\w-]*[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)  # a truncated reply leaves the fence open
_NAMES, _ARGUMENTS = ("tool", "name", "tool_name"), ("arguments", "parameters", "args", "input")
_NAMED = re.compile(r'\s*"(?:tool|name|tool_name)"\s*:\s*"([^"]+)"')
_DECODER = json.JSONDecoder()


def in_text(request: Request) -> Request:
    """The request without native tools: the tools are described in the prompt, earlier calls and results are text."""
    if not request.tools:
        return request
    names = {call.id: call.name for message in request.messages for call in message.calls}
    messages = [_as_text(message, names) for message in request.messages]
    described = Message("system", _description(request))
    first = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    return replace(request, messages=(*messages[:first], described, *messages[first:]), tools=())


def read_calls(reply: Reply, request: Request) -> Reply:
    """The reply with the calls that its text makes to the tools of `request`, the original one."""
    if not request.tools:
        return reply
    calls = tuple(calls_in(reply.text, {tool.name for tool in request.tools}))
    stop = "tool_calls" if calls and reply.stop == "end" else reply.stop
    return replace(reply, calls=calls, stop=stop)


def calls_in(text: str, offered: set[str]) -> list[ToolCall]:
    """The calls in a text, in order. An attempt that is no JSON object, or names no tool offered, has arguments None.

    Fenced blocks are read first. The text as a whole is read if they contain no call, or a malformed one, because a
    fence within a JSON string ends the block too early.
    """
    fenced = _calls("\n".join(found[1] for found in _FENCED.finditer(text)), offered)
    if fenced and all(call.arguments is not None for call in fenced):
        return fenced
    whole = _calls(text, offered)
    return whole if not fenced or (whole and all(call.arguments is not None for call in whole)) else fenced


def _calls(text: str, offered: set[str]) -> list[ToolCall]:
    return [make_call(n, f"text_{n}", name, raw, offered) for n, (name, raw) in enumerate(_attempts(text))]


def _attempts(text: str) -> Iterator[tuple[str, Any]]:
    """(name, arguments) of each attempt to call a tool; arguments are a text if they could not be parsed."""
    position = text.find("{")
    while position >= 0:
        try:
            value, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            if named := _NAMED.match(text, position + 1):
                yield named[1], text[position:]  # begins like a call, but is no JSON: malformed or cut off
                return
            end = position + 1
        else:
            if call := _as_call(value):
                yield call
        position = text.find("{", end)


def _as_call(value: Any) -> tuple[str, Any] | None:
    """(name, arguments) if an object has the form of a call."""
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        return _as_call(value["function"])
    name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), None)
    if name is None:
        return None
    given = [value[key] for key in _ARGUMENTS if key in value]
    if not given and "tool" not in value:
        return None  # an object with a name, but no call
    return name, given[0] if given else {}


def _as_text(message: Message, names: Mapping[str, str]) -> Message:
    if message.role == "tool":
        return Message("user", f"Result of {names.get(message.call_id, 'the call')}:\n{message.text}")
    written = [f"```json\n{_written(call)}\n```" for call in message.calls]
    return Message(message.role, "\n".join([*([message.text] if message.text else []), *written]))


def _written(call: ToolCall) -> str:
    if call.arguments is None:
        return call.raw
    return json.dumps({"tool": call.name, "arguments": dict(call.arguments)})


def _description(request: Request) -> str:
    tools = "\n\n".join(
        f"## {tool.name}\n{tool.description}\nArguments (JSON schema): {json.dumps(dict(tool.parameters))}"
        for tool in request.tools
    )
    return (
        "# Tools\nCall a tool by answering with one JSON object in a fenced block, and nothing after it:\n"
        '```json\n{"tool": "NAME", "arguments": {"ARGUMENT": "VALUE"}}\n```\n'
        f"The result comes in the next message. These are the tools:\n\n{tools}"
    )
