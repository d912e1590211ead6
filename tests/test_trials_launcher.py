"""The life cycle of a trial as an operating-system process, with real processes that do not train."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.waiting import until
from virtualmle.data.errors import MachineError, TrialError
from virtualmle.training.spec import LOG, PROGRESS, RESULT, SPEC, TrialSpec, read_spec, write_model
from virtualmle.trials import launcher
from virtualmle.trials.launcher import STOP, TrialState, cancel, launch, poll
from virtualmle.trials.lease import LEASE, WALL_SLACK_SECONDS, Lease, is_held, read_lease
from virtualmle.trials.log_tail import TAIL_CHARACTERS, last_lines

TESTS = Path(__file__).parent


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A trial directory; a worker that still runs is killed at the end of the test."""
    path = tmp_path / "sessions" / "demo-sasrec-1" / "t001"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))
    yield path
    lease = read_lease(path)
    if lease is not None and is_held(lease):
        os.killpg(lease.pid, signal.SIGKILL)
        until(lambda: not is_held(lease))


def start(directory: Path, action: str) -> None:
    spec = TrialSpec(session="demo-sasrec-1", trial="t001", dataset_dir="demo", config={"do": action}, seed=0)
    launch(spec, directory, module="stand_in_worker")


def settle(directory: Path) -> TrialState:
    until(lambda: poll(directory).status != "running")
    return poll(directory)


def has_begun(directory: Path) -> bool:
    return poll(directory).progress.epoch == 1


def edit_lease(directory: Path, **changes: float) -> None:
    lease = read_lease(directory)
    assert lease is not None
    write_model(directory / LEASE, lease.model_copy(update=changes))


def test_a_worker_that_writes_its_result_is_finished(directory: Path) -> None:
    start(directory, "finish")
    state = settle(directory)
    assert state.status == "finished"
    assert state.result is not None and state.result.metrics == {"ndcg@10": 0.5}
    last_change = max((directory / name).stat().st_mtime for name in (LOG, PROGRESS, RESULT))
    lease = read_lease(directory)
    assert lease is not None
    assert state.seconds == pytest.approx(last_change - lease.created)  # not the 1.5 s that the worker reports


def test_a_running_worker_shows_its_progress_and_its_seconds(directory: Path) -> None:
    start(directory, "wait")
    until(lambda: has_begun(directory))
    state = poll(directory)
    assert (state.status, state.progress.stage, state.progress.epochs) == ("running", "training", 2)
    assert state.seconds > 0


def test_a_worker_runs_with_safe_import_paths_and_an_empty_standard_input(directory: Path) -> None:
    start(directory, "finish")
    lease = read_lease(directory)
    assert lease is not None
    settle(directory)
    until(lambda: not is_held(lease))
    assert (directory / LOG).read_text() == "1 \n"  # PYTHONSAFEPATH, then an empty standard input


def test_a_worker_is_in_a_session_of_its_own(directory: Path) -> None:
    start(directory, "wait")
    lease = read_lease(directory)
    assert lease is not None
    assert os.getsid(lease.pid) == lease.pid != os.getsid(0)


def test_the_working_directory_of_a_worker_is_the_given_one_or_that_of_its_trial(directory: Path) -> None:
    start(directory, "wait")
    until(lambda: has_begun(directory))
    lease = read_lease(directory)
    assert lease is not None and Path(psutil.Process(lease.pid).cwd()) == directory
    other = directory.with_name("t002")
    spec = TrialSpec(session="demo-sasrec-1", trial="t002", dataset_dir="demo", config={"do": "finish"}, seed=0)
    launch(spec, other, module="stand_in_worker", cwd=TESTS)
    assert settle(other).status == "finished"


def test_a_worker_that_ends_before_it_reads_its_trial_is_a_fault_of_the_machine(directory: Path) -> None:
    spec = TrialSpec(session="demo-sasrec-1", trial="t001", dataset_dir="demo", config={}, seed=0)
    launch(spec, directory, module="no_such_module")
    state = settle(directory)
    assert (state.status, state.machine_fault) == ("crashed", True)
    assert "ended before it could read its trial (exit code 1)" in (state.cause or "")


def test_a_failed_result_is_a_crash_with_the_workers_cause(directory: Path) -> None:
    start(directory, "fail")
    state = settle(directory)
    assert (state.status, state.cause) == ("crashed", "the loss is not a number at epoch 1")


def test_an_exception_is_a_crash_with_its_exit_code_and_printable_last_lines(directory: Path) -> None:
    start(directory, "raise")
    state = settle(directory)
    assert state.status == "crashed" and state.result is None
    assert state.cause is not None and state.cause.startswith("worker ended without a result (exit code 1)")
    assert "RuntimeError: no" in state.cause and "\x1b" not in state.cause


