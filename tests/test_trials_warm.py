"""Warm workers: the next trial of a session runs without a new process, and a killed worker loses nothing."""

import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.waiting import until
from virtualmle.models.config import make_config
from virtualmle.training import pipeline
from virtualmle.training.spec import (
    CHECKPOINT,
    LOG,
    PROGRESS,
    RANKS,
    RESULT,
    STATE,
    USERS,
    EpochRecord,
    TrialSpec,
    read_result,
    write_model,
)
from virtualmle.training.trainer import fit
from virtualmle.training.trial import Trial
from virtualmle.training.trial_lock import holder, is_worked_on
from virtualmle.trials import lease as leases
from virtualmle.trials import warm
from virtualmle.trials.launcher import TrialState, cancel, launch, poll
from virtualmle.trials.lease import WALL_SLACK_SECONDS, Lease, is_held, read_lease
from virtualmle.trials.warm import WORKER_FILE, Order, hand_over, retire

SMALL = {"hidden_dim": 16, "batch_size": 64, "num_negatives": 10, "linear_dim": 8, "attention_dim": 8, "dropout": 0.3}


class Session:
    """A session directory in which a test launches trials, cold or warm."""

    def __init__(self, home: Path, dataset: Path) -> None:
        self.home, self.dataset, self.inbox = home, dataset, home / "worker"

    def spec(self, name: str, backbone: str = "sasrec", **knobs: object) -> TrialSpec:
        config = make_config(backbone, **{**SMALL, "epochs": 2, **knobs}).model_dump()
        return TrialSpec(
            session="s", trial=name, dataset_dir=str(self.dataset), config=config, seed=3, device="cpu", threads=1
        )

    def run(self, spec: TrialSpec, keep_warm: float = 60.0) -> TrialState:
        launch(spec, self.home / spec.trial, inbox=self.inbox, keep_warm=keep_warm)
        return self.settle(spec.trial)

    def settle(self, name: str) -> TrialState:
        until(lambda: poll(self.home / name).status != "running")
        return poll(self.home / name)

    def lease(self, name: str) -> Lease:
        lease = read_lease(self.home / name)
        assert lease is not None
        return lease

    def pid(self, name: str) -> int:
        return self.lease(name).pid

    def file(self, name: str, file: str) -> bytes:
        return (self.home / name / file).read_bytes()


