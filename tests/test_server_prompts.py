"""Prompts, completions and the answers to a client's mistakes, in both protocol eras and over a real stdio server."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.types import INVALID_PARAMS, PromptReference, ResourceTemplateReference

from tests.mcp_worlds import ERAS, connect
from tests.report_world import STORY, Story, finished
from tests.test_server_stdio import GIVE_UP_SECONDS, request, started
from virtualmle.server.completions import MOST, completion
from virtualmle.server.identity import ICON

pytestmark = pytest.mark.anyio
Call = Callable[[Client], Awaitable[Any]]


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A home with a session of seven trials."""
    made = Story(tmp_path)
    for changes, ndcg, delta, se, verdict in STORY:
        made.run(changes, finished(ndcg, delta, se, verdict))
    return made


async def error_of(call: Awaitable[Any]) -> MCPError:
    with pytest.raises(MCPError) as caught:
        await call
    return caught.value


async def prompt_text(client: Client, name: str, **arguments: str) -> str:
    content = (await client.get_prompt(name, arguments)).messages[0].content
    assert content.type == "text"
    return content.text


async def test_every_prompt_has_described_arguments_and_a_text(story: Story, era: str) -> None:
    given = {"dataset": "demo", "backbone": "sasrec", "session": story.session, "trial": "t005"}
    async with connect(story.home, era) as client:
        prompts = (await client.list_prompts()).prompts
        assert [prompt.name for prompt in prompts] == ["tune", "resume", "review"]
        for prompt in prompts:
            arguments = prompt.arguments or []
            assert prompt.title and prompt.description and all(argument.description for argument in arguments)
            values = {argument.name: given[argument.name] for argument in arguments}
            text = await prompt_text(client, prompt.name, **values)
            assert all(repr(value) in text for value in values.values()), text


async def test_a_backbone_in_any_case_or_left_empty_is_understood(tmp_path: Path) -> None:
    async with connect(tmp_path) as client:
        assert "'sasrec'" in await prompt_text(client, "tune", dataset="demo", backbone="SASRec")
        assert "'hstu'" in await prompt_text(client, "tune", dataset="demo", backbone="")


def completed_wrongly(client: Client, ref: PromptReference | ResourceTemplateReference, name: str) -> Awaitable[Any]:
    return client.complete(ref, {"name": name, "value": ""})


def prompt(name: str, **arguments: str) -> Call:
    return lambda client: client.get_prompt(name, arguments)


PROMPT, TEMPLATE = partial(PromptReference, type="ref/prompt"), partial(ResourceTemplateReference, type="ref/resource")
MISTAKES: list[tuple[Call, str]] = [
    (prompt("walk"), "no prompt 'walk'; the prompts are tune"),
    (prompt("tune"), "the prompt tune needs dataset"),
    (lambda c: c.get_prompt("tune"), "the prompt tune needs dataset"),
    (prompt("tune", dataset=""), "the prompt tune needs dataset"),
    (prompt("tune", dataset="demo", seed="7"), "tune has no argument 'seed'"),
    (prompt("tune", dataset="nope"), "no dataset 'nope'; the datasets are demo"),
    (prompt("tune", dataset="demo", backbone="bert"), "the backbones are sasrec and hstu"),
    (prompt("resume", session="nope"), "unknown session 'nope'"),
    (prompt("review", session="office-sasrec-1", trial="t9"), "unknown trial 't9'"),
    (lambda c: c.call_tool("walk", {}), "no tool 'walk'; the tools are open_session"),
    (lambda c: c.list_tools(cursor="x"), "the cursor 'x'"),
    (lambda c: c.list_prompts(cursor="x"), "the cursor 'x'"),
    (lambda c: c.list_resources(cursor="x"), "the cursor 'x'"),
    (lambda c: c.list_resource_templates(cursor="x"), "the cursor 'x'"),
    (lambda c: completed_wrongly(c, PROMPT(name="walk"), "dataset"), "no prompt 'walk'"),
    (lambda c: completed_wrongly(c, PROMPT(name="tune"), "seed"), "tune has no argument 'seed'"),
    (lambda c: completed_wrongly(c, TEMPLATE(uri="file:///{path}"), "path"), "no resource template 'file:///{path}'"),
]
"""A client's mistake, and part of the sentence that answers it."""


