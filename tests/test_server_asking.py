"""Before finalize, a person is asked where the client can ask: both protocol eras, every answer, and no capability."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client import ClientRequestContext
from mcp.types import ElicitRequestParams, ElicitResult

from tests.mcp_worlds import ERAS, connect
from tests.quick_home import environment, quick_home
from tests.report_world import STORY, Story, finished
from tests.test_server_http import serving
from tests.test_server_stdio import SERVE
from virtualmle.data.errors import ServerError
from virtualmle.server.app import build_server
from virtualmle.server.asking import ASK

pytestmark = pytest.mark.anyio
GIVE_UP_SECONDS = 500.0


@pytest.fixture
def importable_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def fail_after() -> Any:
    return anyio.fail_after(GIVE_UP_SECONDS)


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Person:
    """Answers every question in the same way, and remembers what was asked."""

    def __init__(self, action: str, content: dict[str, Any] | None = None) -> None:
        self.answer = ElicitResult(action=action, content=content)  # type: ignore[arg-type]
        self.questions: list[ElicitRequestParams] = []

    async def __call__(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        self.questions.append(params)
        return self.answer


async def call(client: Client, tool: str, **arguments: Any) -> tuple[bool, str, dict[str, Any]]:
    result = await client.call_tool(tool, arguments)
    text = "".join(block.text for block in result.content if block.type == "text")
    return bool(result.is_error), text, result.structured_content or {}


async def measured(client: Client) -> str:
    """An open session with one finished trial."""
    _, _, opened = await call(client, "open_session", dataset="demo", backbone="sasrec")
    session = str(opened["session"])
    failed, text, _ = await call(client, "run_trial", session=session, changes={}, wait_seconds=600)
    assert not failed, text
    return session


async def finalize(client: Client, known: str, **arguments: Any) -> tuple[bool, str, dict[str, Any]]:
    given = {"session": known, "cognition_summary": "Short.", "confirm": True}
    return await call(client, "finalize", **(given | arguments))


async def is_open(client: Client, session: str) -> bool:
    _, _, found = await call(client, "list_sessions")
    return {each["session"]: each["state"] for each in found["sessions"]}[session] == "open"


@pytest.mark.usefixtures("importable_by_workers")
async def test_nothing_happens_until_the_person_agrees(tmp_path: Path, era: str) -> None:
    home = quick_home(tmp_path)
    with fail_after():
        async with connect(home, era) as client:
            session = await measured(client)
        refusals = [
            (Person("decline"), "the person declined to end"),
            (Person("cancel"), "closed the question whether to end"),
            (Person("accept", {"end_session": False}), "the person declined to end"),
            (Person("accept"), "the client's answer to the question whether to end the session cannot be read"),
        ]
        for person, sentence in refusals:
            async with connect(home, era, elicitation_callback=person) as client:
                failed, text, _ = await finalize(client, session)
                assert failed and sentence in text and ASK in text, text
                assert len(person.questions) == 1 and await is_open(client, session)
        person = Person("accept", {})
        async with connect(home, era, elicitation_callback=person) as client:
            for wrong in ({"confirm": False}, {"cognition_summary": " "}, {"session": "nope"}):
                failed, text, _ = await finalize(client, session, **wrong)
                assert failed and not person.questions, text  # nobody is asked for a call that cannot succeed
            failed, text, result = await finalize(client, session)
            assert not failed and result["state"] == "revealed" and result["look"] == 1, text
            assert (await finalize(client, session))[0]  # it has ended: no question, and the refusal of finalize
        (question,) = person.questions
        assert question.mode == "form" and list(question.requested_schema["properties"]) == ["end_session"]
        assert "required" not in question.requested_schema  # some clients decline a form with required fields
        for fact in (session, "1 trial", "t001", "validation NDCG@10", "possible once"):
            assert fact in question.message


@pytest.mark.usefixtures("importable_by_workers")
@pytest.mark.parametrize("switched_off", [True, False])
async def test_a_client_that_cannot_ask_needs_confirm_only(
    switched_off: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = Person("decline")
    if switched_off:
        monkeypatch.setenv(ASK, "no")
    options: dict[str, Any] = {"elicitation_callback": person} if switched_off else {}
    with fail_after():
        async with connect(quick_home(tmp_path), **options) as client:
            session = await measured(client)
            failed, text, _ = await finalize(client, session, confirm=False)
            assert failed and "confirm=true" in text
            failed, text, result = await finalize(client, session)
    assert not failed and result["state"] == "revealed" and not person.questions, text


async def test_the_question_is_no_part_of_the_schema(tmp_path: Path, era: str) -> None:
    async with connect(tmp_path, era) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert "answer" not in tools["finalize"].input_schema["properties"]


def test_the_switch_is_yes_or_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ASK, "maybe")
    with pytest.raises(ServerError, match="must be yes or no"):
        build_server(tmp_path)


@asynccontextmanager
async def process(home: Path, transport: str, mode: str, person: Person) -> AsyncIterator[Client]:
    """A client of a real server process over a transport."""
    if transport == "http":
        with serving(home) as url:
            async with Client(url, mode=mode, elicitation_callback=person) as client:
                yield client
        return
    server = StdioServerParameters(command=sys.executable, args=["-P", "-c", SERVE, str(home)], env=environment())
    async with Client(server, mode=mode, elicitation_callback=person) as client:
        yield client


@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_a_real_server_process_asks_over_its_transport(tmp_path: Path, transport: str, era: str) -> None:
    story, person = Story(tmp_path), Person("decline")
    for changes, ndcg, delta, se, verdict in STORY:
        story.run(changes, finished(ndcg, delta, se, verdict))
    with fail_after():
        async with process(tmp_path, transport, era, person) as client:
            failed, text, _ = await finalize(client, story.session)
            assert failed and "the person declined to end" in text, text
            assert await is_open(client, story.session)
    assert ["7 trials" in question.message for question in person.questions] == [True]
