"""Trials that another session of the home has measured: when they are reused, and what that changes."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from virtualmle.tools.finalize import finalize
from virtualmle.tools.open_session import open_session
from virtualmle.tools.read_memory import read_memory
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.training import spec as spec_module
from virtualmle.training.products import has_bfloat16_instructions
from virtualmle.training.spec import CHECKPOINT, RANKS, USERS
from virtualmle.trials.warm import retire

TINY = {"epochs": 1, "hidden_dim": 16, "batch_size": 512}
PRIOR = {"transition_weight": 8.0}
SOURCE = "demo-sasrec-1"
SAME = {"metrics", "metrics_se", "delta", "base_delta", "verdict", "reason", "parameters", "curve", "train_ndcg10"}


def options(**changes: Any) -> Settings:
    fixed = {"threads": 1, "with_reflection": False, "keep_warm": 60, "device": "cpu", "max_sessions": 9}
    return Settings(**{**fixed, **changes})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which a session has measured TINY and TINY with PRIOR."""
    home = tmp_path_factory.mktemp("measured") / "home"
    ws = Workspace.open(home, settings=options())
    assert open_session(ws, "demo", "sasrec").session == SOURCE
    for changes in (TINY, PRIOR):
        assert run_trial(ws, SOURCE, changes).verdict == "keep"
    retire(ws.inbox(SOURCE))
    ws.close()
    return home


@pytest.fixture
def home(measured: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "home"))


@pytest.fixture
def ws(home: Path) -> Iterator[Workspace]:
    yield from workspace(home)


def workspace(home: Path, **changes: Any) -> Iterator[Workspace]:
    opened = Workspace.open(home, settings=options(**changes))
    yield opened
    for session in opened.memory.sessions.all():
        retire(opened.inbox(session.id))
    opened.close()


def second_session(ws: Workspace) -> str:
    return open_session(ws, "demo", "sasrec", new=True).session


def charged(ws: Workspace, session: str, handle: str) -> float:
    """The seconds that a trial has cost the budget, without rounding."""
    outcome = ws.memory.trials.get(session, handle).outcome
    return outcome.train_seconds if outcome else 0.0


def test_an_equal_trial_costs_no_seconds_and_equals_one_that_was_run(ws: Workspace, home: Path) -> None:
    session = second_session(ws)
    reused = run_trial(ws, session, TINY)
    assert (reused.status, reused.verdict, reused.reused_from) == ("finished", "keep", f"{SOURCE}/t001")
    assert reused.budget.trials_used == 1 and reused.budget.train_seconds_used == 0 == reused.train_seconds
    better = run_trial(ws, session, PRIOR)
    assert better.reused_from == f"{SOURCE}/t002" and better.base == "t001" and not better.rescored

    for apart in workspace(home, with_memory=False):  # reuses nothing, and so trains
        other = second_session(apart)
        for handle, changes, found in (("t001", TINY, reused), ("t002", PRIOR, better)):
            run = run_trial(apart, other, changes)
            assert run.reused_from is None and charged(apart, other, handle) > 0
            assert run.model_dump(include=SAME) == found.model_dump(include=SAME)
            for file in (RANKS, USERS, CHECKPOINT):
                directories = (ws.trial_directory(name, handle) for name in (session, other))
                assert len({(directory / file).read_bytes() for directory in directories}) == 1
    row = read_memory(ws, session, "trajectory").content["trials"][0]
    assert row["reused_from"] == f"{SOURCE}/t001"
    outcome = ws.memory.trials.get(session, "t001").outcome
    assert outcome is not None and outcome.train_seconds == 0
    assert outcome.details["saved_seconds"] == charged(ws, SOURCE, "t001"), "its cost, for comparisons of agents"


def test_a_reused_trial_is_re_scored_and_selected_like_any_other_when_its_source_is_gone(ws: Workspace) -> None:
    session = second_session(ws)
    run_trial(ws, session, TINY)
    shutil.rmtree(ws.trial_directory(SOURCE, "t001").parent)
    scored = run_trial(ws, session, PRIOR)
    assert scored.reused_from is None and scored.rescored, "its source is gone, but the reused model is here"
    final = finalize(ws, session, "transitions carry this dataset", confirm=True)
    assert (final.selected, final.state, final.look) == (scored.trial, "withheld", 1), f"{SOURCE} is open"


def broken(ws: Workspace, damage: str) -> None:
    directory = ws.trial_directory(SOURCE, "t001")
    if damage == "deleted":
        shutil.rmtree(directory)
    elif damage == "no checkpoint":
        (directory / CHECKPOINT).unlink()
    else:
        ranks = directory / RANKS
        content = ranks.read_bytes()
        ranks.unlink()
        ranks.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("damage", ["deleted", "no checkpoint", "one bit of the ranks"])
def test_a_source_that_is_not_intact_is_trained_again(ws: Workspace, damage: str) -> None:
    session = second_session(ws)
    broken(ws, damage)
    found = run_trial(ws, session, TINY)
    assert found.reused_from is None and charged(ws, session, found.trial) > 0


@pytest.mark.parametrize(
    "changes",
    [{"with_memory": False}, {"seed": 1}, {"threads": 2}, {"memory_from": ("elsewhere",)}],
    ids=["no memory", "another seed", "other threads", "memory of other datasets"],
)
def test_a_session_under_other_conditions_reuses_nothing(
    home: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtualmle.tools.open_session._refuse_unknown_sources", lambda ws: None)
    for ws in workspace(home, **changes):
        assert run_trial(ws, second_session(ws), TINY).reused_from is None


def test_another_engine_reuses_nothing(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtualmle.tools.reuse.engine_version", lambda: spec_module.engine_version() + ".1")
    assert run_trial(ws, second_session(ws), TINY).reused_from is None


@pytest.mark.skipif(not has_bfloat16_instructions(), reason="this processor has no bfloat16 instructions")
def test_trials_with_products_of_another_type_are_not_reused(home: Path) -> None:
    changes = {**TINY, "loss": "full_softmax"}
    found = []
    for device in ("cpu", "cpu", "cpu:float32", "cpu:float32", "cpu"):
        for ws in workspace(home, device=device):
            trial = run_trial(ws, session := second_session(ws), changes)
            outcome = ws.memory.trials.get(session, trial.trial).outcome
            assert outcome is not None
            found.append((outcome.details["device"], trial.reused_from is not None))
    fast, exact = "cpu (bfloat16 products)", "cpu"
    assert found == [(fast, False), (fast, True), (exact, False), (exact, True), (fast, True)]


def test_the_protocol_can_turn_reuse_off(home: Path, ws: Workspace) -> None:
    text = ws.protocol.text.replace("| `reuse_trials` | true |", "| `reuse_trials` | false |")
    (home / "SANDBOX.md").write_text(text, encoding="utf-8")
    for narrowed in workspace(home):
        assert run_trial(narrowed, second_session(narrowed), TINY).reused_from is None


def test_a_process_killed_while_it_copies_leaves_a_trial_that_can_be_repeated(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Ends the call as a kill would, before the result is written."""

    def killed(*_: object, **__: object) -> None:
        raise Killed

    session = second_session(ws)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("virtualmle.trials.reuse.write_signed_result", killed)
        run_trial(ws, session, TINY)
    monkeypatch.setattr("virtualmle.trials.launcher.START_GRACE_SECONDS", 0.0)
    again = run_trial(ws, session, TINY)
    assert (again.trial, again.reused_from) == ("t002", f"{SOURCE}/t001")
    assert ws.memory.trials.get(session, "t001").status == "crashed"
