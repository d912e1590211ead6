"""A whole session through openai-agents, with schemas converted to strict mode, driven by the scripted engineer.

    python openai_agents_session.py COMMAND…      (the command that starts the server over stdio)
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path
from typing import Any

from agents.mcp import MCPServerStdio
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from agents import Agent, Model, ModelResponse, Runner, Usage, set_tracing_disabled

sys.path.append(str(Path(__file__).parent))
from scripted import DONE, Engineer

MAX_TURNS = 200


class ScriptedModel(Model):
    """A model whose decisions are the scripted engineer's."""

    def __init__(self, engineer: Engineer) -> None:
        self.engineer = engineer
        self.strict: dict[str, bool] = {}

    async def get_response(self, *request: Any, **named: Any) -> ModelResponse:
        """One call of a tool, or the last message."""
        names = ("system_instructions", "input", "model_settings", "tools")
        given = {**dict(zip(names, request, strict=False)), **named}
        tools, history = given["tools"], given["input"]
        schemas = {tool.name: tool.params_json_schema for tool in tools}
        self.strict = {tool.name: tool.strict_json_schema for tool in tools}
        listed = json.dumps([[tool.name, tool.description, tool.params_json_schema] for tool in tools])
        answer = answer_in(history)
        self.engineer.read(listed, answer, len(json.dumps(history)))
        call = self.engineer.next_call(schemas, answer)
        output = message(DONE) if call is None else function_call(self.engineer.shown["requests"], *call)
        return ModelResponse(output=[output], usage=Usage(), response_id=None)

    def stream_response(self, *request: Any, **named: Any) -> AsyncIterator[Any]:
        """Not used: Runner.run asks for whole responses."""
        raise NotImplementedError("the test runs without streaming")


def answer_in(history: Any) -> str:
    """The text of the last tool's answer; empty before the first call."""
    last = history[-1] if isinstance(history, list) and history else {}
    output = last.get("output", "") if isinstance(last, dict) else ""
    if isinstance(output, str):
        return output
    return "\n".join(str(part.get("text", part)) for part in (output if isinstance(output, list) else [output]))


def function_call(number: int, tool: str, arguments: dict[str, Any]) -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(
        type="function_call", name=tool, arguments=json.dumps(arguments), call_id=f"call-{number}", id=f"item-{number}"
    )


def message(text: str) -> ResponseOutputMessage:
    part = ResponseOutputText(type="output_text", text=text, annotations=[])
    return ResponseOutputMessage(id="last", type="message", role="assistant", status="completed", content=[part])


async def main() -> None:
    set_tracing_disabled(True)
    engineer = Engineer()
    model = ScriptedModel(engineer)
    command, *arguments = sys.argv[1:]
    server = MCPServerStdio({"command": command, "args": arguments}, client_session_timeout_seconds=300)
    async with server:
        agent = Agent(
            name="engineer", model=model, mcp_servers=[server], mcp_config={"convert_schemas_to_strict": True}
        )
        result = await Runner.run(agent, "Tune sasrec on demo.", max_turns=MAX_TURNS)
    loose = sorted(name for name, strict in model.strict.items() if not strict)
    ended = {"name": "the run ended", "passed": result.final_output == DONE, "detail": str(result.final_output)}
    note = f"{len(model.strict)} tools, not made strict: {', '.join(loose) or 'none'}"
    print(engineer.report(metadata.version("openai-agents"), ended, note))


asyncio.run(main())
