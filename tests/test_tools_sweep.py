"""The tool sweep in a real home with real workers: what it records, what it refuses, and what interrupts it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.quick_home import environment
from tests.waiting import until
from virtualmle.data.errors import AdmissionError, ConfigError, SweepError
from virtualmle.memory.records import TrialRecord
from virtualmle.models.config import fingerprint
from virtualmle.tools.cancel_trial import cancel_trial
from virtualmle.tools.finalize import finalize
from virtualmle.tools.open_session import open_session
from virtualmle.tools.read_memory import read_memory
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.sweep import sweep
from virtualmle.tools.sync import adopt_all
from virtualmle.tools.views import TrajectoryView, TrialView
from virtualmle.tools.wait_trial import wait_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.training.spec import CHECKPOINT, RANKS, RESULT, SWEPT_RANKS
from virtualmle.trials.lease import read_lease
from virtualmle.trials.warm import retire

TINY = {"epochs": 1, "hidden_dim": 16, "batch_size": 512}
SESSION = "demo-sasrec-1"
SETTINGS: list[dict[str, Any]] = [
    {"transition_weight": 4.0},
    {"transition_weight": 4.0, "cooccurrence_weight": 4.0},
    {"popularity_weight": 1.0},
    {"transition_weight": 4},  # as the first
]
MANY = [{"transition_weight": float(n), "cooccurrence_weight": 1.0} for n in range(1, 21)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose session has one small trained trial."""
    home = tmp_path_factory.mktemp("trained") / "home"
    ws = Workspace.open(home, settings=Settings(threads=1, with_reflection=False))
    assert open_session(ws, "demo", "sasrec").session == SESSION
    assert run_trial(ws, SESSION, TINY).verdict == "keep"
    ws.close()
    return home


def test_a_setting_that_changes_nothing_is_measured_already_and_costs_nothing(home: Path) -> None:
    ws = Workspace.open(home, settings=Settings(threads=1, with_reflection=False))
    run_trial(ws, SESSION, {**TINY, "epochs": 300, "patience": 60}, wait_seconds=0)
    until(lambda: (wait_trial(ws, SESSION, "t002", 0).progress or {}).get("epoch", 0) >= 2)
    ended = cancel_trial(ws, SESSION, "t002", keep_best=True)
    assert ended.status == "finished", "run_trial with its configuration would train on"
    for base in ("t001", "t002"):
        found = sweep(ws, SESSION, [{}], base=base)
        assert (found.duplicate, found.trial) == (True, base)
    assert len(ws.memory.trials.all(SESSION)) == 2
    ws.close()


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "home"))


@pytest.fixture
def ws(home: Path) -> Iterator[Workspace]:
    workspace = Workspace.open(home, settings=Settings(threads=1, with_reflection=False, keep_warm=60))
    yield workspace
    for session in workspace.memory.sessions.all():
        retire(workspace.inbox(session.id))
    workspace.close()


def recorded(ws: Workspace, handle: str = "t002") -> TrialRecord:
    return ws.memory.trials.get(SESSION, handle)


def test_a_sweep_is_one_trial_with_the_configuration_of_its_best_setting(ws: Workspace) -> None:
    found = sweep(ws, SESSION, SETTINGS)
    assert (found.trial, found.status, found.verdict, found.base) == ("t002", "finished", "keep", "t001")
    assert found.budget.trials_used == 2 and found.rescored
    outcome = recorded(ws).outcome
    assert outcome and 0 < outcome.train_seconds < 60
    assert found.reason.endswith("keep needs z >= 1 + 1.48 for the best of 3 settings")
    assert found.changes == {"transition_weight": 4.0, "cooccurrence_weight": 4.0}
    assert found.sweep is not None and found.sweep.settings == 3 and len(found.sweep.table.splitlines()) == 4
    assert len(found.model_dump_json()) < 2048

    trial, base = recorded(ws), recorded(ws, "t001")
    assert trial.config == {**base.config, **found.changes} and trial.config_hash == fingerprint(trial.config)
    assert trial.train_hash == base.train_hash
    view = TrialView.model_validate(read_memory(ws, SESSION, "trial", trial="t002").content)
    row = TrajectoryView.model_validate(read_memory(ws, SESSION, "trajectory").content).trials[-1]
    assert row.swept == view.swept and [r.ndcg for r in view.swept if r.delta == found.base_delta["delta"]] == [
        found.metrics["ndcg@10"]
    ]
    state = read_memory(ws, SESSION, "state").content
    assert state["effects"]["popularity_weight"]["n"] == 1, "a setting that was not chosen is evidence as well"
    assert "popularity_weight" not in state["untried"].get("scoring", [])


