"""Subscribers are told that a trajectory has changed: both protocol eras, in memory, over stdio and over HTTP."""

import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError
from mcp.client.subscriptions import ResourceUpdated
from mcp.server.subscriptions import ResourcesListChanged
from mcp.types import CallToolResult, ResourceUpdatedNotification

from tests.test_server_processes import over_http, over_stdio
from virtualmle.memory.sessions import Change
from virtualmle.server import updates
from virtualmle.server.app import build_server
from virtualmle.server.resources import SESSION_RESOURCES
from virtualmle.server.updates import changed, events
from virtualmle.tools.workspace import Settings

pytestmark = pytest.mark.anyio

SMALL = {"epochs": 1, "hidden_dim": 16}
SESSION = "demo-sasrec-1"
URI = f"session://{SESSION}/trajectory"
PATIENT = 240.0


@pytest.fixture(autouse=True)
def importable_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result: CallToolResult = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return result.structured_content


class Heard:
    """The uris that a subscriber has heard of, and the wait for one more than so many."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self._news = anyio.Event()

    def hear(self, uri: str) -> None:
        self.uris.append(uri)
        self._news.set()

    async def after(self, count: int) -> int:
        with anyio.fail_after(PATIENT):
            while len(self.uris) <= count:
                self._news = anyio.Event()
                await self._news.wait()
        return len(self.uris)


@asynccontextmanager
async def listening(client: Client, heard: Heard) -> AsyncIterator[None]:
    """A subscription of a client of the current era."""
    async with client.listen(resource_subscriptions=[URI]) as subscription, anyio.create_task_group() as tasks:

        async def read() -> None:
            async for event in subscription:
                assert isinstance(event, ResourceUpdated)
                heard.hear(event.uri)

        tasks.start_soon(read)
        yield
        tasks.cancel_scope.cancel()


async def hears_of_a_trial_and_its_reflection(client: Client, heard: Heard) -> None:
    """The trial is read only when something was heard: its start and its end may be told together."""
    count = await heard.after(0)  # of the subscription itself
    await call(client, "run_trial", session=SESSION, changes=SMALL, wait_seconds=0)
    status = "running"
    while status == "running":
        count = await heard.after(count)
        view = await call(client, "read_memory", session=SESSION, view="trajectory")
        status = next((trial["status"] for trial in view["content"]["trials"]), "running")
    assert status == "finished"
    count = len(heard.uris)
    await call(
        client, "write_reflection", session=SESSION, trial="t001", helped="unclear", dimension="capacity",
        lesson="A small model learns a little in one epoch.",
    )  # fmt: skip
    await heard.after(count)
    assert set(heard.uris) == {URI}


def legacy(heard: Heard) -> Callable[[Any], Any]:
    async def hear(message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            heard.hear(str(message.params.uri))

    return hear


@asynccontextmanager
async def in_memory(home: Path, options: Mapping[str, Any]) -> AsyncIterator[Client]:
    async with Client(build_server(home, Settings(threads=1)), **options) as client:
        yield client


async def test_a_client_of_today_listens(tmp_path: Path) -> None:
    heard = Heard()
    async with in_memory(tmp_path, {}) as client:
        await call(client, "open_session", dataset="demo", backbone="sasrec")
        async with listening(client, heard):
            await hears_of_a_trial_and_its_reflection(client, heard)


@pytest.mark.filterwarnings("ignore:resources/.*subscribe is removed:mcp.MCPDeprecationWarning")
@pytest.mark.parametrize("connect", [in_memory, over_stdio], ids=["memory", "stdio"])
async def test_an_earlier_client_subscribes(tmp_path: Path, connect: Callable[..., Any]) -> None:
    heard = Heard()
    async with connect(tmp_path, {"mode": "legacy", "message_handler": legacy(heard)}) as client:
        assert client.server_capabilities.resources and client.server_capabilities.resources.subscribe
        await call(client, "open_session", dataset="demo", backbone="sasrec")
        await client.session.subscribe_resource(URI)
        await client.session.subscribe_resource("test://foreign")  # as conformance suites do; nothing is ever announced
        await hears_of_a_trial_and_its_reflection(client, heard)
        await client.session.unsubscribe_resource(URI)
        heard.uris.clear()
        await call(client, "run_trial", session=SESSION, changes={**SMALL, "lr": 0.002}, wait_seconds=PATIENT)
        await anyio.sleep(2 * updates.POLL_SECONDS)
        assert heard.uris == []


@pytest.mark.filterwarnings("ignore:resources/.*subscribe is removed:mcp.MCPDeprecationWarning")
@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("session://demo-sasrec-9/trajectory", "unknown session 'demo-sasrec-9'"),
        ("session:///trajectory", "unknown session ''"),
        ("session://demo-sasrec-9/trials/t001.md", "are not announced"),
        ("session://demo-sasrec-9/nothing", "are not announced; subscribe to session://{session}/trajectory"),
    ],
)
async def test_a_subscription_to_what_is_not_announced_is_refused(tmp_path: Path, uri: str, told: str) -> None:
    async with in_memory(tmp_path, {"mode": "legacy"}) as client:
        with pytest.raises(MCPError, match=re.escape(told)) as refused:
            await client.session.subscribe_resource(uri)
        assert refused.value.code == -32002


@pytest.mark.parametrize("connect", [over_stdio, over_http], ids=["stdio", "http"])
async def test_a_client_of_another_process_listens(tmp_path: Path, connect: Callable[..., Any]) -> None:
    heard = Heard()
    async with connect(tmp_path) as client:
        await call(client, "open_session", dataset="demo", backbone="sasrec")
        async with listening(client, heard):
            await hears_of_a_trial_and_its_reflection(client, heard)


def test_what_counts_as_a_change() -> None:
    one = Change("open", 1, 1, 0, 0)
    assert changed({"a": one}, {"a": one}) == []
    assert changed({"a": one}, {"a": one, "b": one}) == ["b"]
    told = events({"a": one}, {"a": one, "b": one})
    assert {event.uri for event in told[:-1]} == {each.uri.format(session="b") for each in SESSION_RESOURCES}
    assert told[-1] == ResourcesListChanged() and events({"a": one}, {"a": one}) == []
    for other in (one._replace(trials=2), one._replace(running=0), one._replace(reflections=1),
                  one._replace(amendments=1), one._replace(state="frozen")):  # fmt: skip
        assert changed({"a": one}, {"a": other}) == ["a"]
