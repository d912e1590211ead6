"""Confirmation before the selection, with real workers: fresh seeds, the mean decides, one look, resumable."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.quick_home import confirming_home, environment
from tests.waiting import until
from virtualmle.data.errors import ConfigError, SessionError
from virtualmle.data.histories import Histories
from virtualmle.data.prepared import PreparedDataset
from virtualmle.examiner.main import histories_before_test
from virtualmle.examiner.request import looks
from virtualmle.examiner.unseal import open_test
from virtualmle.examiner.vault import Vault
from virtualmle.memory.records import Confirmation, TrialRecord
from virtualmle.models.priors import ScorePriors
from virtualmle.report.gather import gather
from virtualmle.report.html import render
from virtualmle.sandbox.confirmation import confirmed_trials
from virtualmle.tools.cancel_trial import cancel_trial
from virtualmle.tools.confirming import confirm_until
from virtualmle.tools.finalize import finalize
from virtualmle.tools.open_session import open_session
from virtualmle.tools.read_memory import read_memory
from virtualmle.tools.results import FinalResult
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.workspace import Settings, Workspace, trial_seed
from virtualmle.tools.write_reflection import write_reflection
from virtualmle.training.checkpoint import load_checkpoint
from virtualmle.training.evaluate import evaluate_targets, train_histories
from virtualmle.training.metrics import metrics_from_ranks
from virtualmle.training.spec import CHECKPOINT, RANKS, STATE, read_spec
from virtualmle.training.trainer import fit
from virtualmle.trials.launcher import poll
from virtualmle.trials.lease import read_lease

SUMMARY = "transitions carry this dataset"


@pytest.fixture
def workers_import_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def opened(home: Path) -> Workspace:
    return Workspace.open(home, settings=Settings(threads=1, device="cpu", with_reflection=False))


def session_of_three(ws: Workspace) -> str:
    session = open_session(ws, "demo", "sasrec").session
    for changes in ({}, {"transition_weight": 8}, {"hidden_dim": 32, "transition_weight": 4}):
        run_trial(ws, session, changes, base="default")
    return session


def handles(trials: list[TrialRecord]) -> list[str]:
    return [trial.handle for trial in trials]


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, FinalResult]]:
    """A session of three trials, of which the best two were repeated under two fresh seeds."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    ws = opened(confirming_home(tmp_path_factory.mktemp("confirmed") / "home", top=2, repetitions=2))
    result = finalize(ws, session_of_three(ws), SUMMARY, confirm=True)
    yield ws, result
    ws.close()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__("PYTHONPATH", before)


def confirmation_in(result: FinalResult) -> Confirmation:
    assert result.confirmation is not None
    return result.confirmation


def test_the_best_trials_run_again_under_fresh_seeds_of_the_server(confirmed: tuple[Workspace, FinalResult]) -> None:
    ws, result = confirmed
    session = ws.memory.sessions.get(result.session)
    repetitions = ws.memory.trials.repetitions(session.id)
    assert handles(repetitions) == ["t002r1", "t003r1", "t002r2", "t003r2"]
    for record in repetitions:
        spec = read_spec(ws.trial_directory(session.id, record.handle))
        assert spec.seed == trial_seed(session.seed, session.dataset_id, record.repetition) != trial_seed(
            session.seed, session.dataset_id
        )
        assert spec.config == ws.memory.trials.get(session.id, record.repeats or "").config


def recomputed(
    directory: Path, dataset: PreparedDataset, histories: Histories, targets: NDArray[np.int32]
) -> dict[str, float]:
    """The metrics of the checkpoint in a trial's directory on these targets."""
    model, config = load_checkpoint(directory / CHECKPOINT)
    priors = ScorePriors.from_dataset(dataset, config, "cpu")
    return metrics_from_ranks(evaluate_targets(model, config, histories, targets, priors, dataset.num_items)[0])


def test_the_mean_over_the_repetitions_decides_as_computed_from_their_checkpoints(
    confirmed: tuple[Workspace, FinalResult],
) -> None:
    ws, result = confirmed
    found = confirmation_in(result)
    dataset = ws.dataset("demo")
    means = {}
    for each in found.trials:
        values = []
        for repetition in (1, 2):
            directory = ws.trial_directory(result.session, f"{each.trial}r{repetition}")
            values.append(recomputed(directory, dataset, train_histories(dataset), dataset.valid_items)["ndcg@10"])
        assert each.values == pytest.approx(values, abs=1e-9)
        assert each.sd == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        means[each.trial] = sum(values) / 2
        assert each.mean == pytest.approx(means[each.trial])
    assert result.selected == found.selected == max(means, key=lambda trial: means[trial])
    assert ws.memory.sessions.get(result.session).selected == result.selected
    assert found.train_seconds > 0 and result.selected in found.reason