@pytest.fixture
def session(tmp_path: Path, tiny_dataset_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setattr(warm, "CLAIM_SECONDS", math.inf)  # a worker on a loaded machine is slow, not stuck
    session = Session(tmp_path / "session", tiny_dataset_dir)
    yield session
    retire(session.inbox)


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_a_warm_trial_equals_a_cold_one_bit_for_bit(session: Session, tmp_path: Path, backbone: str) -> None:
    session.run(session.spec("t001", "hstu" if backbone == "sasrec" else "sasrec", lr=0.01, num_blocks=2))
    warm = session.run(session.spec("t002", backbone))
    assert session.pid("t002") == session.pid("t001"), "no new process"
    cold = Session(tmp_path / "cold", session.dataset)
    assert cold.run(cold.spec("t002", backbone), keep_warm=0).status == warm.status == "finished"
    for file in (RANKS, CHECKPOINT, USERS):
        assert session.file("t002", file) == cold.file("t002", file)
    assert b"epoch 2/2" in session.file("t002", LOG), "each trial has its own log"
    assert session.file("t001", LOG).count(b"epoch 2/2") == 1


def test_a_warm_trial_is_timed_from_its_own_start(session: Session) -> None:
    session.run(session.spec("t001"))
    spec = session.spec("t002")
    state, lease = session.run(spec), session.lease("t002")
    first_end = (session.home / "t001" / RESULT).stat().st_mtime
    last_change = max((session.home / "t002" / name).stat().st_mtime for name in (LOG, PROGRESS, RESULT))
    assert lease.created < first_end <= lease.started, "the idle time between trials counts for neither"
    assert state.seconds == pytest.approx(last_change - lease.started)
    assert lease.deadline == pytest.approx(lease.started + spec.wall_seconds + WALL_SLACK_SECONDS)


def test_a_warm_worker_holds_the_lock_of_the_trial_that_it_runs(session: Session) -> None:
    session.run(session.spec("t001"))
    launch(session.spec("t002", epochs=1000, patience=1000), session.home / "t002", inbox=session.inbox)
    first, second = session.home / "t001", session.home / "t002"
    assert is_worked_on(second) and holder(second) == session.pid("t002") == session.pid("t001")
    assert is_worked_on(first) is False
    os.kill(session.pid("t002"), signal.SIGKILL)
    until(lambda: is_worked_on(second) is False)


def test_a_warm_worker_refuses_a_dataset_that_was_overwritten_in_mid_session(session: Session, tmp_path: Path) -> None:
    shutil.copytree(session.dataset, tmp_path / "dataset")
    session.dataset = tmp_path / "dataset"
    assert session.run(session.spec("t001")).status == "finished"
    path = session.dataset / "valid_items.npy"
    before, content = path.stat(), path.read_bytes()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(content[:-4] + content[-8:-4])  # another validation target for the last user
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    state = session.run(session.spec("t002"))
    assert session.pid("t002") == session.pid("t001") and state.status == "crashed"
    assert "valid_items.npy' is damaged: its hash differs from the manifest" in (state.cause or "")


def test_a_failed_trial_ends_its_worker_and_the_next_trial_starts_a_new_one(session: Session) -> None:
    session.run(session.spec("t001"))
    broken = session.spec("t002").model_copy(update={"dataset_dir": str(session.home / "nowhere")})
    assert session.run(broken).status == "crashed"
    until(lambda: not is_held(session.lease("t001")))
    assert session.run(session.spec("t003")).status == "finished"
    assert session.pid("t003") != session.pid("t001")


def test_a_cancelled_trial_is_killed_with_its_worker(session: Session) -> None:
    session.run(session.spec("t001"))
    launch(session.spec("t002", epochs=1000, patience=1000), session.home / "t002", inbox=session.inbox)
    until(lambda: poll(session.home / "t002").progress.epoch >= 1)
    assert cancel(session.home / "t002").status == "cancelled"
    assert poll(session.home / "t001").status == "finished"
    assert session.run(session.spec("t003")).status == "finished"
    assert session.pid("t003") != session.pid("t002") == session.pid("t001")


@pytest.mark.parametrize("idle", [True, False], ids=["while-waiting", "during-a-trial"])
def test_a_killed_warm_worker_is_replaced(session: Session, idle: bool) -> None:
    session.run(session.spec("t001"))
    if not idle:
        launch(session.spec("t002", epochs=1000, patience=1000), session.home / "t002", inbox=session.inbox)
        until(lambda: poll(session.home / "t002").progress.epoch >= 1)
    os.kill(session.pid("t001"), signal.SIGKILL)
    if not idle:
        state = session.settle("t002")
        assert state.status == "crashed" and "SIGKILL" in (state.cause or "")
    assert session.run(session.spec("t003")).status == "finished"
    assert poll(session.home / "t001").status == "finished"


def test_a_worker_that_does_not_claim_is_ended_and_its_order_withdrawn(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "CLAIM_SECONDS", 0.05)
    monkeypatch.setattr(leases, "TERM_SECONDS", 0.05)
    session.run(session.spec("t001"))
    os.kill(session.pid("t001"), signal.SIGSTOP)
    assert session.run(session.spec("t002")).status == "finished"
    assert session.pid("t002") != session.pid("t001") and not is_held(session.lease("t001"))


def test_an_unclaimed_order_is_a_trial_that_never_started(session: Session) -> None:
    session.run(session.spec("t001"))
    lease = session.lease("t001")
    retire(session.inbox)
    directory = session.home / "t002"  # as if launcher and worker died between order and claim
    directory.mkdir()
    write_model(directory / "spec.json", session.spec("t002"))
    session.inbox.mkdir()
    write_model(session.inbox / "order-t002.json", Order(**lease.model_dump(), directory=str(directory)))
    os.utime(directory, (0, 0))
    os.utime(directory / "spec.json", (0, 0))
    state = poll(directory)
    assert state.status == "crashed" and "never started" in (state.cause or "")
    assert session.run(session.spec("t003")).status == "finished"


def test_an_idle_worker_exits(session: Session) -> None:
    session.run(session.spec("t001"), keep_warm=0.2)
    until(lambda: not is_held(session.lease("t001")))
    assert not hand_over(session.spec("t002"), session.home / "t002", session.inbox)


def test_a_worker_without_an_inbox_exits(session: Session) -> None:
    session.run(session.spec("t001"))
    for file in session.inbox.iterdir():
        file.unlink()
    session.inbox.rmdir()
    until(lambda: not is_held(session.lease("t001")))


def test_retiring_ends_the_worker_and_may_be_repeated(session: Session) -> None:
    session.run(session.spec("t001"))
    assert json.loads((session.inbox / WORKER_FILE).read_bytes())["pid"] == session.pid("t001")
    retire(session.inbox)
    assert not is_held(session.lease("t001")) and not session.inbox.exists()
    retire(session.inbox)


def test_re_scoring_reads_the_user_states_of_the_trained_trial(session: Session) -> None:
    session.run(session.spec("t001"))
    source = str(session.home / "t001")
    spec = session.spec("t002", transition_weight=3.0).model_copy(update={"rescore_from": source})
    assert session.run(spec).status == "finished"
    (session.home / "t001" / USERS).unlink()
    again = spec.model_copy(update={"trial": "t003"})
    assert session.run(again).status == "finished"
    assert session.file("t002", RANKS) == session.file("t003", RANKS) != session.file("t001", RANKS)


def test_a_killed_trial_resumes_from_its_state_and_equals_an_uninterrupted_one(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, first = session.spec("t001", epochs=4), session.spec("t002", epochs=4)
    assert session.run(uninterrupted).status == "finished"

    class KilledError(BaseException):
        pass

    def die_in_the_third_epoch(trial: Trial, record: EpochRecord) -> None:
        if record.epoch == 3:
            raise KilledError

    directory = session.home / "t002"
    directory.mkdir()
    write_model(directory / "spec.json", first)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "fit", partial(fit, save_every=0.0))
        patch.setattr(Trial, "add_epoch", die_in_the_third_epoch)
        with pytest.raises(KilledError):
            pipeline.run(Trial(directory), first)
    assert (directory / STATE).exists()
    resumed = first.model_copy(update={"trial": "t003", "resume_from": str(directory)})
    assert session.run(resumed).status == "finished"
    assert session.file("t003", RANKS) == session.file("t001", RANKS)
    result, expected = read_result(session.home / "t003"), read_result(session.home / "t001")
    assert result and expected and [e.loss for e in result.curve] == [e.loss for e in expected.curve]
    assert len(result.curve) == 4 and result.train_seconds < sum(e.train_seconds for e in result.curve)
    assert result.resumed_epochs == 2 and (session.home / "t003" / STATE).exists(), "a longer trial may continue it"
