"""cancel_trial(keep_best=true): a running trial ends early as a finished one, with its best checkpoint."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.waiting import until
from virtualmle.data.errors import SessionError
from virtualmle.memory.records import TrialRecord
from virtualmle.sandbox.ended_early import may_run_again, trains_on
from virtualmle.tools.auditing import walk_home
from virtualmle.tools.cancel_trial import cancel_trial
from virtualmle.tools.cognition import complete_curves
from virtualmle.tools.open_session import open_session
from virtualmle.tools.results import TrialObservation
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.signatures import check_files
from virtualmle.tools.sweep import sweep
from virtualmle.tools.sync import sync_session
from virtualmle.tools.wait_trial import wait_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.training.checkpoint import load_checkpoint
from virtualmle.training.spec import CHECKPOINT, END, RANKS, STATE, read_progress, read_result
from virtualmle.trials.launcher import ask_to_end
from virtualmle.trials.lease import read_lease
from virtualmle.trials.warm import retire

LONG = {"hidden_dim": 16, "batch_size": 32, "lr": 0.0005, "epochs": 90, "patience": 20}
PATIENT = 240.0


class Session:
    """A session of a home of its own."""

    def __init__(self, home: Path, keep_warm: float) -> None:
        settings = Settings(max_trials=20, threads=1, keep_warm=keep_warm, with_reflection=False)
        self.ws = Workspace.open(home, settings=settings)
        self.id = open_session(self.ws, "demo", "sasrec").session

    def run(self, wait_seconds: float = PATIENT, **changes: Any) -> TrialObservation:
        return run_trial(self.ws, self.id, changes, base="default", override_reason="a test", wait_seconds=wait_seconds)

    def start(self, trained: int = 2, **changes: Any) -> str:
        """Start a long trial and wait until it has trained as many epochs; returns its handle."""
        trial = self.run(0.0, **{**LONG, **changes}).trial
        until(lambda: read_progress(self.directory(trial)).epoch >= trained)
        return trial

    def end_early(self, trial: str, wait_seconds: float = PATIENT) -> TrialObservation:
        return cancel_trial(self.ws, self.id, trial, keep_best=True, wait_seconds=wait_seconds)

    def directory(self, trial: str) -> Path:
        return self.ws.trial_directory(self.id, trial)

    def record(self, trial: str) -> TrialRecord:
        return self.ws.memory.trials.get(self.id, trial)

    def details(self, trial: str) -> dict[str, Any]:
        outcome = self.record(trial).outcome
        assert outcome
        return outcome.details


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """One session for all tests, whose trials run in one warm worker; each test trains models of its own."""
    opened = Session(tmp_path_factory.mktemp("home"), keep_warm=120.0)
    yield opened
    retire(opened.ws.inbox(opened.id))
    opened.ws.close()


def test_the_trial_is_finished_judged_signed_and_charged_for_what_it_has_trained(session: Session) -> None:
    trial = session.start(trained=3)
    ended = session.end_early(trial)
    assert (ended.status, ended.verdict in ("keep", "discard")) == ("finished", True)
    record, result = session.record(trial), read_result(session.directory(trial))
    assert record.outcome and result and result.status == "finished"
    last = result.curve[-1].epoch
    assert 3 <= last < LONG["epochs"] and record.ended_after == result.ended_after == last
    assert f"ended on request after epoch {last} of {LONG['epochs']}" in ended.reason
    assert ended.curve["epochs"] == last and ended.curve["ended_on_request"] is True
    best = max(result.curve, key=lambda epoch: (epoch.ndcg10, -epoch.epoch))
    assert result.best_epoch == best.epoch and ended.metrics["ndcg@10"] > 0
    load_checkpoint(session.directory(trial) / CHECKPOINT)
    check_files(session.ws, record, RANKS, CHECKPOINT)
    cost = sum(epoch.train_seconds + epoch.evaluate_seconds for epoch in result.curve)
    assert cost <= record.outcome.train_seconds < record.outcome.wall_seconds
    assert walk_home(session.ws.home) == []
    assert cancel_trial(session.ws, session.id, trial) == session.end_early(trial), "what has ended does not change"


def test_the_same_configuration_again_continues_the_training(session: Session, tmp_path: Path) -> None:
    changes = {**LONG, "epochs": 16, "lr": 0.001}
    trial = session.start(**changes)
    last = session.end_early(trial).curve["epochs"]
    assert 2 <= last < 16
    again = session.run(**changes)
    assert (again.status, again.duplicate, again.curve["epochs"]) == ("finished", False, 16)
    details = session.details(again.trial)
    assert details["continued_from"] == trial and details["resumed_epochs"] == last
    assert session.record(again.trial).ended_after is None
    assert session.run(**changes).trial == again.trial, "the model is complete now"
    alone = Session(tmp_path, keep_warm=0.0)
    without = alone.run(**changes)
    files = [s.directory(t.trial) / RANKS for s, t in ((session, again), (alone, without))]
    assert files[0].read_bytes() == files[1].read_bytes(), "ending it early and continuing has left no trace"
    alone.ws.close()


def test_other_scores_of_a_model_that_was_ended_early_are_marked_and_measured_again_later(session: Session) -> None:
    changes = {**LONG, "epochs": 12, "lr": 0.0011}
    trial = session.start(**changes)
    session.end_early(trial)
    swept = sweep(session.ws, session.id, [{"transition_weight": 1.0}, {"transition_weight": 2.0}], base=trial)
    assert swept.status == "finished" and swept.rescored
    assert session.record(swept.trial).ended_after == session.record(trial).ended_after
    trials = session.ws.memory.trials.all(session.id)
    assert trains_on(trials, session.record(trial).configuration)
    scores = session.record(swept.trial).configuration
    assert not trains_on(trials, scores) and not may_run_again(session.record(swept.trial), trials, scores)
    complete = session.run(**changes)
    trials = session.ws.memory.trials.all(session.id)
    assert may_run_again(session.record(swept.trial), trials, scores), "its model is complete by now"
    curves = [curve.trial for curve in complete_curves(session.ws.memory.sessions.get(session.id), trials)]
    assert complete.trial in curves and not {trial, swept.trial} & set(curves)


def test_a_request_before_the_first_epoch_ends_the_trial_after_it(session: Session) -> None:
    running = session.run(0.0, **LONG, temperature=0.06)
    ended = session.end_early(running.trial)
    assert ended.status == "finished" and ended.curve["epochs"] == 1
    assert session.record(running.trial).ended_after == 1


def test_a_trial_that_trains_nothing_ends_as_it_would_have(session: Session) -> None:
    quick = {**LONG, "epochs": 1}
    session.run(**quick)
    running = session.run(0.0, **quick, transition_weight=1.0)
    ended = session.end_early(running.trial)
    assert ended.status == "finished" and session.record(running.trial).ended_after is None


def test_a_server_that_is_gone_after_the_request_loses_nothing(session: Session) -> None:
    trial = session.start(lr=0.0012)
    ask_to_end(session.directory(trial))  # and this process does nothing more until the worker is over
    until((session.directory(trial) / "result.json").exists)
    assert sync_session(session.ws, session.id) == [] and session.record(trial).status == "finished"


def test_a_worker_that_is_killed_after_the_request_leaves_its_state_for_the_next_run(session: Session) -> None:
    trial = session.start(trained=4, lr=0.0013)
    until((session.directory(trial) / STATE).exists)
    lease = read_lease(session.directory(trial))
    assert lease
    os.kill(lease.pid, signal.SIGSTOP)  # so that it cannot see the request before it is killed
    assert session.end_early(trial, wait_seconds=0).status == "running"
    assert (session.directory(trial) / END).exists()
    os.kill(lease.pid, signal.SIGKILL)
    assert wait_trial(session.ws, session.id, trial, PATIENT).status == "crashed"
    again = session.run(0.0, **{**LONG, "lr": 0.0013})
    ended = session.end_early(again.trial)
    assert ended.status == "finished" and session.details(again.trial)["continued_from"] == trial
    assert np.load(session.directory(again.trial) / "epoch_ranks.npy").shape[0] >= 1


def test_without_keep_best_nothing_is_kept(session: Session) -> None:
    trial = session.start(trained=1, lr=0.0014)
    assert cancel_trial(session.ws, session.id, trial).status == "cancelled"
    with pytest.raises(SessionError, match="unknown trial"):
        cancel_trial(session.ws, session.id, "t999", keep_best=True)