def test_the_one_look_reports_mean_and_deviation_of_the_repetitions(confirmed: tuple[Workspace, FinalResult]) -> None:
    ws, result = confirmed
    dataset = ws.dataset("demo")
    targets = open_test(
        ws.catalogue.path("demo"), Vault(ws.home).private_key(), dataset.dataset_id, dataset.num_users
    )
    found = []
    for repetition in (1, 2):
        directory = ws.trial_directory(result.session, f"{result.selected}r{repetition}")
        found.append(recomputed(directory, dataset, histories_before_test(dataset), targets.items))
    assert result.test is not None and result.test_sd is not None
    for name in found[0]:
        one, other = found[0][name], found[1][name]
        assert result.test[name] == pytest.approx((one + other) / 2, abs=1e-9)
        assert result.test_sd[name] == pytest.approx(abs(one - other) / 2**0.5, abs=1e-9)
    assert [look.session for look in looks(ws.home)] == [result.session] and result.look == 1
    with closing(sqlite3.connect(ws.home / "memory.db")) as database:
        stored = "\n".join(database.iterdump())
    assert not any(f"{value:.10f}"[:10] in stored for each in found for value in each.values())


def test_repetitions_are_no_trials_of_the_session_and_no_evidence(confirmed: tuple[Workspace, FinalResult]) -> None:
    ws, result = confirmed
    names = {"t001", "t002", "t003"}
    assert set(handles(ws.memory.trials.all(result.session))) == names
    incumbent = ws.memory.trials.incumbent(result.session)
    assert incumbent is not None and incumbent.handle in names
    state = json.dumps(read_memory(ws, result.session, "state").model_dump())
    trajectory = json.dumps(read_memory(ws, result.session, "trajectory").model_dump())
    assert "r1" not in state + trajectory and '"trials_used": 3' in state
    with closing(sqlite3.connect(ws.home / "memory.db")) as database:
        for table in ("configurations", "curves"):
            assert {trial for (trial,) in database.execute(f"SELECT trial FROM {table}")} <= names
        verdicts = database.execute("SELECT DISTINCT verdict FROM trials WHERE repetition > 0").fetchall()
    assert verdicts == [(None,)]
    assert ws.memory.sessions.overview()[0]["trials"] == 3


def test_the_report_shows_the_confirmation_and_the_spread_of_the_test(confirmed: tuple[Workspace, FinalResult]) -> None:
    ws, result = confirmed
    page = render(gather(ws.home, result.session))
    assert confirmation_in(result).reason.split(" (z")[0] in page
    assert result.test is not None and result.test_sd is not None
    assert f"{result.test['ndcg@10']:.4f} ± {result.test_sd['ndcg@10']:.4f}" in page
    assert "mean ± standard deviation of 2 models" in page


@pytest.mark.usefixtures("workers_import_the_package")
def test_a_short_wait_returns_confirming_and_another_process_continues(tmp_path: Path) -> None:
    home = confirming_home(tmp_path / "home", top=1, repetitions=2)
    ws = opened(home)
    session = session_of_three(ws)
    with pytest.raises(ConfigError, match="no visible characters"):
        finalize(ws, session, " ", confirm=True, wait_seconds=0)
    assert ws.memory.trials.repetitions(session) == []  # nothing starts for a call that will be refused
    waiting = finalize(ws, session, SUMMARY, confirm=True, wait_seconds=0)
    assert (waiting.state, waiting.test, waiting.selected) == ("confirming", None, "")
    assert waiting.progress is not None and (waiting.progress.done, waiting.progress.total) == (0, 2)
    assert waiting.next.startswith("Confirming 0 of 2") and "call finalize again" in waiting.next
    with pytest.raises(SessionError, match="confirms its best trials.*call finalize again"):
        run_trial(ws, session, {"hidden_dim": 8}, base="default")
    assert ws.memory.sessions.get(session).state == "open" and not looks(home)
    ws.close()
    other = opened(home)
    assert "call finalize again" in open_session(other, "demo", "sasrec").next
    result = finalize(other, session, SUMMARY, confirm=True)
    assert result.state == "revealed" and len(confirmation_in(result).trials[0].values) == 2
    other.close()