def test_a_killed_worker_is_a_crash_that_names_the_signal(directory: Path) -> None:
    start(directory, "wait")
    until(lambda: has_begun(directory))
    os.kill(psutil.Process(read_lease(directory).pid).pid, signal.SIGKILL)
    state = settle(directory)
    assert state.status == "crashed"
    assert state.cause is not None and "signal SIGKILL" in state.cause


def test_ended_workers_do_not_remain_zombies(directory: Path) -> None:
    start(directory, "raise")
    pid = read_lease(directory).pid
    settle(directory)
    assert not psutil.pid_exists(pid)


def test_a_cancelled_worker_is_ended_and_stays_cancelled(directory: Path) -> None:
    start(directory, "wait")
    until(lambda: has_begun(directory))
    lease = read_lease(directory)
    assert cancel(directory).status == "cancelled"
    assert lease is not None and not is_held(lease)
    assert poll(directory).status == "cancelled"
    assert poll(directory).seconds > 0


def test_a_worker_that_ignores_sigterm_is_killed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtualmle.trials.lease.TERM_SECONDS", 0.2)
    start(directory, "ignore SIGTERM")
    until(lambda: has_begun(directory))
    lease = read_lease(directory)
    assert cancel(directory).status == "cancelled"
    assert lease is not None and not is_held(lease)


def test_cancelling_ends_the_child_processes_of_the_worker(directory: Path) -> None:
    start(directory, "start a child")
    until(lambda: has_begun(directory))
    child = psutil.Process(int((directory / "child.txt").read_text()))
    cancel(directory)
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_cancelled_worker_that_writes_a_failed_result_is_cancelled_not_crashed(directory: Path) -> None:
    start(directory, "fail on SIGTERM")
    until(lambda: has_begun(directory))
    assert cancel(directory).status == "cancelled"
    assert (directory / RESULT).exists()


def test_cancelling_a_finished_trial_changes_nothing(directory: Path) -> None:
    start(directory, "finish")
    settle(directory)
    assert cancel(directory).status == "finished"
    assert not (directory / STOP).exists()


def test_cancelling_a_crashed_trial_leaves_it_crashed(directory: Path) -> None:
    start(directory, "raise")
    settle(directory)
    assert cancel(directory).status == "crashed"


def test_a_worker_past_its_deadline_is_killed_and_the_cause_says_so(directory: Path) -> None:
    start(directory, "wait")
    until(lambda: has_begun(directory))
    lease = read_lease(directory)
    edit_lease(directory, deadline=time.time() - 1)
    state = poll(directory)
    assert state.status == "crashed"
    assert state.cause is not None and state.cause.startswith("killed: still running")
    assert lease is not None and not is_held(lease)
    assert poll(directory).cause == state.cause


def test_a_stop_whose_sender_died_is_completed_by_the_next_poll(directory: Path) -> None:
    start(directory, "wait")
    until(lambda: has_begun(directory))
    write_model(directory / STOP, launcher.Stop(status="cancelled", cause="cancelled on request", at=time.time() - 60))
    assert poll(directory).status == "cancelled"


def test_a_pid_that_another_process_reuses_is_not_the_worker(directory: Path) -> None:
    start(directory, "finish")
    settle(directory)
    (directory / RESULT).unlink()
    ourselves = psutil.Process()
    write_model(directory / LEASE, Lease(pid=ourselves.pid, created=ourselves.create_time() - 1000, deadline=0))
    assert poll(directory).status == "crashed"
    assert cancel(directory).status == "crashed"  # and this process is not killed


def test_a_worker_without_a_written_lease_is_found(directory: Path) -> None:
    start(directory, "wait")
    until(lambda: has_begun(directory))
    lease = read_lease(directory)
    (directory / LEASE).unlink()
    assert poll(directory).status == "running"
    assert read_lease(directory) == lease
    assert cancel(directory).status == "cancelled"


def test_a_trial_without_a_process_is_given_time_to_start_and_then_counts_as_never_started(directory: Path) -> None:
    directory.mkdir(parents=True)
    spec = TrialSpec(session="demo-sasrec-1", trial="t001", dataset_dir="demo", config={}, seed=0)
    write_model(directory / SPEC, spec)
    assert poll(directory).status == "running"
    long_ago = time.time() - launcher.START_GRACE_SECONDS - 1
    os.utime(directory / SPEC, (long_ago, long_ago))
    state = poll(directory)
    assert state.status == "crashed" and "never started" in (state.cause or "")


def test_a_directory_without_a_spec_is_given_time_to_start(directory: Path) -> None:
    directory.mkdir(parents=True)
    assert poll(directory).status == "running"
    os.utime(directory, (0, 0))
    assert poll(directory).status == "crashed"