async def test_a_mistake_is_answered_with_invalid_params_and_a_sentence(
    story: Story, era: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect(story.home, era) as client:
        for call, sentence in MISTAKES:
            error = await error_of(call(client))
            assert error.code == INVALID_PARAMS and sentence in error.message, error
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_an_error_is_short_whatever_it_quotes(tmp_path: Path) -> None:
    long = "x" * 50_000
    async with connect(tmp_path) as client:
        for call in (client.get_prompt(long), client.call_tool(long, {}), client.list_tools(cursor=long),
                     client.get_prompt("tune", {"dataset": long}), client.get_prompt("tune", {long: "x"})):  # fmt: skip
            assert len((await error_of(call)).message) < 400


async def test_lists_are_the_same_without_a_cursor_and_with_an_empty_one(tmp_path: Path, era: str) -> None:
    async with connect(tmp_path, era) as client:
        assert (await client.list_tools()).tools == (await client.list_tools(cursor="")).tools
        assert (await client.list_prompts()).prompts == (await client.list_prompts(cursor="")).prompts
        assert (await client.list_resources()).resources == (await client.list_resources(cursor="")).resources
        assert (await client.list_resource_templates()).next_cursor is None


def ask_stdio(home: Path, *lines: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """The answers of a real server to requests in one session, and what it wrote to stderr until it ended."""
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    with started(home) as (peer, process):
        assert process.stdin is not None and process.stderr is not None
        peer.ask(request(0, "initialize", **hello))
        peer.say(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}')
        answers = [peer.ask(line) for line in lines]
        process.stdin.close()
        process.wait(timeout=GIVE_UP_SECONDS)
        return answers, process.stderr.read()


def test_a_real_server_logs_nothing_for_a_clients_mistakes(tmp_path: Path) -> None:
    lines = [
        request(1, "prompts/get", name="tune"),
        request(2, "prompts/get", name="walk"),
        request(3, "prompts/get", name="tune", arguments={"dataset": 7}),
        request(4, "prompts/get", name=7),
        request(5, "prompts/get", name="tune", arguments=[1]),
        request(6, "tools/call", name="walk"),
        request(7, "tools/call", name="list_sessions", arguments={"verbose": True}),
        request(8, "tools/call", name="read_memory", arguments={"session": "nope"}),
        request(9, "tools/call", name="read_memory", arguments={"session": 7}),
        request(10, "resources/read", uri="session://nope/trajectory.md"),
        request(11, "resources/read", uri="session://nope/best-so-far.png"),
        request(12, "resources/read", uri="file:///etc/passwd"),
        request(13, "resources/read", uri="session://..%2F..%2Fvault/trajectory"),
        request(14, "tools/list", cursor="x"),
        request(15, "tools/list", cursor=7),
        request(16, "completion/complete", ref={"type": "ref/prompt", "name": "walk"}, argument={"name": "x"}),
        request(17, "completion/complete", ref={"type": "ref/resource", "uri": "x"}, argument={"name": "x"}),
        request(18, "no/such/method"),
        request(19, "resources/read"),
    ]  # fmt: skip
    answers, log = ask_stdio(tmp_path, *lines)
    assert log == b"", log.decode()
    codes = {answer["id"]: answer["error"]["code"] for answer in answers if "error" in answer}
    not_found = dict.fromkeys((10, 11, 12, 13), -32002)  # as the handshake's protocol versions define
    refused = dict.fromkeys((1, 2, 3, 4, 5, 6, 14, 15, 16, 17, 19), INVALID_PARAMS)
    assert codes == refused | not_found | {18: -32601}
    assert all(answer["result"]["isError"] for answer in answers if answer["id"] in (7, 8, 9))
    sentences = {answer["id"]: answer["error"]["message"] for answer in answers if "error" in answer}
    assert "arguments.dataset" in sentences[3] and "do not have the form" in sentences[4]
    assert "no resource 'file:///etc/passwd'" in sentences[12] and "unknown session 'nope'" in sentences[11]
    assert "pydantic" not in json.dumps(sentences) and "Traceback" not in json.dumps(answers)


async def completed(client: Client, owner: str, name: str, typed: str = "", **known: str) -> list[str]:
    is_template = "://" in owner
    ref = (
        ResourceTemplateReference(type="ref/resource", uri=owner)
        if is_template
        else PromptReference(type="ref/prompt", name=owner)
    )
    found = (await client.complete(ref, {"name": name, "value": typed}, context_arguments=known or None)).completion
    assert found.total == len(found.values) and found.has_more is False
    return list(found.values)


async def test_arguments_are_completed_for_prompts_and_templates(story: Story, era: str) -> None:
    trial = "session://{session}/trials/{trial}.md"
    async with connect(story.home, era) as client:
        assert client.server_capabilities.completions is not None
        assert await completed(client, "tune", "dataset") == ["demo"]
        assert await completed(client, "tune", "dataset", "x") == []
        assert await completed(client, "tune", "backbone", "S") == ["sasrec"]
        assert await completed(client, "resume", "session", "off") == ["office-sasrec-1"]
        for owner in ("review", trial):
            assert await completed(client, owner, "session") == ["office-sasrec-1"]
            handles = await completed(client, owner, "trial", "t00", session=story.session)
            assert handles == [f"t00{number}" for number in range(7, 0, -1)]  # the newest first
            assert await completed(client, owner, "trial") == []  # of which session?
            assert await completed(client, owner, "trial", session="nope") == []
        for template in (await client.list_resource_templates()).resource_templates:
            assert story.session in await completed(client, template.uri_template, "session")


async def test_a_session_without_memory_completes_only_the_trial_that_it_shows(tmp_path: Path) -> None:
    story = Story(tmp_path)
    forgetful = story.memory.sessions.get(story.session).model_copy(update={"id": "", "with_memory": False})
    story.session = story.memory.sessions.open(forgetful).id
    for changes, ndcg, delta, se, verdict in STORY[:3]:
        story.run(changes, finished(ndcg, delta, se, verdict))
    async with connect(tmp_path) as client:
        assert await completed(client, "review", "trial", session=story.session) == ["t003"]


def test_a_completion_has_at_most_100_values_and_says_that_there_are_more() -> None:
    found = completion([f"t{number:03}" for number in range(250)], "t")
    assert (len(found.values), found.total, found.has_more) == (MOST, 250, True)
    assert completion(["Demo", "other"], "dE").values == ["Demo"]


async def test_the_server_says_who_it_is_with_a_small_icon(tmp_path: Path, era: str) -> None:
    async with connect(tmp_path, era) as client:
        about = client.server_info
        assert about.title == "VirtualMLE" and "recommenders" in (about.description or "")
        assert about.icons == [ICON] and ICON.src.startswith("data:image/svg+xml;base64,")
        assert len(about.model_dump_json(exclude_none=True)) < 600  # the newest protocol repeats it in every answer


