"""A session through the Python SDK of an older line, run by that line's interpreter: connect, list, call, err, reflect.

    python client_python.py stdio COMMAND…        or        python client_python.py http URL

Prints one JSON object: the version of the SDK and the checks.
"""

import asyncio
import inspect
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from mcp import ClientSession, McpError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamablehttp_client

SESSION = "demo-sasrec-1"
REFLECTION = {
    "session": SESSION, "trial": "t001", "helped": "unclear", "dimension": "optimisation", "effect": None,
    "lesson": "The default configuration is the reference of this session.", "next_step": "Raise hidden_dim.",
}  # fmt: skip
MAX_WAITS = 40

checks: list[dict[str, Any]] = []


def check(name: str, passed: bool, detail: object = "") -> None:
    checks.append({"name": name, "passed": bool(passed), "detail": str(detail)[:600]})


@asynccontextmanager
async def connected(transport: str, target: list[str]) -> AsyncIterator[ClientSession]:
    if transport == "stdio":
        opened = stdio_client(StdioServerParameters(command=target[0], args=target[1:]))
    else:
        opened = streamablehttp_client(target[0])
    async with opened as streams, ClientSession(streams[0], streams[1]) as session:
        yield session


def text_of(result: Any) -> str:
    return "\n".join(part.text for part in result.content if part.type == "text")


def is_running(text: str) -> bool:
    """Whether an answer says, in its beginning, that the trial still runs."""
    return re.search(r"\brunning\b", text[:160]) is not None


async def drive(session: ClientSession) -> None:
    started = await session.initialize()
    check("initialize", started.serverInfo.name == "virtualmle" and bool(started.instructions), started)
    tools = (await session.list_tools()).tools
    described = all(tool.description and tool.inputSchema["type"] == "object" for tool in tools)
    check("tools/list", len(tools) >= 9 and described, tools)
    page = await session.read_resource("sandbox://protocol")  # type: ignore[arg-type]
    check("resources/read", "max_trials" in page.contents[0].text, page)
    prompt = await session.get_prompt("tune", {"dataset": "demo"})
    check("prompts/get", "demo" in prompt.messages[0].content.text, prompt)
    opened = await session.call_tool("open_session", {"dataset": "demo", "backbone": "sasrec"})
    check("open_session", not opened.isError and SESSION in text_of(opened), text_of(opened))
    await run_a_trial(session)
    reflected = await session.call_tool("write_reflection", REFLECTION)
    check("write_reflection", not reflected.isError, text_of(reflected))
    again = await session.call_tool("run_trial", {"session": SESSION, "changes": {}})
    check("an equal trial costs nothing", not again.isError and "t001" in text_of(again), text_of(again))
    await err(session)
    await session.send_ping()
    check("ping after errors", True)


async def run_a_trial(session: ClientSession) -> None:
    seen: list[list[float]] = []  # the progress of each call: it rises within one
    has_progress = "progress_callback" in inspect.signature(session.call_tool).parameters

    async def watched(tool: str, arguments: dict[str, Any]) -> Any:
        steps: list[float] = []
        seen.append(steps)

        async def progress(done: float, total: float | None, message: str | None = None) -> None:
            steps.append(done)

        return await session.call_tool(tool, arguments, **({"progress_callback": progress} if has_progress else {}))

    ran = await watched("run_trial", {"session": SESSION, "changes": {}, "wait_seconds": 20})
    check("run_trial", not ran.isError, text_of(ran))
    again = {"session": SESSION, "trial": "t001", "wait_seconds": 20}
    waits = 0
    while is_running(text_of(ran)) and waits < MAX_WAITS:
        ran = await watched("wait_trial", again)
        waits += 1
    check("wait_trial until it has finished", "keep" in text_of(ran), text_of(ran))
    if has_progress:
        check("progress rises", any(seen) and all(steps == sorted(set(steps)) for steps in seen), seen)
    if hasattr(ran, "structuredContent"):  # the SDK has validated it against the tool's output schema
        check("structured content", (ran.structuredContent or {}).get("status") == "finished", ran.structuredContent)


async def err(session: ClientSession) -> None:
    seed = await session.call_tool("run_trial", {"session": SESSION, "changes": {}, "seed": 7})
    explained = "seeds belong to the server" in text_of(seed).lower()
    check("a seed is refused", bool(seed.isError) and explained, text_of(seed))
    wide = await session.call_tool("run_trial", {"session": SESSION, "changes": {"hidden_dim": 4096}})
    check("a value out of range is refused", bool(wide.isError) and "hidden_dim" in text_of(wide), text_of(wide))
    try:
        unknown = await session.call_tool("no_such_tool", {})
        check("an unknown tool is refused", bool(unknown.isError), text_of(unknown))
    except McpError as error:
        check("an unknown tool is refused", True, error)


async def main() -> None:
    async with connected(sys.argv[1], sys.argv[2:]) as session:
        await drive(session)
    print(json.dumps({"version": metadata.version("mcp"), "checks": checks}))


asyncio.run(main())