def test_a_missing_directory_counts_as_running_shortly_after_the_request_only(directory: Path) -> None:
    assert poll(directory, asked_at=time.time()).status == "running"
    assert poll(directory, asked_at=time.time() - launcher.START_GRACE_SECONDS - 1).status == "crashed"
    assert poll(directory).status == "crashed"


def test_a_directory_is_used_only_once(directory: Path) -> None:
    start(directory, "finish")
    settle(directory)
    with pytest.raises(TrialError, match="never reused"):
        start(directory, "finish")


def test_a_directory_that_cannot_be_created_is_an_error_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "sessions").write_text("a file where a directory should be")
    with pytest.raises(TrialError, match="could not be started"):
        start(tmp_path / "sessions" / "t001", "finish")


def test_a_process_that_cannot_be_started_is_a_crash_immediately(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(directory / "no-such-python"))
    with pytest.raises(MachineError, match="could not be started"):
        start(directory, "finish")
    assert (poll(directory).status, poll(directory).machine_fault) == ("crashed", True)


@pytest.mark.parametrize("name", [RESULT, PROGRESS, LEASE])
def test_a_damaged_file_of_a_crashed_trial_does_not_break_poll(directory: Path, name: str) -> None:
    start(directory, "raise")
    settle(directory)
    (directory / name).write_text("{")
    os.utime(directory / SPEC, (0, 0))
    assert poll(directory).status == "crashed"


def test_a_worker_outlives_its_launcher_and_another_process_can_poll_it(directory: Path) -> None:
    script = (
        "import sys, os, signal; from pathlib import Path\n"
        "from virtualmle.training.spec import TrialSpec\n"
        "from virtualmle.trials.launcher import launch\n"
        "spec = TrialSpec(session='s', trial='t001', dataset_dir='demo', config={'do': 'wait'}, seed=0)\n"
        "launch(spec, Path(sys.argv[1]), module='stand_in_worker')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-P", "-c", script, str(directory)], check=False)
    assert ended.returncode == -signal.SIGKILL
    until(lambda: has_begun(directory))
    assert poll(directory).status == "running"
    os.kill(read_lease(directory).pid, signal.SIGKILL)
    assert settle(directory).status == "crashed"


def test_the_tail_of_a_long_log_is_short(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("x" * 100_000 + "\nlast words\n")
    tail = last_lines(tmp_path / LOG)
    assert tail.endswith('last words"') and len(tail) < TAIL_CHARACTERS + 40


@pytest.mark.parametrize(
    "result", ['{"status": "finished"}', '{"status": "finished", "metrics": {"ndcg@10": NaN}}', "{", ""]
)
def test_a_result_without_finite_metrics_is_a_crash(directory: Path, result: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "result.json").write_text(result)
    state = poll(directory)
    assert state.status == "crashed" and "damaged" in (state.cause or "")


@pytest.mark.parametrize("damaged", ["stop.json", "lease.json", "progress.json"])
def test_a_damaged_file_of_a_finished_trial_does_not_break_poll(directory: Path, damaged: str) -> None:
    start(directory, "finish")
    settle(directory)
    (directory / damaged).write_text('{"pid": -5')
    assert poll(directory).status == "finished"
    (directory / "result.json").unlink()
    assert poll(directory).status in ("crashed", "running")


def test_a_directory_with_any_file_of_an_earlier_trial_is_refused(directory: Path) -> None:
    directory.mkdir(parents=True)
    start(directory, "finish")  # an empty directory is accepted
    settle(directory)
    (directory / SPEC).unlink()
    with pytest.raises(TrialError, match="never reused"):
        start(directory, "finish")
    assert not (directory / SPEC).exists()


@pytest.mark.parametrize("start_time", ['0, "created": 1', '7, "created": NaN'])
def test_an_invalid_lease_is_none(directory: Path, start_time: str) -> None:
    directory.mkdir(parents=True)
    (directory / LEASE).write_text('{"deadline": 9, "pid": ' + start_time + "}")
    assert read_lease(directory) is None
    (directory / LEASE).unlink()
    (directory / LEASE).mkdir()
    assert read_lease(directory) is None


def test_a_wrong_start_time_costs_at_most_the_time_limit_of_the_trial(directory: Path) -> None:
    start(directory, "finish")
    settle(directory)
    edit_lease(directory, created=0.0)
    assert poll(directory).seconds == 3600 + WALL_SLACK_SECONDS


@pytest.mark.parametrize("content", [None, "{"], ids=["gone", "damaged"])
def test_a_spec_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / SPEC).write_text(content)
    with pytest.raises(TrialError, match="spec.json cannot be read"):
        read_spec(tmp_path)
