"""A worker is recognised by the lock on its trial, and not by its command line."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.waiting import until
from virtualmle.data.locks import is_locked
from virtualmle.training.spec import SPEC, TrialSpec, write_model
from virtualmle.training.trial_lock import LOCK, holder, is_worked_on, take
from virtualmle.trials.launcher import WORKER, launch, poll
from virtualmle.trials.lease import LEASE, WORKER_OPTIONS, Lease, end_worker, find_worker, is_held, read_lease

SECRETS = {"OPENAI_API_KEY": "sk-planted", "VIRTUALMLE_TOKEN": "a planted token of thirty-two bytes"}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A trial directory; a worker that still runs is killed at the end of the test."""
    path = tmp_path / "t001"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    yield path
    lease = read_lease(path)
    if lease is not None and is_held(lease):
        os.killpg(lease.pid, signal.SIGKILL)
        until(lambda: not is_held(lease))


def spec(action: str) -> TrialSpec:
    return TrialSpec(session="demo-sasrec-1", trial="t001", dataset_dir="demo", config={"do": action}, seed=0)


def start(directory: Path, action: str) -> int:
    """Start a stand-in for a worker and wait until it works; returns its process id."""
    launch(spec(action), directory, module="stand_in_worker")
    until(lambda: poll(directory).progress.epoch == 1)
    lease = read_lease(directory)
    assert lease is not None
    return lease.pid


def test_a_process_with_the_words_of_a_worker_is_none(directory: Path, tmp_path: Path) -> None:
    directory.mkdir()
    write_model(directory / SPEC, spec("wait"))
    for path in (directory / SPEC, directory):
        os.utime(path, (0, 0))
    package = tmp_path / "elsewhere" / Path(*WORKER.split(".")[:-1])
    package.mkdir(parents=True)
    (package / "worker.py").write_text("print(flush=True); input()")
    command = [sys.executable, *WORKER_OPTIONS, WORKER, str(directory)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "elsewhere")},
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "\n"
        assert psutil.Process(process.pid).cmdline()[1:] == command[1:]
        assert find_worker(directory) is None
        assert poll(directory).status == "crashed", "the trial was never started"
        process.communicate("\n")


def test_a_worker_whose_launcher_died_before_the_lease_is_found_by_its_lock(directory: Path) -> None:
    pid = start(directory, "wait")
    (directory / LEASE).unlink()
    assert (is_worked_on(directory), holder(directory)) == (True, pid)
    assert poll(directory).status == "running"
    found = read_lease(directory)
    assert found is not None and found.pid == pid


@pytest.mark.parametrize("action", ["wait", "start a child"])
def test_a_killed_worker_frees_its_lock(directory: Path, action: str) -> None:
    os.kill(start(directory, action), signal.SIGKILL)
    until(lambda: is_worked_on(directory) is False)
    assert poll(directory).status == "crashed"
    if action == "start a child":
        child = int((directory / "child.txt").read_text())
        assert psutil.pid_exists(child), "a child of a worker does not hold the lock"
        os.kill(child, signal.SIGKILL)


def test_a_process_that_has_the_pid_and_start_time_of_a_dead_worker_is_not_it(directory: Path) -> None:
    os.kill(start(directory, "wait"), signal.SIGKILL)
    until(lambda: is_worked_on(directory) is False)
    lease = read_lease(directory)
    assert lease is not None
    this = psutil.Process()
    write_model(directory / LEASE, lease.model_copy(update={"pid": this.pid, "created": this.create_time()}))
    assert poll(directory).status == "crashed"
    (directory / LEASE).unlink()  # nobody shall kill this process


def test_a_worker_of_an_earlier_version_has_no_lock_and_is_known_by_its_lease(directory: Path) -> None:
    start(directory, "wait")
    (directory / LOCK).unlink()
    assert is_worked_on(directory) is None and poll(directory).status == "running"


def test_a_lock_appears_held_and_many_may_ask_for_it(tmp_path: Path) -> None:
    descriptor = take(tmp_path)
    assert descriptor is not None
    assert [is_locked(tmp_path / LOCK) for _ in range(3)] == [True] * 3
    os.close(descriptor)
    assert [is_locked(tmp_path / LOCK) for _ in range(3)] == [False] * 3
    again = take(tmp_path)
    assert again is not None and is_worked_on(tmp_path), "a lock that was released does not hinder the next one"
    os.close(again)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_link_is_no_lock(tmp_path: Path) -> None:
    descriptor = take(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / LOCK).symlink_to(tmp_path / LOCK)
    assert is_worked_on(tmp_path / "other") is None
    assert descriptor is not None
    os.close(descriptor)


def test_a_running_worker_has_none_of_the_servers_secrets(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    pid = start(directory, "wait")
    environment = psutil.Process(pid).environ()
    assert environment["PYTHONSAFEPATH"] == "1"
    assert not set(SECRETS) & set(environment) and not set(SECRETS.values()) & set(environment.values())


def test_a_worker_counts_as_ended_only_when_its_lock_is_free(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    descriptor = take(tmp_path)  # as a thread of the worker that outlives its main thread for a moment
    assert descriptor is not None
    timer = threading.Timer(0.3, os.close, [descriptor])
    timer.start()
    assert end_worker(tmp_path, Lease(pid=ended.pid, created=0.0, deadline=0.0)) and not is_worked_on(tmp_path)
    timer.join()
