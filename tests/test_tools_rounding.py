"""Rounding to the resolution of a knob, over the tools: no two trials may differ in less than it."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp import Client
from mcp.types import Implementation

from tests.quick_home import quick_home
from virtualmle.server.app import build_server
from virtualmle.tools.open_session import open_session
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.sweep import sweep
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.tools.write_reflection import write_reflection

TINY = {"epochs": 1, "hidden_dim": 16, "batch_size": 512}


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace.open(tmp_path, settings=Settings(max_trials=6, threads=1))
    yield workspace
    workspace.close()


def test_a_number_that_differs_by_less_than_the_resolution_is_the_same_trial_at_no_cost(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    first = run_trial(ws, session, {**TINY, "lr": 0.00030000001})
    assert first.rounded == "lr=0.00030000001 was rounded to 0.0003 (2 significant digits)"
    assert (first.changes["lr"], ws.memory.trials.get(session, first.trial).config["lr"]) == (3e-4, 3e-4)
    for lr in (3e-4, 0.00030000002, 0.000304):
        again = run_trial(ws, session, {**TINY, "lr": lr}, base="default")
        assert (again.duplicate, again.trial, again.budget.trials_used) == (True, first.trial, 1)
        assert ("was rounded to 0.0003" in again.rounded) == (lr != 3e-4)


def test_settings_of_a_sweep_are_rounded_and_equal_ones_measured_once(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    trained = run_trial(ws, session, TINY)
    write_reflection(ws, session, trained.trial, helped="unclear", dimension="capacity", lesson="small and quick")
    swept = sweep(ws, session, [{"transition_weight": weight} for weight in (2.0, 2.0000001, 2.04, 4)])
    assert swept.sweep is not None and swept.sweep.settings == 2
    assert swept.rounded.startswith("transition_weight=2.0000001 was rounded to 2.0 (2 significant digits")
    again = sweep(ws, session, [{"transition_weight": 4.0000001}], base=trained.trial)
    assert again.duplicate and again.trial == swept.trial and "4.0000001 was rounded to 4.0" in again.rounded


@pytest.mark.anyio
async def test_a_client_that_waits_for_the_trial_is_told_of_the_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    server = build_server(quick_home(tmp_path), Settings(threads=1))
    async with Client(server, client_info=Implementation(name="virtualmle", version="1")) as client:
        brief = (await client.call_tool("open_session", {"dataset": "demo", "backbone": "sasrec"})).structured_content
        assert brief is not None
        changes = {"hidden_dim": 20, "transition_weight": 1}
        answer = await client.call_tool("run_trial", {"session": brief["session"], "changes": changes})
    assert answer.structured_content is not None
    assert answer.structured_content["status"] == "finished"
    assert answer.structured_content["rounded"] == "hidden_dim=20 was rounded to 16 (multiples of 8)"

