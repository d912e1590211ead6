"""Waits as tasks of the tasks extension, with a real client that declares it, in memory and over HTTP."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import anyio
import pytest
from mcp import Client, MCPError
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.types import INVALID_PARAMS, CallToolResult, Implementation, Request, RequestParams, Result

from tests.quick_home import confirming_home
from tests.test_server_processes import command
from virtualmle.examiner.request import looks
from virtualmle.server.app import TOOLS, build_server
from virtualmle.server.tasks import TASKS, WAITING
from virtualmle.server.wire import WAIT
from virtualmle.tools.workspace import Settings

pytestmark = pytest.mark.anyio

SMALL = {"epochs": 1, "hidden_dim": 16}
ENDLESS = {"epochs": 100, "patience": 20, "hidden_dim": 256, "batch_size": 64}
SESSION = "demo-sasrec-1"


@pytest.fixture(autouse=True)
def importable_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


class Created(Result):
    """The result that announces a task."""

    result_type: Literal["task"]
    task_id: str
    status: str
    ttl_ms: int | None
    poll_interval_ms: int
    created_at: str
    last_updated_at: str
    status_message: str = ""


class Shown(Created):
    """The answer of tasks/get, or an empty acknowledgement."""

    result_type: Literal["complete"] = "complete"  # type: ignore[assignment]
    result: dict[str, Any] | None = None


class Acknowledged(Result):
    """The answer of tasks/cancel and tasks/update."""

    result_type: str


class OfTask(RequestParams):
    task_id: str


class TaskRequest(Request[OfTask, str]):
    name_param: ClassVar[str | None] = "taskId"


def request(method: str, task: str) -> TaskRequest:
    return TaskRequest(method=method, params=OfTask(task_id=task))


class Tasks(ClientExtension):
    """What a host does: announce the extension, and poll a task for its result."""

    identifier = TASKS

    def __init__(self) -> None:
        self.created: list[Created] = []
        self.polls: list[Shown] = []

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return (ResultClaim(result_type="task", model=Created, resolve=self.resolve),)

    async def resolve(self, created: Created, context: ClaimContext) -> CallToolResult:
        self.created.append(created)
        while True:
            shown = await context.session.send_request(request("tasks/get", created.task_id), Shown)
            self.polls.append(shown)
            if shown.status == "completed":
                return CallToolResult.model_validate(shown.result)
            await anyio.sleep(min(0.2, shown.poll_interval_ms / 1000))


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return result.structured_content


@asynccontextmanager
async def over_http(home: Path, tasks: Tasks) -> AsyncIterator[Client]:
    process = subprocess.Popen(command(home, "http"), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = await anyio.to_thread.run_sync(process.stderr.readline)
        async with Client(line.split()[-1], extensions=[tasks]) as client:
            yield client
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stderr.close()


@asynccontextmanager
async def in_memory(home: Path, tasks: Tasks) -> AsyncIterator[Client]:
    async with Client(build_server(home, Settings(threads=1)), extensions=[tasks]) as client:
        yield client


def test_the_tools_that_become_tasks_are_those_that_wait() -> None:
    import inspect  # noqa: PLC0415 - of this test only

    waiting = {tool.__name__ for tool, *_ in TOOLS if WAIT in inspect.signature(inspect.unwrap(tool)).parameters}
    assert waiting == WAITING


@pytest.mark.parametrize("connect", [in_memory, over_http])
async def test_a_trial_is_a_task_until_it_has_ended(tmp_path: Path, connect: Any) -> None:
    tasks = Tasks()
    async with connect(tmp_path, tasks) as client:
        assert TASKS in (client.server_capabilities.extensions or {})
        await call(client, "open_session", dataset="demo", backbone="sasrec")
        first = await call(client, "run_trial", session=SESSION, changes=SMALL)
        assert (first["status"], first["trial"], first["verdict"]) == ("finished", "t001", "keep")
        (created,) = tasks.created
        assert (created.task_id, created.status, created.ttl_ms) == (f"{SESSION}/t001", "working", None)
        assert created.status_message.startswith("t001: ")
        assert {shown.status for shown in tasks.polls[:-1]} <= {"working"} and tasks.polls[-1].result
        again = await client.session.send_request(request("tasks/get", f"{SESSION}/t001"), Shown)
        assert again.result == tasks.polls[-1].result, "a task has its result for as long as the trial is known"
        assert len(await tasks_of(client, tasks, "wait_trial", session=SESSION, trial="t001")) == 1, "it has ended"


async def tasks_of(client: Client, tasks: Tasks, tool: str, **arguments: Any) -> list[Created]:
    await call(client, tool, **arguments)
    return tasks.created


async def test_cancelling_a_task_is_acknowledged_and_stops_no_trial(tmp_path: Path) -> None:
    tasks = Tasks()
    async with in_memory(tmp_path, tasks) as client:
        await call(client, "open_session", dataset="demo", backbone="sasrec")
        running = await call(client, "run_trial", session=SESSION, changes=ENDLESS, wait_seconds=0)
        assert running["status"] == "running" and tasks.created == [], "who does not want to wait gets an answer"
        task = f"{SESSION}/t001"
        for method in ("tasks/cancel", "tasks/update"):
            assert (await client.session.send_request(request(method, task), Acknowledged)).result_type == "complete"
        assert (await client.session.send_request(request("tasks/get", task), Shown)).status == "working"
        for unknown in (f"{SESSION}/t009", "nonsense", f"{SESSION}/finalize"):
            with pytest.raises(MCPError, match="no task") as refused:
                await client.session.send_request(request("tasks/get", unknown), Shown)
            assert refused.value.error.code == INVALID_PARAMS
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: call(client, "wait_trial", session=SESSION))
            while not tasks.created:
                await anyio.sleep(0.05)
            assert tasks.created[0].task_id == task, "a wait for the first of all names what it waits for"
            ended = await call(client, "cancel_trial", session=SESSION, trial="t001")
            assert ended["status"] == "cancelled"
        assert tasks.polls[-1].result and tasks.polls[-1].result["structuredContent"]["status"] == "cancelled"


async def test_a_finalize_that_confirms_is_a_task_until_the_one_look(tmp_path: Path) -> None:
    tasks, home = Tasks(), confirming_home(tmp_path / "home", top=1, repetitions=2)
    async with in_memory(home, tasks) as client:
        await call(client, "open_session", dataset="demo", backbone="sasrec")
        await call(client, "run_trial", session=SESSION, changes={})
        tasks.created.clear()
        tasks.polls.clear()
        final = await call(client, "finalize", session=SESSION, cognition_summary="Short.", confirm=True)
        (created,) = tasks.created
        task = f"{SESSION}/finalize"
        assert (created.task_id, created.status, created.ttl_ms) == (task, "working", None)
        assert created.status_message == "confirming 0 of 2"
        working = tasks.polls[:-1]
        assert working and all(shown.status == "working" and shown.result is None for shown in working)
        counts = [shown.status_message for shown in working]
        assert counts == sorted(counts) and set(counts) <= {f"confirming {done} of 2" for done in range(3)}
        assert {shown.created_at for shown in tasks.polls} == {created.created_at}
        assert (final["state"], final["selected"], final["look"]) == ("revealed", "t001", 1)
        assert len(final["confirmation"]["trials"][0]["values"]) == 2
        again = await client.session.send_request(request("tasks/get", task), Shown)
        assert (again.status, again.result) == ("completed", tasks.polls[-1].result), "an answer may be lost on its way"
        figure = f"{final['test']['ndcg@10']:.4f}"
        await call(client, "open_session", dataset="demo", backbone="sasrec", new=True)
        withheld = await client.session.send_request(request("tasks/get", task), Shown)
        assert withheld.result and figure not in str(withheld.result) and "test_se" not in str(withheld.result)
    assert len(looks(home)) == 1
    async with in_memory(home, tasks) as client:
        with pytest.raises(MCPError, match="no task.*call finalize again"):
            await client.session.send_request(request("tasks/get", task), Shown)


async def test_a_client_without_the_extension_gets_no_task(tmp_path: Path) -> None:
    server = build_server(tmp_path, Settings(threads=1))
    async with Client(server, client_info=Implementation(name="virtualmle", version="1")) as client:
        await call(client, "open_session", dataset="demo", backbone="sasrec")
        assert (await call(client, "run_trial", session=SESSION, changes=SMALL))["status"] == "finished"
        with pytest.raises(MCPError, match="did not declare") as refused:
            await client.session.send_request(request("tasks/get", f"{SESSION}/t001"), Shown)
        assert refused.value.error.code == -32021
    async with Client(server, mode="legacy") as client:
        with pytest.raises(MCPError, match="Method not found"):
            await client.session.send_request(request("tasks/get", f"{SESSION}/t001"), Shown)


async def test_a_client_that_takes_texts_only_gets_tasks_as_well(tmp_path: Path) -> None:
    tasks, info = Tasks(), Implementation(name="claude-code", version="1")
    server = build_server(tmp_path, Settings(threads=1))
    async with Client(server, extensions=[tasks], client_info=info) as client:
        await client.call_tool("open_session", {"dataset": "demo", "backbone": "sasrec"})
        result = await client.call_tool("run_trial", {"session": SESSION, "changes": SMALL})
    (text,) = result.content
    assert text.type == "text" and text.text.startswith("t001 finished") and result.structured_content is None
    assert [task.task_id for task in tasks.created] == [f"{SESSION}/t001"]
    assert "structuredContent" not in (tasks.polls[-1].result or {})
