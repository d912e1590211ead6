"""The tools as a client sees them, over an in-memory connection: schemas, errors, waits, progress, a full session."""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError
from mcp.types import CallToolResult, Implementation

from virtualmle.memory.store import Memory
from virtualmle.server.app import INSTRUCTIONS, TOOLS, build_server
from virtualmle.server.waits import OVERRIDE
from virtualmle.tools.workspace import Settings

pytestmark = pytest.mark.anyio

SMALL = {"epochs": 1, "hidden_dim": 16}
LONG = {"epochs": 20, "patience": 20, "hidden_dim": 16}
ENDLESS = {"epochs": 100, "patience": 20, "hidden_dim": 256, "batch_size": 64}


@pytest.fixture(autouse=True)
def importable_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


@asynccontextmanager
async def connect(home: Path, mode: str = "auto", name: str = "virtualmle", **settings: Any) -> AsyncIterator[Client]:
    server = build_server(home, Settings(threads=1, **settings))
    async with Client(server, mode=mode, client_info=Implementation(name=name, version="1")) as client:
        yield client


@pytest.fixture(params=["auto", "legacy"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    """One client per protocol version: current and legacy."""
    async with connect(tmp_path, request.param) as connected:
        yield connected


def text_of(result: CallToolResult) -> str:
    return "".join(block.text for block in result.content if block.type == "text")


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, text_of(result)
    assert result.structured_content is not None
    return result.structured_content


async def refusal(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error, text_of(result)
    return text_of(result)


async def opened(client: Client) -> str:
    return str((await call(client, "open_session", dataset="demo", backbone="sasrec"))["session"])


async def test_every_tool_has_a_short_description(client: Client) -> None:
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert list(tools) == [tool.__name__ for tool, _ in TOOLS]
    for tool in tools.values():
        assert 0 < len((tool.description or "").encode()) < 2048
        assert tool.output_schema is not None
        for name, schema in tool.input_schema["properties"].items():
            assert schema.get("description"), f"{tool.name}.{name} has no description"


async def test_no_schema_contains_an_argument_that_the_agent_must_not_choose(client: Client) -> None:
    for tool in (await client.list_tools()).tools:
        people_choose = {"ws", "workspace", "context", "home", "seed", "settings"}
        if tool.name == "sweep":  # its settings are lists of knobs, not those of the workspace
            people_choose.remove("settings")
        assert not people_choose & set(tool.input_schema["properties"])


async def test_read_only_and_destructive_tools_are_annotated(client: Client) -> None:
    tools = (await client.list_tools()).tools
    reads = {tool.name for tool in tools if tool.annotations and tool.annotations.read_only_hint}
    ends = {tool.name for tool in tools if tool.annotations and tool.annotations.destructive_hint}
    assert reads == {"list_sessions", "read_memory", "wait_trial"}
    assert ends == {"finalize", "cancel_trial"}


async def test_the_instructions_are_sent_and_name_the_steps_of_the_loop(client: Client) -> None:
    assert client.instructions == INSTRUCTIONS
    assert len(INSTRUCTIONS.encode()) < 2048
    for step in ("open_session", "run_trial", "wait_trial", "write_reflection", "read_memory", "finalize"):
        assert step in INSTRUCTIONS


async def test_an_unknown_argument_is_refused_with_its_name_and_the_valid_ones(client: Client) -> None:
    text = await refusal(client, "list_sessions", verbose=True)
    assert "'verbose'" in text and "its arguments are none" in text
    text = await refusal(client, "open_session", dataset="demo", backbone="sasrec", seed=7)
    assert "'seed'" in text and "dataset, backbone, new" in text and "seeds belong to the server" in text


async def test_a_knob_outside_changes_is_refused_with_a_hint(client: Client) -> None:
    text = await refusal(client, "run_trial", session="demo-sasrec-1", changes={}, lr=0.1)
    assert "'lr'" in text and "inside `changes`" in text


async def test_a_sweep_over_the_wire_measures_its_settings_and_explains_a_refusal(client: Client) -> None:
    session = await opened(client)
    settings = [{"transition_weight": 4.0}, {"transition_weight": 8.0}]
    assert "call run_trial with changes={} first" in await refusal(client, "sweep", session=session, settings=settings)
    await call(client, "run_trial", session=session, changes=SMALL)
    await call(client, "write_reflection", session=session, trial="t001", helped="unclear", dimension="capacity",
               lesson="a small model is quick")  # fmt: skip
    assert "setting 1 changes lr" in await refusal(client, "sweep", session=session, settings=[{"lr": 0.01}])
    found = await call(client, "sweep", session=session, settings=settings)
    assert (found["trial"], found["status"], found["sweep"]["settings"]) == ("t002", "finished", 2)
    assert found["budget"]["trials_used"] == 2


async def test_an_error_names_the_session_that_does_not_exist(client: Client) -> None:
    for tool, arguments in (("read_memory", {}), ("wait_trial", {"trial": "t001"}), ("run_trial", {"changes": {}})):
        assert "no-such-1" in await refusal(client, tool, session="no-such-1", **arguments)


async def test_the_error_for_an_unknown_dataset_lists_the_datasets(client: Client) -> None:
    assert "demo" in await refusal(client, "open_session", dataset="nonsense", backbone="sasrec")


async def test_changes_sent_as_a_json_string_are_read_as_an_object(client: Client) -> None:
    session = await opened(client)
    text = await refusal(client, "run_trial", session=session, changes=json.dumps({"no_such_knob": 1}))
    assert "no_such_knob" in text


async def test_a_wait_that_ends_early_returns_the_handle_and_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OVERRIDE, "0")
    async with connect(tmp_path) as client:
        session = await opened(client)
        first = await call(client, "run_trial", session=session, changes=ENDLESS, wait_seconds=600)
        assert (first["trial"], first["status"]) == ("t001", "running")
        for text in (first["next"], (await call(client, "wait_trial", session=session, trial="t001"))["next"]):
            assert "nothing failed" in text and "Do not start it again" in text
            assert f"wait_trial(session='{session}', trial='t001')" in text
        cancelled = await call(client, "cancel_trial", session=session, trial="t001")
        assert cancelled["status"] == "cancelled"


async def test_a_requested_wait_below_the_limit_is_respected(tmp_path: Path) -> None:
    async with connect(tmp_path) as client:
        session = await opened(client)
        first = await call(client, "run_trial", session=session, changes=ENDLESS, wait_seconds=0)
        assert first["status"] == "running"
        await call(client, "cancel_trial", session=session, trial="t001")


async def test_progress_increases_strictly_up_to_the_number_of_epochs(client: Client) -> None:
    session = await opened(client)
    messages: list[tuple[float, float | None, str]] = []

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        messages.append((progress, total, message or ""))

    result = await client.call_tool("run_trial", {"session": session, "changes": LONG}, progress_callback=listen)
    assert not result.is_error, text_of(result)
    values = [progress for progress, _, _ in messages]
    assert len(values) > 1 and values == sorted(set(values))
    assert values[-1] <= LONG["epochs"]
    assert any("epoch" in message and total == LONG["epochs"] for _, total, message in messages)


async def test_cancelling_a_call_ends_the_wait_but_not_the_trial(client: Client) -> None:
    session = await opened(client)
    started = anyio.Event()

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        started.set()

    async def run() -> None:
        await client.call_tool("run_trial", {"session": session, "changes": LONG}, progress_callback=listen)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await started.wait()
        group.cancel_scope.cancel()
    observation = await call(client, "wait_trial", session=session, trial="t001")
    assert observation["status"] == "finished"
    assert observation["budget"]["trials_used"] == 1


async def test_other_calls_are_answered_during_a_wait(client: Client) -> None:
    session = await opened(client)
    started = anyio.Event()

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        started.set()

    async def run() -> None:
        await client.call_tool("run_trial", {"session": session, "changes": ENDLESS}, progress_callback=listen)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await started.wait()
        state = await call(client, "read_memory", session=session)
        assert state["content"]["running"] == "t001"
        assert "t001" in await refusal(client, "run_trial", session=session, changes=SMALL)
        await call(client, "cancel_trial", session=session, trial="t001")


async def test_the_session_records_which_client_opened_it(tmp_path: Path) -> None:
    async with connect(tmp_path, name="some-client\x1b") as client:
        session = await opened(client)
    assert Memory(tmp_path / "memory.db").sessions.get(session).client == "some-client"


async def test_the_protocol_and_trajectories_are_resources(client: Client, tmp_path: Path) -> None:
    session = await opened(client)
    listed = [str(resource.uri) for resource in (await client.list_resources()).resources]
    assert {"sandbox://protocol", f"session://{session}/trajectory"} <= set(listed)
    protocol = (await client.read_resource("sandbox://protocol")).contents[0]
    view = await call(client, "read_memory", session=session, view="protocol", query="full")
    assert protocol.text == view["content"]["text"]
    trajectory = (await client.read_resource(f"session://{session}/trajectory")).contents[0]
    assert json.loads(trajectory.text) == {"session": session, "trials": [], "reflections": []}
    with pytest.raises(MCPError, match="no-such-1"):
        await client.read_resource("session://no-such-1/trajectory")


async def test_the_prompt_names_the_dataset_and_the_backbone(client: Client) -> None:
    message = (await client.get_prompt("tune", {"dataset": "demo", "backbone": "sasrec"})).messages[0]
    assert "'demo'" in message.content.text and "'sasrec'" in message.content.text


async def test_a_full_session_from_the_brief_to_the_test_result(client: Client) -> None:
    session = await opened(client)
    result = await client.call_tool("run_trial", {"session": session, "changes": SMALL})
    first = result.structured_content
    assert first is not None and len(json.dumps(first)) < 2048
    assert f"NDCG@10 {first['metrics']['ndcg@10']:.4f}".replace("0.", ".") in text_of(result)
    assert (first["status"], first["verdict"], first["incumbent"]) == ("finished", "keep", "t001")
    assert "write_reflection" in await refusal(client, "run_trial", session=session, changes={"lr": 0.001})
    receipt = await call(
        client, "write_reflection", session=session, trial="t001", helped="unclear", dimension="capacity",
        lesson="A small model learns a little in one epoch.",
        rule={"kind": "insight", "statement": "One epoch is little.", "evidence": ["t001"]},
    )
    assert receipt["rule"]["rule_id"] is not None
    again = await call(client, "run_trial", session=session, changes=SMALL, base="default")
    assert again["duplicate"] and again["budget"]["trials_used"] == 1
    assert "confirm" in await refusal(client, "finalize", session=session, cognition_summary="Short.")
    final = await call(client, "finalize", session=session, cognition_summary="Short.", confirm=True)
    assert (final["state"], final["selected"], final["look"]) == ("revealed", "t001", 1)
    assert set(final["test"]) >= {"ndcg@10", "recall@10"}
    assert "revealed" in await refusal(client, "run_trial", session=session, changes={"lr": 0.001})
    sessions = await call(client, "list_sessions")
    assert [(s["session"], s["state"], s["trials"]) for s in sessions["sessions"]] == [(session, "revealed", 1)]
