"""Trials of one session that differ in `epochs` or `patience` only share one training, in real worker processes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.waiting import until
from virtualmle.memory.records import TrialRecord
from virtualmle.tools import states
from virtualmle.tools.finalize import finalize
from virtualmle.tools.open_session import open_session
from virtualmle.tools.places import Share
from virtualmle.tools.results import TrialObservation
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.wait_trial import wait_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.tools.write_reflection import write_reflection
from virtualmle.training.spec import CHECKPOINT, EPOCH_RANKS, RANKS, STATE, read_progress, read_result
from virtualmle.trials.lease import read_lease
from virtualmle.trials.warm import retire

SMALL = {"hidden_dim": 16, "batch_size": 256, "lr": 0.003}
HSTU = {**SMALL, "linear_dim": 8, "attention_dim": 8, "ema_decay": 0.9, "warmup_epochs": 2.0}
ONE_WORKER = Settings(max_trials=20, threads=1, keep_warm=60.0, with_reflection=False)


class Session:
    """A session of a home of its own, whose trials run one after another in one warm worker."""

    def __init__(self, home: Path, backbone: str = "sasrec") -> None:
        self.ws = Workspace.open(home, settings=ONE_WORKER)
        self.id = open_session(self.ws, "demo", "hstu" if backbone == "hstu" else "sasrec").session

    def run(self, **changes: Any) -> TrialObservation:
        trial = run_trial(self.ws, self.id, changes, base="default", override_reason="a test", wait_seconds=240)
        if trial.status != "running" and not trial.duplicate:
            write_reflection(self.ws, self.id, trial.trial, "unclear", "optimisation", "a test")
        return trial

    def record(self, trial: TrialObservation) -> TrialRecord:
        return self.ws.memory.trials.get(self.id, trial.trial)

    def details(self, trial: TrialObservation) -> dict[str, Any]:
        outcome = self.record(trial).outcome
        assert outcome and outcome.status == "finished"
        return outcome.details

    def directory(self, trial: TrialObservation) -> Path:
        return self.ws.trial_directory(self.id, trial.trial)

    def files(self, trial: TrialObservation) -> list[bytes]:
        return [(self.directory(trial) / name).read_bytes() for name in (RANKS, CHECKPOINT, EPOCH_RANKS)]

    def curve(self, trial: TrialObservation) -> list[tuple[int, float, float]]:
        outcome = self.record(trial).outcome
        return [(e["epoch"], e["loss"], e["ndcg10"]) for e in outcome.curve] if outcome else []

    def close(self) -> None:
        retire(self.ws.inbox(self.id))
        self.ws.close()


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[Any]:
    opened = []

    def open_one(name: str, backbone: str = "sasrec") -> Session:
        opened.append(Session(tmp_path / name, backbone))
        return opened[-1]

    yield open_one
    for session in opened:
        session.close()


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_more_epochs_and_patience_continue_the_earlier_trial_bit_for_bit(homes: Any, backbone: str) -> None:
    knobs = HSTU if backbone == "hstu" else SMALL
    session, scratch = homes("shared", backbone), homes("scratch", backbone)
    first = session.run(**knobs, epochs=3, patience=2)
    longer = session.run(**knobs, epochs=12, patience=12)
    alone = scratch.run(**knobs, epochs=12, patience=12)
    assert session.files(longer) == scratch.files(alone) and session.curve(longer) == scratch.curve(alone)
    assert session.details(longer)["resumed_epochs"] == 3 and session.details(longer)["continued_from"] == first.trial
    assert "resumed_epochs" not in scratch.details(alone)
    result = read_result(session.directory(longer))
    assert result and len(result.curve) == 10
    new = sum(epoch.train_seconds for epoch in result.curve if epoch.epoch > 3)
    assert result.train_seconds == pytest.approx(new), "only new epochs are charged"
    assert np.load(session.directory(longer) / EPOCH_RANKS).shape[0] == 10


def test_fewer_epochs_take_the_recorded_part_if_its_best_weights_are_at_hand(homes: Any) -> None:
    session, scratch = homes("shared"), homes("scratch")
    knobs = {"hidden_dim": 64, "batch_size": 256, "lr": 0.01, "dropout": 0.0}
    longest = session.run(**knobs, epochs=8, patience=20)
    best = session.details(longest)["best_epoch"]
    assert 1 < best < 8, "the learning rate is chosen so that the last epoch is not the best"
    part = session.run(**knobs, epochs=best, patience=20)
    assert session.details(part)["resumed_epochs"] == best
    alone = scratch.run(**knobs, epochs=best, patience=20)
    assert session.files(part) == scratch.files(alone) and session.curve(part) == scratch.curve(alone)
    shorter = session.run(**knobs, epochs=best - 1, patience=20)
    assert "resumed_epochs" not in session.details(shorter), "the weights of its best epoch are not at hand"


def test_a_decaying_schedule_shares_with_other_patience_only(homes: Any) -> None:
    session = homes("shared")
    cosine = {**SMALL, "schedule": "cosine"}
    session.run(**cosine, epochs=4, patience=4)
    assert "resumed_epochs" not in session.details(session.run(**cosine, epochs=5, patience=4))
    assert session.details(session.run(**cosine, epochs=5, patience=5))["resumed_epochs"] == 5


def test_a_continued_trial_that_is_killed_is_repeated_from_what_is_left_with_equal_bits(homes: Any) -> None:
    session, scratch = homes("shared"), homes("scratch")
    session.run(**SMALL, epochs=3, patience=20)
    changes = {**SMALL, "epochs": 14, "patience": 20}
    running = run_trial(session.ws, session.id, changes, base="default", override_reason="a test", wait_seconds=0)
    directory = session.directory(running)
    until(lambda: read_progress(directory).epoch >= 4)
    lease = read_lease(directory)
    assert lease
    os.kill(lease.pid, signal.SIGKILL)
    assert wait_trial(session.ws, session.id, running.trial, 240).status == "crashed"
    again = session.run(**changes)
    assert session.details(again)["resumed_epochs"] >= 3
    alone = scratch.run(**changes)
    assert session.files(again) == scratch.files(alone) and session.curve(again) == scratch.curve(alone)


def test_a_damaged_state_is_trained_again_from_scratch(homes: Any) -> None:
    session = homes("shared")
    first = session.run(**SMALL, epochs=2, patience=20)
    path = session.directory(first) / STATE
    path.write_bytes(path.read_bytes()[:-100])  # the header is intact
    longer = session.run(**SMALL, epochs=3, patience=20)
    assert "resumed_epochs" not in session.details(longer) and len(session.curve(longer)) == 3


def test_states_are_bounded_while_the_session_is_open_and_gone_when_it_is_closed(
    homes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = homes("shared")
    first = session.run(**SMALL, epochs=2)
    size = (session.directory(first) / STATE).stat().st_size
    monkeypatch.setattr(states, "MAX_BYTES", int(2.5 * size))
    config = {**session.record(first).config, "epochs": 9}
    longer = session.record(first).model_copy(update={"handle": "t002", "config": config})
    for share, found in ((Share("auto", 1), True), (Share("auto", 2), False), (Share("cuda:0", 1), False)):
        directory = states.state_to_continue(session.ws, longer, share)
        assert (directory is not None) == found, f"other threads or another device give other bits: {share}"
    others = [session.run(**{**SMALL, "lr": lr}, epochs=1) for lr in (1e-5, 2e-5, 3e-5)]
    incumbent = session.ws.memory.trials.incumbent(session.id)
    assert incumbent and incumbent.handle == first.trial
    kept = [(session.directory(trial) / STATE).exists() for trial in (first, *others)]
    assert kept == [True, False, False, True], "the incumbent's and the latest"
    finalize(session.ws, session.id, "a test", confirm=True)
    assert not any((session.directory(trial) / STATE).exists() for trial in (first, *others))