def test_the_settings_of_a_sweep_are_measured_as_by_trials_of_their_own(ws: Workspace) -> None:
    sweep(ws, SESSION, SETTINGS)
    alone = open_session(ws, "demo", "sasrec", new=True).session
    run_trial(ws, alone, TINY)  # reused from the first session, with its checkpoint
    rows = read_memory(ws, SESSION, "trial", trial="t002").content["swept"]
    for setting, row in zip(SETTINGS, rows, strict=False):
        single = run_trial(ws, alone, setting, base="t001")
        assert single.reused_from == ("demo-sasrec-1/t002" if "cooccurrence_weight" in setting else None)
        assert single.metrics["ndcg@10"] == row["ndcg@10"]
        assert single.base_delta is not None and single.base_delta["delta"] == pytest.approx(row["delta"], abs=1e-15)


def test_what_a_sweep_has_measured_is_a_duplicate_later(ws: Workspace) -> None:
    first = sweep(ws, SESSION, SETTINGS)
    assert sweep(ws, SESSION, SETTINGS[:2], base="t001").duplicate
    best = run_trial(ws, SESSION, SETTINGS[1], base="t001")
    assert best.duplicate and best.trial == "t002" and "already had this configuration" in best.next
    other = run_trial(ws, SESSION, SETTINGS[2], base="t001")
    ndcg = read_memory(ws, SESSION, "trial", trial="t002").content["swept"][2]["ndcg@10"]
    assert other.duplicate and f"has measured this setting; nothing was spent (NDCG@10 {ndcg:.4f}" in other.next
    wider = sweep(ws, SESSION, [*SETTINGS, {"transition_weight": 9.0}], base="t001")
    assert wider.sweep is not None and (wider.sweep.settings, wider.sweep.left_out) == (1, ["t002"])
    assert first.metrics["ndcg@10"] > 0 and wider.budget.trials_used == 3