@pytest.mark.usefixtures("workers_import_the_package")
@pytest.mark.slow
def test_server_and_worker_killed_in_the_middle_continue_bit_for_bit(tmp_path: Path) -> None:
    home = confirming_home(tmp_path / "home", top=1, repetitions=1, epochs=60)
    ws = opened(home)
    session = open_session(ws, "demo", "sasrec").session
    run_trial(ws, session, {"epochs": 60, "hidden_dim": 8}, base="default")
    arguments = {"session": session, "cognition_summary": SUMMARY, "confirm": True}
    command = [sys.executable, "-P", "-m", "virtualmle", "call", "finalize", json.dumps(arguments), "--home", str(home)]
    server = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    directory = ws.trial_directory(session, "t001r1")
    until(lambda: poll(directory, asked_at=time.time()).progress.epoch >= 3)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    lease = read_lease(directory)
    assert lease is not None
    os.killpg(lease.pid, signal.SIGKILL)
    result = finalize(ws, session, SUMMARY, confirm=True)
    assert result.state == "revealed" and len(looks(home)) == 1
    first, *_, last = ws.memory.trials.repetitions(session)
    assert (first.handle, first.status, last.handle, last.status) == ("t001r1", "crashed", "t001r1-2", "finished")
    spec = read_spec(ws.trial_directory(session, last.handle))
    torch.set_num_threads(1)
    fitted = fit(last.configuration, ws.dataset("demo"), spec.seed, torch.device("cpu"))
    uninterrupted = [(epoch.epoch, epoch.ndcg10) for epoch in fitted.curve]
    assert last.outcome is not None
    assert [(epoch["epoch"], epoch["ndcg10"]) for epoch in last.outcome.curve] == uninterrupted
    assert not list(ws.trial_directory(session, "t001").parent.glob(f"*/{STATE}"))  # nothing is left to resume
    ws.close()


@pytest.mark.slow
@pytest.mark.usefixtures("workers_import_the_package")
def test_a_repetition_whose_process_keeps_dying_leaves_its_trial_out_of_the_selection(tmp_path: Path) -> None:
    ws = opened(confirming_home(tmp_path / "home", top=2, repetitions=1, epochs=40))
    session = open_session(ws, "demo", "sasrec").session
    for changes in ({"epochs": 2}, {"epochs": 40, "hidden_dim": 32}):
        run_trial(ws, session, changes, base="default")
    best = max(ws.memory.trials.all(session), key=lambda t: t.outcome.metrics["ndcg@10"] if t.outcome else 0).handle
    assert best == "t002"
    for attempt in ("t002r1", "t002r1-2", "t002r1-3"):
        directory = ws.trial_directory(session, attempt)

        def is_training(directory: Path = directory) -> bool:
            confirm_until(ws, ws.memory.sessions.get(session), 0)
            return poll(directory, asked_at=time.time()).progress.epoch >= 1

        until(is_training)
        lease = read_lease(directory)
        assert lease is not None
        os.killpg(lease.pid, signal.SIGKILL)
    result = finalize(ws, session, SUMMARY, confirm=True)
    found = confirmation_in(result)
    assert result.selected == found.selected == "t001"
    assert found.trials[-1].trial == "t002" and "ended without a result" in found.trials[-1].failed
    assert "t002 was not confirmed" in found.reason
    ws.close()


@pytest.mark.usefixtures("workers_import_the_package")
def test_tune_shows_the_confirmation_and_survives_short_waits(tmp_path: Path) -> None:
    home = confirming_home(tmp_path / "home", top=1, repetitions=2)
    command = [sys.executable, "-P", "-m", "virtualmle", "tune", "demo", "--agent", "random", "--trials", "1"]
    done = subprocess.run(
        [*command, "--home", str(home), "--threads", "1"],
        env={**environment(), "VIRTUALMLE_WAIT_SECONDS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "confirming 0 of 2" in done.stderr and "confirmed: t00" in done.stderr
    assert "mean ± standard deviation" in " ".join(done.stdout.split())


def test_ranks_of_real_repetitions_give_the_stored_figures_again(confirmed: tuple[Workspace, FinalResult]) -> None:
    ws, result = confirmed
    found = confirmation_in(result)
    ranks = {
        each.trial: [np.load(ws.trial_directory(result.session, f"{each.trial}r{n}") / RANKS) for n in (1, 2)]
        for each in found.trials
    }
    before = {each.trial: each.ndcg10 for each in sorted(found.trials, key=lambda each: -each.ndcg10)}
    assert confirmed_trials(before, ranks, {}) == found.trials


def test_a_repetition_is_not_reflected_on_nor_cancelled(tmp_path: Path, workers_import_the_package: None) -> None:
    ws = opened(confirming_home(tmp_path / "home", top=1, repetitions=1))
    session = open_session(ws, "demo", "sasrec").session
    run_trial(ws, session, {})
    confirm_until(ws, ws.memory.sessions.get(session), 0)
    with pytest.raises(SessionError, match="call finalize again"):
        cancel_trial(ws, session, "t001r1")
    assert confirm_until(ws, ws.memory.sessions.get(session), None).is_over
    with pytest.raises(SessionError, match="reflect on t001"):
        write_reflection(ws, session, "t001r1", "yes", "optimisation", "the fresh seed is better")
    assert not ws.memory.reflections.all(session)
    ws.close()
