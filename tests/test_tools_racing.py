"""Racing through the tools, in a real home with real workers: a hopeless trial stops, and can be run to its end."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from virtualmle.memory.records import TrialRecord
from virtualmle.models.config import make_config
from virtualmle.sandbox.protocol import load_protocol
from virtualmle.tools.finalize import freeze
from virtualmle.tools.open_session import open_session
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.training.racing import RaceContext
from virtualmle.training.spec import EPOCH_RANKS, RACE, RANKS, STATE, read_progress
from virtualmle.trials.warm import retire

QUICK = {"epochs": 7, "patience": 7, "hidden_dim": 16, "batch_size": 128, "lr": 5e-3, "num_negatives": 100}
SETTINGS = Settings(max_trials=9, threads=1, with_reflection=False, keep_warm=30)
HOPELESS = {"weight_decay": 0.09}  # of the same family, and three times worse on the demo


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def ws(home: Path) -> Iterator[Workspace]:
    workspace = Workspace.open(home, settings=SETTINGS)
    yield workspace
    let_go(workspace)


def let_go(workspace: Workspace) -> None:
    """Close a workspace and end its warm workers."""
    for session in workspace.memory.sessions.all():
        retire(workspace.inbox(session.id))
    workspace.close()


def without_racing(home: Path) -> Path:
    text = load_protocol().text.replace("| `racing` | true |", "| `racing` | false |")
    assert "| `racing` | false |" in text
    page = home / "full.md"
    page.write_text(text, encoding="utf-8")
    return page


def trial(ws: Workspace, session: str, handle: str) -> TrialRecord:
    return ws.memory.trials.get(session, handle)


def curve(record: TrialRecord) -> list[tuple[int, float, float]]:
    assert record.outcome is not None
    return [(epoch["epoch"], epoch["loss"], epoch["ndcg10"]) for epoch in record.outcome.curve]


def race_of(ws: Workspace, session: str, handle: str) -> RaceContext | None:
    path = ws.trial_directory(session, handle) / RACE
    return RaceContext.model_validate_json(path.read_bytes()) if path.exists() else None


def is_told(ws: Workspace, session: str, handle: str) -> bool:
    """Whether the trial was not stopped, and its worker has said that it will not be kept."""
    context, directory = race_of(ws, session, handle), ws.trial_directory(session, handle)
    said = read_progress(directory).hopeless
    return context is not None and not context.stops and said.startswith("after epoch ") and "a keep needs" in said


def test_a_hopeless_trial_stops_and_runs_to_its_end_when_it_is_run_again(ws: Workspace, home: Path) -> None:
    session = open_session(ws, "demo", "sasrec").session
    first = run_trial(ws, session, QUICK)
    assert first.status == "finished" and race_of(ws, session, first.trial) is None, "no incumbent to race against"

    stopped = run_trial(ws, session, HOPELESS)
    assert (stopped.status, stopped.verdict, stopped.incumbent) == ("stopped", "discard", first.trial)
    record = trial(ws, session, stopped.trial)
    assert record.outcome is not None and record.outcome.metrics == {} and record.outcome.train_seconds > 0
    cause = record.outcome.details["stopped"]
    assert cause["epoch"] == len(record.outcome.curve) < QUICK["epochs"] and cause["bound"] < cause["needed"]
    assert cause["sentence"] in record.outcome.reason
    context = race_of(ws, session, stopped.trial)
    assert context is not None and context.incumbent == first.trial
    assert 0.05 < context.popularity < 0.08, "NDCG@10 of popularity alone, as the demo's log says"
    assert (ws.trial_directory(session, stopped.trial) / STATE).exists()

    whole = run_trial(ws, session, HOPELESS, base=first.trial)
    assert (whole.status, whole.duplicate) == ("finished", False) and whole.trial != stopped.trial
    assert is_told(ws, session, whole.trial), "a person or a rule wants the full run"
    continued = trial(ws, session, whole.trial)
    assert len(curve(continued)) == QUICK["epochs"] and curve(continued)[: cause["epoch"]] == curve(record)

    full = Workspace.open(home / "full", settings=replace(SETTINGS, protocol_path=without_racing(home)))
    other = open_session(full, "demo", "sasrec").session
    base = run_trial(full, other, QUICK)
    bare = run_trial(full, other, HOPELESS)
    assert bare.status == "finished" and is_told(full, other, bare.trial)
    assert bare.metrics == whole.metrics and base.metrics == first.metrics
    for name in (RANKS, EPOCH_RANKS):
        ours, theirs = (ws.trial_directory(session, whole.trial) / name, full.trial_directory(other, bare.trial) / name)
        assert ours.read_bytes() == theirs.read_bytes(), "the continued trial is bit for bit the one without racing"
    let_go(full)


def test_only_trained_trials_of_a_known_family_are_raced(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    quick = {**QUICK, "epochs": 2}
    run_trial(ws, session, quick)
    for changes, expected in (
        ({"num_heads": 2}, True),
        ({"loss": "full_softmax"}, False),  # the first of its family
        ({"transition_weight": 2.0, "num_heads": 4}, True),  # compared by what each is judged by
        ({"transition_weight": 2.0}, False),  # a re-scoring
    ):
        found = run_trial(ws, session, changes, base="t001")
        assert (race_of(ws, session, found.trial) is not None) == expected, changes


def test_the_curves_of_a_closed_session_serve_later_ones(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    quick = {**QUICK, "epochs": 2}
    run_trial(ws, session, quick)
    run_trial(ws, session, {"loss": "full_softmax"}, base="t001")
    run_trial(ws, session, {"transition_weight": 2.0}, base="t001")
    freeze(ws, ws.memory.sessions.get(session), "full softmax was tried", [])
    kept = ws.memory.knowledge().curves("sasrec")
    assert [(row.trial, row.epochs) for row in kept] == [("t001", [1, 2]), ("t002", [1, 2])], "one per trained model"
    assert ws.memory.knowledge().curves("hstu") == []

    for with_memory, expected in ((True, [f"{session}/t002"]), (False, None)):
        later = Workspace.open(ws.home, settings=replace(SETTINGS, with_memory=with_memory, seed=1))
        second = open_session(later, "demo", "sasrec", new=True).session
        run_trial(later, second, quick)
        found = run_trial(later, second, {"loss": "full_softmax", "num_heads": 2}, base="t001")
        context = race_of(later, second, found.trial)
        assert (context and [curve.source for curve in context.curves]) == expected
        let_go(later)


def test_a_remembered_configuration_of_another_engine_is_left_out(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    run_trial(ws, session, {**QUICK, "epochs": 1})
    freeze(ws, ws.memory.sessions.get(session), "one trial", [])
    config: dict[str, Any] = {**make_config("sasrec").model_dump(), "a_knob_of_tomorrow": 1}
    with ws.memory.database.writing() as db:
        db.execute("UPDATE curves SET config = ?", [json.dumps(config)])
    second = open_session(ws, "demo", "sasrec", new=True).session
    run_trial(ws, second, {**QUICK, "epochs": 2})
    assert run_trial(ws, second, {"num_heads": 2}).status == "finished"
