"""What agent frameworks make of the tools' schemas: each converter in its strict form, and a trial by its own call.

Runs in an environment with the frameworks (requirements.txt), which need an older MCP SDK than the server does. Each
framework starts the real server over stdio, lists the tools, and converts them for a model. Nothing may be lost: every
property at every level with its description and its choices. Then the framework opens a session and runs a trial with
`changes_list`, which the server's memory must have recorded. Prints a table; the exit status is 1 if a row fails.

usage: python converters.py [--server PYTHON] [--only NAME]
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECONDS = 300  # for one call, and for starting the server on a busy machine
PAGE = """\
# Quick

| rule | value |
|---|---|
| `metric` | ndcg@10 |
| `max_trials` | 4 |
| `max_train_seconds` | 600 |
| `trial_seconds` | 300 |
| `patience` | 10 |
| `keep_z` | 1.0 |
| `require_reflection` | true |

## optimisation

| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| `lr` | 1e-4 … 1e-2, log | 0.001 | 0.001 |
| `epochs` | 1 … 2 | 1 | 1 |

## capacity

| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| `hidden_dim` | 8 … 32 | 16 | 16 |
"""
OPEN = {"dataset": "demo", "backbone": "SASRec", "new": False}
CHANGES = {"lr": 0.002, "hidden_dim": 24, "epochs": 2}
HYPOTHESIS = {"dimension": "capacity", "direction": "better", "size": 0.01, "reason": "wider"}


def trial_of(session: str) -> dict[str, Any]:
    """The arguments of a trial as a strict model gives them: every argument, most of them empty."""
    return {
        "session": session, "changes": {}, "hypothesis": HYPOTHESIS, "base": "", "override_reason": "",
        "wait_seconds": SECONDS, "changes_list": [{"knob": k, "value": str(v)} for k, v in CHANGES.items()],
    }  # fmt: skip


Call = Callable[[str, dict[str, Any]], Awaitable[Any]]


@dataclass
class Shown:
    """The tools as a framework shows them to a model, and its own way to call one."""

    tools: dict[str, tuple[str, dict[str, Any]]]  # description and schema by name
    call: Call
    strict: set[str] = field(default_factory=set)  # tools that the framework declares as strict to the API
    note: str = ""


@dataclass(frozen=True)
class Server:
    """How to start the server under test."""

    python: str
    home: Path

    @property
    def args(self) -> list[str]:
        return ["-P", "-m", "virtualmle", "serve", "--home", str(self.home), "--threads", "1"]

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "VIRTUALMLE_WAIT_SECONDS": str(SECONDS), "OMP_NUM_THREADS": "1"}


@asynccontextmanager
async def client_session(server: Server) -> AsyncIterator[Any]:
    """A session of the SDK that the frameworks use."""
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    parameters = StdioServerParameters(command=server.python, args=server.args, env=server.env)
    async with stdio_client(parameters) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        yield session


@asynccontextmanager
async def openai_agents(server: Server) -> AsyncIterator[Shown]:
    from agents.mcp import MCPServerStdio, MCPUtil
    from agents.run_context import RunContextWrapper
    from agents.tool_context import ToolContext

    from agents import Agent

    parameters = {"command": server.python, "args": server.args, "env": server.env}
    async with MCPServerStdio(params=parameters, client_session_timeout_seconds=SECONDS) as connected:
        found = await MCPUtil.get_function_tools(connected, True, RunContextWrapper(None), Agent("tester"))
        tools = {tool.name: tool for tool in found}

        async def call(name: str, arguments: dict[str, Any]) -> Any:
            text = json.dumps(arguments)
            context = ToolContext(context=None, tool_name=name, tool_call_id="1", tool_arguments=text)
            return await tools[name].on_invoke_tool(context, text)

        yield Shown(
            {name: (tool.description, tool.params_json_schema) for name, tool in tools.items()}, call,
            {name for name, tool in tools.items() if tool.strict_json_schema},
            "the others are sent as they are, because they have an object without properties",
        )  # fmt: skip


@asynccontextmanager
async def langchain(server: Server) -> AsyncIterator[Shown]:
    from langchain_mcp_adapters.tools import load_mcp_tools
    from langchain_openai import ChatOpenAI

    async with client_session(server) as session:
        found = await load_mcp_tools(session)
        tools = {tool.name: tool for tool in found}
        bound = ChatOpenAI(model="gpt-5", api_key="none").bind_tools(found, strict=True).kwargs["tools"]
        functions = [tool["function"] for tool in bound]

        async def call(name: str, arguments: dict[str, Any]) -> Any:
            return await tools[name].ainvoke(arguments)

        yield Shown(
            {part["name"]: (part["description"], part["parameters"]) for part in functions}, call,
            {part["name"] for part in functions if part["strict"]},
        )  # fmt: skip


@asynccontextmanager
async def pydantic_ai(server: Server) -> AsyncIterator[Shown]:
    from fastmcp import Client
    from fastmcp.client.transports import StdioTransport
    from pydantic_ai import Agent
    from pydantic_ai.mcp import MCPToolset
    from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, ToolReturnPart
    from pydantic_ai.models.function import FunctionModel
    from pydantic_ai.profiles.openai import OpenAIJsonSchemaTransformer

    transport = StdioTransport(server.python, server.args, env=server.env)
    toolset: Any = MCPToolset(Client(transport, timeout=SECONDS, init_timeout=SECONDS))
    seen: dict[str, tuple[str, dict[str, Any]]] = {}

    async def call(name: str, arguments: dict[str, Any]) -> Any:
        """One run of an agent whose model makes this call and repeats what it got."""

        def model(messages: Any, info: Any) -> Any:
            for tool in info.function_tools:
                strict = OpenAIJsonSchemaTransformer(tool.parameters_json_schema, strict=True).walk()
                seen[tool.name] = (tool.description or "", strict)
            answers = [part for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
            if not name or len(messages) > 1:
                said = answers or messages[-1].parts
                return ModelResponse(parts=[TextPart(str([part.content for part in said]))])
            return ModelResponse(parts=[ToolCallPart(name, arguments)])

        return (await Agent(FunctionModel(model), toolsets=[toolset]).run("go")).output

    async with toolset:
        await call("", {})
        yield Shown(seen, call, set(seen))


@asynccontextmanager
async def google_genai(server: Server) -> AsyncIterator[Shown]:
    from google.genai._adapters import McpToGenAiToolAdapter
    from google.genai.types import FunctionCall

    async with client_session(server) as session:
        adapter = McpToGenAiToolAdapter(session, await session.list_tools())

        async def call(name: str, arguments: dict[str, Any]) -> Any:
            return await adapter.call_tool(FunctionCall(name=name, args=as_protobuf(arguments)))

        declared = [part for tool in adapter.tools for part in tool.function_declarations]
        tools = {part.name: (part.description, _of_gemini(part.parameters)) for part in declared}
        yield Shown(tools, call, note="numbers are sent as floats, as protobuf does")


@asynccontextmanager
async def google_adk(server: Server) -> AsyncIterator[Shown]:
    from google.adk.agents import LlmAgent
    from google.adk.agents.invocation_context import InvocationContext
    from google.adk.sessions import InMemorySessionService
    from google.adk.tools.mcp_tool.mcp_session_manager import StdioConnectionParams
    from google.adk.tools.mcp_tool.mcp_toolset import McpToolset
    from google.adk.tools.tool_context import ToolContext
    from mcp import StdioServerParameters

    parameters = StdioServerParameters(command=server.python, args=server.args, env=server.env)
    toolset = McpToolset(connection_params=StdioConnectionParams(server_params=parameters, timeout=SECONDS))
    tools = {tool.name: tool for tool in await toolset.get_tools()}
    service = InMemorySessionService()
    session = await service.create_session(app_name="test", user_id="tester")
    context = InvocationContext(
        session_service=service, invocation_id="1", agent=LlmAgent(name="tester"), session=session
    )

    async def call(name: str, arguments: dict[str, Any]) -> Any:
        return await tools[name].run_async(args=as_protobuf(arguments), tool_context=ToolContext(context))

    declared = {name: tool._get_declaration() for name, tool in tools.items()}
    yield Shown(
        {
            name: (part.description, part.parameters_json_schema or _of_gemini(part.parameters))
            for name, part in declared.items()
        },
        call,
    )
    await toolset.close()


@asynccontextmanager
async def anthropic(server: Server) -> AsyncIterator[Shown]:
    from anthropic.lib.tools.mcp import async_mcp_tool

    async with client_session(server) as session:
        found = (await session.list_tools()).tools
        tools = {tool.name: async_mcp_tool(tool, session, strict=True) for tool in found}

        async def call(name: str, arguments: dict[str, Any]) -> Any:
            return await tools[name].call(arguments)

        sent = {name: tool.to_dict() for name, tool in tools.items()}
        note = "its strict option leaves the schema as it is"
        yield Shown({name: (part["description"], part["input_schema"]) for name, part in sent.items()}, call, note=note)


@asynccontextmanager
async def fastmcp(server: Server) -> AsyncIterator[Shown]:
    from fastmcp import Client
    from fastmcp.client.transports import StdioTransport
    from fastmcp.server import create_proxy

    transport = StdioTransport(server.python, server.args, env=server.env)
    behind = Client(transport, timeout=SECONDS, init_timeout=SECONDS)
    async with behind, Client(create_proxy(behind), timeout=SECONDS) as client:

        async def call(name: str, arguments: dict[str, Any]) -> Any:
            return await client.call_tool(name, arguments)

        tools = {tool.name: (tool.description or "", tool.inputSchema) for tool in await client.list_tools()}
        yield Shown(tools, call, note="as its proxy publishes them again")


@asynccontextmanager
async def llama_index(server: Server) -> AsyncIterator[Shown]:
    from llama_index.tools.mcp import McpToolSpec

    async with client_session(server) as session:
        tools = {tool.metadata.name: tool for tool in await McpToolSpec(session).to_tool_list_async()}

        async def call(name: str, arguments: dict[str, Any]) -> Any:
            return await tools[name].acall(**arguments)

        shown = {name: (tool.metadata.description, tool.metadata.get_parameters_dict()) for name, tool in tools.items()}
        yield Shown(shown, call, note="nested objects become plain dictionaries: it follows references only")


FRAMEWORKS: dict[str, Callable[[Server], Any]] = {
    "openai-agents": openai_agents,
    "langchain-openai": langchain,
    "pydantic-ai-slim": pydantic_ai,
    "google-genai": google_genai,
    "google-adk": google_adk,
    "anthropic": anthropic,
    "fastmcp": fastmcp,
    "llama-index-tools-mcp": llama_index,
}
FLAT = {"llama-index-tools-mcp"}  # frameworks that lose nested properties of any inlined object


def as_protobuf(value: Any) -> Any:
    """A JSON value as a client receives it whose only type of number is a float."""
    if isinstance(value, dict):
        return {name: as_protobuf(part) for name, part in value.items()}
    if isinstance(value, list):
        return [as_protobuf(part) for part in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _of_gemini(schema: Any) -> dict[str, Any]:
    return json.loads(schema.model_dump_json(exclude_none=True, by_alias=True)) if schema else {}


def nodes(schema: dict[str, Any], root: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in a schema by its path; a reference or an alternative with null stands for what it names."""
    while "$ref" in schema or "anyOf" in schema:
        if "$ref" in schema:
            schema = {**root["$defs"][schema["$ref"].rpartition("/")[2]], **schema}
            del schema["$ref"]
        else:
            meant = next(part for part in schema["anyOf"] if part.get("type") != "null")
            schema = {**meant, **{key: part for key, part in schema.items() if key != "anyOf"}}
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from nodes(part, root, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from nodes(schema["items"], root, f"{path}[]")


def compared(schema: dict[str, Any], flat: bool) -> dict[str, dict[str, Any]]:
    """The schemas in a schema that a converter must keep: all of them, or of a flat one only those of the arguments."""
    every = dict(nodes(schema, schema))
    return {path: node for path, node in every.items() if not flat or (path.count(".") < 2 and "[]" not in path)}


def lost(before: dict[str, Any], after: dict[str, Any], flat: bool) -> list[str]:
    """What the converted schema no longer says of a tool: properties, descriptions, choices and types."""
    found, missing = dict(nodes(after, after)), []
    for path, node in compared(before, flat).items():
        kept = found.get(path)
        if kept is None:
            missing.append(path)
            continue
        if node.get("description", "") not in kept.get("description", ""):
            missing.append(f"{path}: description")
        if set(node.get("enum", ())) != set(kept.get("enum", ())):
            missing.append(f"{path}: choices")
        if not flat and node["type"] != str(kept.get("type", "")).lower():
            missing.append(f"{path}: type")
    return missing


def strict_faults(schema: dict[str, Any]) -> list[str]:
    """Why strict function calling would refuse a schema that is declared as strict."""
    faults = []
    for path, node in nodes(schema, schema):
        faults += [f"{path}: {key}" for key in ("default", "minLength", "maxLength", "$ref") if key in node]
        if node.get("type") == "object" and node.get("additionalProperties") is not False:
            faults.append(f"{path}: an open object")
        if node.get("type") == "object" and set(node.get("required", ())) != set(node.get("properties", {})):
            faults.append(f"{path}: optional properties")
    return faults


async def row_of(name: str, server: Server) -> dict[str, Any]:
    """What became of the tools in a framework, and of a trial that it was asked for."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(client_session(server))
        published = {tool.name: tool for tool in (await session.list_tools()).tools}
    async with FRAMEWORKS[name](server) as shown:
        faults = sorted(set(published) - set(shown.tools))
        total = 0
        for tool in published.values():
            description, schema = shown.tools.get(tool.name, ("", {}))
            total += sum(path[-1:].isalpha() for path in compared(tool.inputSchema, name in FLAT))  # not items of lists
            faults += [f"{tool.name}{what}" for what in lost(tool.inputSchema, schema, name in FLAT)]
            faults += [] if (tool.description or "") in description else [f"{tool.name}: description"]
            faults += [f"{tool.name}{why}" for why in (strict_faults(schema) if tool.name in shown.strict else [])]
        opened = str(await shown.call("open_session", OPEN))
        found = re.search(r"demo-sasrec-\d+", opened)
        answer = str(await shown.call("run_trial", trial_of(found[0]))) if found else opened
    faults += unrecorded(server.home, answer)
    strict = f"{len(shown.strict)} strict" if shown.strict else ""
    notes = "; ".join(filter(None, [strict, shown.note]))
    return {"tools": len(shown.tools), "properties": total, "faults": faults, "notes": notes}


def unrecorded(home: Path, answer: str) -> list[str]:
    """What of the trial is not in the server's memory as it was asked for."""
    database = sqlite3.connect(home / "memory.db")
    trials = database.execute("SELECT changes, hypothesis, status FROM trials").fetchall()
    database.close()
    if len(trials) != 1:
        return [f"{len(trials)} trials: {answer[:500]}"]
    changes, hypothesis, status = json.loads(trials[0][0]), json.loads(trials[0][1] or "{}"), trials[0][2]
    faults = [] if changes == CHANGES else [f"changes={changes}"]
    faults += [] if hypothesis == HYPOTHESIS else [f"hypothesis={hypothesis}"]
    return faults + ([] if status == "finished" else [f"the trial is {status}: {answer[:500]}"])


def in_a_process(name: str, python: str) -> tuple[str, bool]:
    """The row of a framework, and whether it is as it should be. Frameworks disturb each other in one process."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"| {name} | | | | not installed |", True
    command = [sys.executable, __file__, "--server", python, "--row", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * SECONDS, check=False)
    if done.returncode:
        return f"| {name} | {version} | | | failed: {done.stderr[-1500:].replace(chr(10), ' ')} |", False
    row = json.loads(done.stdout.splitlines()[-1])
    faults = "; ".join(row["faults"])
    kept = f"all {row['properties']}" if not row["faults"] else f"LOST: {faults}"
    return f"| {name} | {version} | {row['tools']} | {kept} | {row['notes']} |", not row["faults"]


def main() -> int:
    """Print the table of all frameworks, or the row of one as JSON."""
    parser = argparse.ArgumentParser()
    beside = ROOT / ".venv" / "bin" / "python"
    parser.add_argument("--server", default=str(beside) if beside.exists() else shutil.which("python"))
    parser.add_argument("--only", choices=FRAMEWORKS)
    parser.add_argument("--row", choices=FRAMEWORKS)
    given = parser.parse_args()
    if given.row:
        with tempfile.TemporaryDirectory(prefix="virtualmle-", ignore_cleanup_errors=True) as folder:
            (Path(folder) / "SANDBOX.md").write_text(PAGE, encoding="utf-8")
            print(json.dumps(asyncio.run(row_of(given.row, Server(given.server, Path(folder))))))
        return 0
    print("| framework | version | tools | properties kept | notes |\n|---|---|---|---|---|")
    fine = True
    for name in [given.only] if given.only else FRAMEWORKS:
        row, as_it_should = in_a_process(name, given.server)
        print(row, flush=True)
        fine = fine and as_it_should
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