def test_the_selected_sweep_is_examined_with_the_configuration_of_its_best_setting(ws: Workspace) -> None:
    found = sweep(ws, SESSION, SETTINGS)
    final = finalize(ws, SESSION, "priors carry this dataset", confirm=True)
    assert (final.selected, final.validation) == ("t002", found.metrics)
    assert final.config.items() >= {**TINY, **found.changes}.items()
    assert final.test is not None and final.test["ndcg@10"] > 0.1, "the bare model reaches .02"
    assert final.selection_inflation == pytest.approx(found.ndcg10_se * (2 * np.log(4)) ** 0.5), "of 1 + 3 settings"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"settings": [{"lr": 0.01}]}, SweepError, "setting 1 changes lr.*run_trial"),
        ({"settings": []}, SweepError, "settings is empty"),
        ({"settings": [{"rerank_top": 10 + n} for n in range(25)]}, SweepError, "25 settings exceed max_sweep = 24"),
        ({"settings": [{"transition_weigth": 2}]}, ConfigError, "did you mean transition_weight"),
        ({"settings": SETTINGS, "base": "default"}, SweepError, "base='default' has no trained model yet"),
    ],
    ids=["training knob", "empty", "too many", "unknown knob", "untrained base"],
)  # fmt: skip
def test_a_refused_sweep_costs_nothing(
    ws: Workspace, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sweep(ws, SESSION, **arguments)
    assert [trial.handle for trial in ws.memory.trials.all(SESSION)] == ["t001"]


def test_a_sweep_without_any_trained_trial_or_checkpoint_is_refused(ws: Workspace) -> None:
    empty = open_session(ws, "demo", "hstu").session
    with pytest.raises(SweepError, match="no trained model yet.*run_trial"):
        sweep(ws, empty, SETTINGS)
    (ws.trial_directory(SESSION, "t001") / CHECKPOINT).unlink()
    with pytest.raises(SweepError, match="checkpoint of base='incumbent' is missing"):
        sweep(ws, SESSION, SETTINGS)


def start_suspended(ws: Workspace) -> int:
    """Start a sweep and suspend its worker at once, so that a test can interrupt it; returns the worker's pid."""
    started = sweep(ws, SESSION, MANY, wait_seconds=0)
    lease = read_lease(ws.trial_directory(SESSION, "t002"))
    assert lease is not None
    os.kill(lease.pid, signal.SIGSTOP)
    assert started.status == "running" and started.sweep is None
    return lease.pid


def test_a_repeated_call_finds_the_running_sweep_and_cancelling_stops_it(ws: Workspace) -> None:
    start_suspended(ws)
    again = sweep(ws, SESSION, MANY, wait_seconds=0)
    assert (again.trial, again.duplicate, again.status) == ("t002", True, "running")
    with pytest.raises(AdmissionError, match="t002 is running"):
        sweep(ws, SESSION, [*MANY, {"popularity_weight": 2.0}])
    assert cancel_trial(ws, SESSION, "t002").status == "cancelled"
    repeated = sweep(ws, SESSION, MANY[:2])
    assert (repeated.trial, repeated.status) == ("t003", "finished"), "cancelled settings may be tried again"


def test_a_killed_worker_is_a_crash_of_the_sweep_and_the_session_continues(ws: Workspace) -> None:
    os.kill(start_suspended(ws), signal.SIGKILL)
    crashed = wait_trial(ws, SESSION, "t002")
    assert (crashed.status, crashed.verdict, crashed.sweep) == ("crashed", "crash", None)
    assert "SIGKILL" in crashed.reason
    assert sweep(ws, SESSION, MANY[:2]).status == "finished"


def test_a_server_that_starts_later_records_a_sweep_once(home: Path) -> None:
    first = Workspace.open(home, settings=Settings(threads=1))
    pid = start_suspended(first)
    first.close()
    second = Workspace.open(home, settings=Settings(threads=1))
    assert adopt_all(second) == [f"{SESSION}/t002"]
    os.kill(pid, signal.SIGCONT)
    found = wait_trial(second, SESSION, "t002")
    assert found.status == "finished" and found.sweep is not None and found.sweep.settings == 20
    assert adopt_all(second) == [] and recorded(second).config == {**recorded(second, "t001").config, **found.changes}
    second.close()


def test_a_warm_worker_runs_a_sweep_and_further_sweeps_build_on_it(home: Path) -> None:
    ws = Workspace.open(home, settings=Settings(threads=1, keep_warm=60))
    sweep(ws, SESSION, SETTINGS)
    found = sweep(ws, SESSION, [{"popularity_weight": 0.5}, {"fusion": "rerank", "rerank_top": 20}])
    leases = [read_lease(ws.trial_directory(SESSION, handle)) for handle in ("t002", "t003")]
    assert leases[0] is not None and leases[1] is not None and leases[0].pid == leases[1].pid
    assert found.base == "t002" and recorded(ws, "t003").config["cooccurrence_weight"] == 4.0
    retire(ws.inbox(SESSION))
    ws.close()


@pytest.mark.parametrize("damage", ["missing", "other ranks", "fewer settings"])
def test_ranks_that_do_not_belong_to_the_sweep_are_a_crash_and_no_figure(ws: Workspace, damage: str) -> None:
    pid = start_suspended(ws)
    directory = ws.trial_directory(SESSION, "t002")
    os.kill(pid, signal.SIGCONT)
    until((directory / RESULT).exists)
    swept = np.load(directory / SWEPT_RANKS)
    if damage == "missing":
        (directory / SWEPT_RANKS).unlink()
    elif damage == "other ranks":
        np.save(directory / RANKS, np.load(directory / RANKS)[::-1])
    else:
        np.save(directory / SWEPT_RANKS, swept[:-1])
    crashed = wait_trial(ws, SESSION, "t002")
    assert crashed.verdict == "crash" and crashed.metrics == {} and "t002" in crashed.reason


def test_the_command_line_calls_it(home: Path) -> None:
    arguments = json.dumps({"session": SESSION, "settings": SETTINGS[:2]})
    command = [sys.executable, "-P", "-m", "virtualmle", "call", "sweep", arguments, "--home", str(home)]
    called = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert called.returncode == 0, called.stderr
    assert json.loads(called.stdout)["sweep"]["settings"] == 2
    refused = subprocess.run([*command[:6], json.dumps({"session": SESSION, "settings": [{"lr": 1}]}), *command[7:]],
                             capture_output=True, text=True, env=environment(), check=False)  # fmt: skip
    assert refused.returncode == 1 and "setting 1 changes lr" in refused.stderr
