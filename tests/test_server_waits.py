"""The limit of a wait, by client and by environment variable."""

import math
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.types import Implementation

from virtualmle.data.errors import ServerError
from virtualmle.server.app import build_server
from virtualmle.server.waits import OVERRIDE, UNKNOWN_CAP, still_running, wait_cap, wait_override
from virtualmle.tools.results import Budget, TrialObservation
from virtualmle.tools.workspace import Settings, trial_directory
from virtualmle.training.spec import PROGRESS, read_progress, write_model


@pytest.mark.parametrize(
    ("client", "seconds"),
    [
        ("claude-code", 100),
        pytest.param("claude-ai", 45, id="Claude Desktop"),
        pytest.param("cursor-vscode", 45, id="Cursor"),
        ("codex-mcp-client", 240),
        ("Visual Studio Code", 240),
        ("gemini-cli-mcp-client", 540),
        ("opencode", 25),
        pytest.param("virtualmle", math.inf, id="our agent loop"),
        ("some-new-client", UNKNOWN_CAP.seconds),
        pytest.param("", UNKNOWN_CAP.seconds, id="no-name"),
    ],
)
def test_the_limit_of_a_client_is_below_its_own_timeout(client: str, seconds: float) -> None:
    assert wait_cap(client) == seconds


def test_progress_extends_the_wait_of_clients_only_that_are_known_to_follow_it() -> None:
    assert wait_cap("opencode", sends_token=True) == 540
    for client in ("claude-ai", "claude-code", "codex-mcp-client", "some-new-client", "virtualmle"):
        assert wait_cap(client, sends_token=True) == wait_cap(client), f"{client} gives up in spite of progress"
    assert wait_cap("opencode", 7.0, sends_token=True) == 7


def observed(**progress: object) -> TrialObservation:
    budget = Budget(trials_used=1, trials_max=8, train_seconds_used=1.0, train_seconds_max=600.0)
    fields = {"stage": "training", "epoch": 3, "epochs": 30, **progress}
    return TrialObservation(session="s", trial="t007", status="running", progress=fields, budget=budget, next="")


def test_the_answer_of_a_wait_that_is_up_says_how_long_this_client_may_wait() -> None:
    answer = still_running(observed(eta_seconds=90.0), ["t007"], 45.0)
    assert "waits 45 s at most" in answer.next and "wait_trial(session='s', trial='t007')" in answer.next
    assert answer.progress == {
        "stage": "training", "epoch": 3, "epochs": 30, "eta_seconds": 90.0, "wait_limit_seconds": 45.0
    }  # fmt: skip
    unlimited = still_running(observed(), ["t007"], math.inf)
    assert "at most" not in unlimited.next and "wait_limit_seconds" not in (unlimited.progress or {})
    assert "Trials t007 and t008" in still_running(observed(), ["t007", "t008"], 45.0).next


def test_a_trial_that_will_not_be_kept_is_news_with_a_way_out() -> None:
    advice = still_running(observed(hopeless="after epoch 3 of 30 at NDCG@10 0.0100"), ["t007"], 45.0).next
    assert "will not be kept: after epoch 3 of 30" in advice and "keep_best=true" in advice


def test_an_environment_variable_sets_one_limit_for_all_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, "7.5")
    assert wait_cap("claude-code", wait_override()) == 7.5
    monkeypatch.setenv(OVERRIDE, "0")
    assert wait_cap("virtualmle", wait_override()) == 0
    monkeypatch.setenv(OVERRIDE, "inf")
    assert wait_cap("unknown", wait_override()) == math.inf
    monkeypatch.delenv(OVERRIDE)
    assert wait_override() is None


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_a_limit_that_is_not_a_number_of_seconds_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(OVERRIDE, text)
    with pytest.raises(ServerError, match=OVERRIDE):
        wait_override()


@pytest.mark.anyio
async def test_a_wait_returns_when_it_turns_out_that_the_trial_will_not_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    changes = {"epochs": 100, "patience": 20, "hidden_dim": 256, "batch_size": 64}
    server = build_server(tmp_path, Settings(threads=1))
    async with Client(server, client_info=Implementation(name="virtualmle", version="1")) as client:
        opened = (await client.call_tool("open_session", {"dataset": "demo", "backbone": "sasrec"})).structured_content
        assert opened is not None
        session = opened["session"]
        await client.call_tool("run_trial", {"session": session, "changes": changes, "wait_seconds": 0})
        directory = trial_directory(tmp_path, session, "t001")
        answers: list[dict[str, Any]] = []

        async def wait() -> None:
            result = await client.call_tool("wait_trial", {"session": session, "trial": "t001"})
            answers.append(result.structured_content or {"error": result.content})

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            with anyio.fail_after(240):
                while not answers:  # the worker of a race writes this; here nothing races
                    told = read_progress(directory).model_copy(update={"hopeless": "after epoch 1 of 100"})
                    if told.stage == "training":
                        write_model(directory / PROGRESS, told)
                    await anyio.sleep(0.1)
        assert "error" not in answers[0], answers[0]
        assert answers[0]["status"] == "running" and "will not be kept: after epoch 1 of 100" in answers[0]["next"]
        again = await client.call_tool("wait_trial", {"session": session, "trial": "t001", "wait_seconds": 1.0})
        assert (again.structured_content or {})["status"] == "running", "old news ends no wait"
        await client.call_tool("cancel_trial", {"session": session, "trial": "t001"})

