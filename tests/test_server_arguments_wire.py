"""Arguments over the wire, with both protocol versions: the strict forms run, and refusals are ours alone."""

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from tests.quick_home import quick_home
from tests.test_server_tools import call, connect, refusal
from virtualmle.memory.store import Memory

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["auto", "legacy"])
async def client(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Client]:
    """One client per protocol version, over a home with short trials."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    async with connect(quick_home(tmp_path / "home"), request.param) as connected:
        yield connected


async def test_a_session_in_the_strict_forms(client: Client) -> None:
    session = str((await call(client, "open_session", dataset="demo", backbone="SASRec", new=None))["session"])
    nothing = {"dimension": "", "direction": "unknown", "size": 0.0, "reason": ""}
    common = {"session": session, "hypothesis": nothing, "base": ""}
    first = await call(
        client, "run_trial", **common, changes={}, override_reason="", wait_seconds=None,
        changes_list=[{"knob": "hidden_dim", "value": "24.0"}, {"knob": "transition_weight", "value": 4.0}],
    )  # fmt: skip
    assert (first["status"], first["changes"]) == ("finished", {"hidden_dim": 24, "transition_weight": 4.0})
    assert not first.get("hypothesis")
    same = await call(client, "run_trial", **common, changes={"hidden_dim": 24.0, "transition_weight": "4"})
    assert same["duplicate"] and same["trial"] == first["trial"]
    rule = {"kind": "insight", "statement": "", "condition": "", "evidence": []}
    await call(
        client, "write_reflection", session=session, trial="t001", helped="Unclear", dimension=["capacity", "scoring"],
        lesson="Wider, with a prior.", rule=rule, evidence="t001", amend="false",
    )  # fmt: skip
    texts = ["transition_weight=2", "transition_weight=8"]
    swept = await call(client, "sweep", **common, settings=[], settings_list=texts)
    assert (swept["status"], swept["sweep"]["settings"]) == ("finished", 2)


async def test_trial_handles_are_read_in_any_case_and_answered_in_their_own(tmp_path: Path) -> None:
    async with connect(quick_home(tmp_path / "home")) as client:
        session = str((await call(client, "open_session", dataset="demo", backbone="sasrec"))["session"])
        await call(client, "run_trial", session=session, changes={"hidden_dim": 24})
        for named in ("T001", " t001 ", "T001, t001"):
            assert (await call(client, "wait_trial", session=session, trial=named))["trial"] == "t001"
        assert (await call(client, "cancel_trial", session=session, trial="T001"))["trial"] == "t001"
        view = await call(client, "read_memory", session=f" {session.upper()} ", view="trial", trial="T001")
        assert view["content"]["trial"] == "t001"
        rule = {"kind": "insight", "statement": "Narrow models are quick.", "evidence": ["T001"]}
        reflection = {"helped": "unclear", "dimension": "capacity", "lesson": "Narrow.", "evidence": "T001"}
        receipt = await call(client, "write_reflection", session=session, trial="T001", rule=rule, **reflection)
        assert receipt["trial"] == "t001"
        swept = await call(client, "sweep", session=session, base="T001", settings_list=["transition_weight=2"])
        assert swept["base"] == "t001"
        assert "unknown trial 'T009'" in await refusal(client, "wait_trial", session=session, trial="T009")
    with Memory(tmp_path / "home" / "memory.db") as memory:
        assert [stored.evidence for stored in memory.reflections.all(session)] == [["t001"]]
        assert [stored.evidence for stored in memory.rules.all()] == [["t001"]]


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("wait_trial", {"session": "s", "trial": "true"}, "'s'"),
        ("wait_trial", {"session": "s", "trial": "[]"}, "'s'"),
        ("run_trial", {"session": "s", "changes_list": [{"knob": "lr", "value": None}]}, "changes_list[1] needs value"),
        ("run_trial", {"session": "s", "wait_seconds": []}, "wait_seconds=[] is not a number"),
        ("list_sessions", {"home": "/"}, "list_sessions has no argument 'home'"),
    ],
)
async def test_a_refusal_has_no_word_of_the_library(
    client: Client, tool: str, arguments: dict[str, Any], said: str
) -> None:
    text = await refusal(client, tool, **arguments)
    assert said in text and "Error executing tool" not in text and "pydantic" not in text and "\n" not in text


async def test_titles_and_hints_of_the_tools(client: Client) -> None:
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    hints = {name: tool.annotations for name, tool in tools.items() if tool.annotations}
    assert all(tool.title and tool.title.lower().replace(" ", "_") == name for name, tool in tools.items())
    assert hints.keys() == tools.keys() and all(hint.open_world_hint is False for hint in hints.values())
    assert {name for name, hint in hints.items() if hint.idempotent_hint} == {"cancel_trial", "finalize"}
    changing = [hint for hint in hints.values() if not hint.read_only_hint]
    assert all(hint.destructive_hint is not None for hint in changing), "the default of this hint is true"
