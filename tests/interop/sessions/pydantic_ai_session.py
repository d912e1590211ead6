"""A whole session through pydantic-ai, with schemas as its OpenAI profile shapes them, driven by the scripted engineer.

    python pydantic_ai_session.py COMMAND…      (the command that starts the server over stdio)
"""

import asyncio
import json
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent, RunContext, ToolDefinition, UsageLimits
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelResponse,
    RetryPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)  # fmt: skip
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.profiles.openai import openai_model_profile

sys.path.append(str(Path(__file__).parent))
from scripted import DONE, Engineer

MAX_REQUESTS = 200


def answer_in(messages: list[ModelMessage]) -> str:
    """The text of the last tool's answer as a model reads it; empty before the first call."""
    parts = [part for part in messages[-1].parts if isinstance(part, ToolReturnPart | RetryPromptPart)]
    texts = [part.model_response_str() if isinstance(part, ToolReturnPart) else part.model_response() for part in parts]
    return "\n".join(texts)


async def strictly(_: RunContext[None], tools: list[ToolDefinition]) -> list[ToolDefinition]:
    """The tools in the strict form of the model's profile."""
    return [replace(tool, strict=True) for tool in tools]


async def main() -> None:
    engineer = Engineer()
    strict: dict[str, bool | None] = {}

    def decide(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        tools = info.model_request_parameters.function_tools  # as the profile shapes them for the model
        strict.update({tool.name: tool.strict for tool in tools})
        listed = json.dumps([[tool.name, tool.description, tool.parameters_json_schema] for tool in tools])
        answer = answer_in(messages)
        engineer.read(listed, answer, len(ModelMessagesTypeAdapter.dump_json(messages)))
        call = engineer.next_call({tool.name: tool.parameters_json_schema for tool in tools}, answer)
        return ModelResponse(parts=[TextPart(DONE) if call is None else ToolCallPart(*call)])

    command, *arguments = sys.argv[1:]
    # On a busy machine the server needs longer to start than the 5 s that the framework allows by default.
    toolset = MCPToolset(StdioTransport(command=command, args=arguments), init_timeout=120, read_timeout=300)
    agent = Agent(
        FunctionModel(decide, profile=openai_model_profile("gpt-5")), toolsets=[toolset.prepared(strictly)]
    )
    async with agent:
        result = await agent.run("Tune sasrec on demo.", usage_limits=UsageLimits(request_limit=MAX_REQUESTS))
    ended = {"name": "the run ended", "passed": result.output == DONE, "detail": str(result.output)}
    loose = sorted(name for name, is_strict in strict.items() if not is_strict)
    note = f"{len(strict)} tools, not made strict: {', '.join(loose) or 'none'}"
    print(engineer.report(metadata.version("pydantic-ai-slim"), ended, note))


asyncio.run(main())
