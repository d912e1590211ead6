"""A hostile agent: a real MCP client, connected to a live server over stdio, called from ordinary functions."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client, MCPError, StdioServerParameters
from mcp.types import Implementation

from ... import __version__

CLIENT = "virtualmle-redteam"  # clients of this prefix may wait for a trial without limit
PLANTED = {"OPENAI_API_KEY": "planted-key-of-the-server-7c1d", "VIRTUALMLE_TOKEN": "planted-token-of-the-server-91ab"}
VIEWS = ("state", "trajectory", "long_term", "brief")


@dataclass(frozen=True)
class Answer:
    """What a tool answered: all its text, and whether it is a refusal."""

    text: str
    is_error: bool
    content: Mapping[str, Any]


class HostileAgent:
    """The tools and resources of one server."""

    def __init__(self, portal: BlockingPortal, client: Client) -> None:
        self._portal = portal
        self._client = client

    def call(self, tool: str, **arguments: Any) -> Answer:
        """Call a tool; an answer of any kind is returned, a refusal of the protocol too."""
        try:
            result = self._portal.call(self._client.call_tool, tool, arguments)
        except MCPError as error:
            return Answer(str(error), True, {})
        text = "".join(block.text for block in result.content if block.type == "text")
        content = result.structured_content or {}
        return Answer(f"{text}\n{json.dumps(content)}", bool(result.is_error), content)

    def resource(self, uri: str) -> str:
        """The text of a resource, or of the refusal to read it."""
        try:
            return str(self._portal.call(self._client.read_resource, uri))
        except MCPError as error:
            return str(error)

    def everything(self, sessions: Collection[str]) -> str:
        """All that these sessions show to an agent: every view, resource and list."""
        parts = [self.call("list_sessions").text, self.resource("sandbox://protocol")]
        for session in sessions:
            parts += [self.call("read_memory", session=session, view=view).text for view in VIEWS]
            parts += [self.call("read_memory", session=session, view="long_term", query="test ndcg").text]
            parts += [self.resource(f"session://{session}/{page}") for page in ("trajectory", "trajectory.md")]
            parts += [self.call("finalize", session=session, cognition_summary="x", confirm=False).text]
        return "\n".join(parts)


@contextlib.contextmanager
def hostile_agent(home: Path) -> Iterator[HostileAgent]:
    """A client and its server on `home`, whose environment has secrets that no worker may get."""
    options = ["--home", str(home), "--device", "cpu", "--threads", "1", "--keep-warm", "60"]
    server = StdioServerParameters(
        command=sys.executable, args=["-P", "-m", "virtualmle", "serve", *options], env={**os.environ, **PLANTED}
    )
    client = Client(server, client_info=Implementation(name=CLIENT, version=__version__))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(client) as connected:
        yield HostileAgent(portal, connected)


def figures_found(text: str, metrics: Mapping[str, float], before: str = "") -> list[str]:
    """The notations of test metrics that stand in a text and did not stand in what was shown `before` the look."""
    wanted = {notation for name, value in metrics.items() if "recall" not in name for notation in _notations(value)}
    return sorted(each for each in wanted if _stands_in(each, text) and not _stands_in(each, before))


def _notations(value: float) -> set[str]:
    """0.04237 as 0.0424, 0.042370 and .0424; of recall, with its few distinct values, others may be equal by chance."""
    return {f"{value:.4f}", f"{value:.6f}", f"{value:.4f}".removeprefix("0")}


def _stands_in(notation: str, text: str) -> bool:
    return re.search(rf"(?<!\d){re.escape(notation)}", text) is not None
