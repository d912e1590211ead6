"""A session that runs several trials at a time: places, waiting, verdicts, admission, with real worker processes."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import Implementation

from tests.quick_home import quick_home
from tests.waiting import until
from virtualmle.cli.advice import ignored_options
from virtualmle.cli.headless import settings_options
from virtualmle.cli.options import parallel_of
from virtualmle.data.errors import AdmissionError, ConfigError, ConflictError, SessionError
from virtualmle.memory.records import TrialOutcome, TrialRecord
from virtualmle.sandbox.action_space import effective
from virtualmle.server.app import build_server
from virtualmle.tools.cancel_trial import cancel_trial
from virtualmle.tools.finalize import finalize
from virtualmle.tools.open_session import open_session
from virtualmle.tools.places import free_places, places_of, reserved_seconds
from virtualmle.tools.read_memory import read_memory
from virtualmle.tools.results import TrialObservation
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.sync import adopt_all, sync_session
from virtualmle.tools.wait_trial import wait_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.tools.write_reflection import write_reflection
from virtualmle.training.peak import CLEAR, peak_bytes, reset_peak
from virtualmle.training.spec import RESULT, read_result, read_spec
from virtualmle.trials.lease import is_held, read_lease
from virtualmle.trials.places import HEADROOM, free_bytes, num_cores

PAUSED = {"hidden_dim": 32}  # trials that a test stops with SIGSTOP differ from the default in this
SESSION = "demo-sasrec-1"


def opened(home: Path, **settings: Any) -> Workspace:
    return Workspace.open(quick_home(home), settings=Settings(**{"device": "cpu", "max_trials": 6, **settings}))


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A home with an open session of two places; what still runs in the end is killed."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    workspace = opened(tmp_path / "home", parallel=2, with_reflection=False)
    open_session(workspace, "demo", "sasrec")
    yield workspace
    for trial in workspace.memory.trials.all(SESSION):
        signal_worker(workspace, trial.handle, signal.SIGKILL)
    workspace.close()


def signal_worker(ws: Workspace, handle: str, number: signal.Signals) -> None:
    lease = read_lease(ws.trial_directory(SESSION, handle))
    if lease is not None and is_held(lease):
        os.killpg(lease.pid, number)


def start_paused(ws: Workspace, changes: dict[str, Any], base: str = "default") -> TrialObservation:
    """Start a trial and stop its process before it can end, until `go_on`."""
    observation = run_trial(ws, SESSION, changes, base=base, wait_seconds=0)
    signal_worker(ws, observation.trial, signal.SIGSTOP)
    assert not (ws.trial_directory(SESSION, observation.trial) / RESULT).exists()
    return observation


def go_on(ws: Workspace, handle: str) -> None:
    signal_worker(ws, handle, signal.SIGCONT)


def test_two_trials_run_and_a_third_is_refused_until_one_of_them_is_cancelled(ws: Workspace) -> None:
    first, second = start_paused(ws, PAUSED), start_paused(ws, {"hidden_dim": 24})
    assert [trial.handle for trial in sync_session(ws, SESSION)] == [first.trial, second.trial] == ["t001", "t002"]
    state = read_memory(ws, SESSION, "state").content
    assert (state["running_trials"], state["free_places"]) == (["t001", "t002"], 0)
    assert "t001 and t002 are running" in state["next"] and f"wait_trial('{SESSION}')" in state["next"]
    with pytest.raises(AdmissionError, match="2 trials at a time: t001 and t002 are running"):
        run_trial(ws, SESSION, {})
    with pytest.raises(SessionError, match="trials t001 and t002 are running"):
        finalize(ws, SESSION, "too early", confirm=True)
    repeated = run_trial(ws, SESSION, PAUSED, base="default", wait_seconds=0)
    assert repeated.duplicate and repeated.trial == "t001"
    specs = [read_spec(ws.trial_directory(SESSION, handle)) for handle in ("t001", "t002")]
    assert [spec.threads for spec in specs] == [max(1, num_cores() // 2)] * 2
    assert cancel_trial(ws, SESSION, "t001").status == "cancelled"
    assert [trial.handle for trial in sync_session(ws, SESSION)] == ["t002"]
    third = run_trial(ws, SESSION, {"hidden_dim": 16}, base="default")
    places = {trial.handle: trial.place for trial in ws.memory.trials.all(SESSION)}
    assert third.status == "finished" and places == {"t001": 0, "t002": 1, "t003": 0}
    assert [trial.handle for trial in sync_session(ws, SESSION)] == ["t002"], "the other one was not touched"
    cancel_trial(ws, SESSION, "t002")


def test_fewer_places_leave_no_warm_worker_behind(ws: Workspace) -> None:
    for place in (0, 1):
        ws.inbox(SESSION, place).mkdir(parents=True, exist_ok=True)
    ws.memory.sessions.set_parallel(SESSION, 1, auto=False)
    assert ws.inbox(SESSION, 1) in ws.inboxes(ws.memory.sessions.get(SESSION)), "finalize retires the worker there"


def test_verdicts_follow_the_order_of_ending_and_compare_with_the_incumbent_at_the_start_too(ws: Workspace) -> None:
    assert run_trial(ws, SESSION, {}).verdict == "keep"
    late = start_paused(ws, PAUSED)
    early = run_trial(ws, SESSION, {"transition_weight": 8.0})
    assert (early.trial, early.verdict, early.delta is not None) == ("t003", "keep", True)
    go_on(ws, late.trial)
    ended = wait_trial(ws, SESSION, late.trial)
    record = ws.memory.trials.get(SESSION, late.trial)
    assert record.outcome is not None and record.incumbent_at_start == "t001"
    assert (ended.status, record.outcome.incumbent_before) == ("finished", "t003")
    at_start = record.outcome.details["incumbent_at_start"]
    assert at_start["trial"] == "t001" and at_start["delta"] == pytest.approx(record.outcome.base_delta)
    assert at_start["delta"] > (record.outcome.delta or 0)
    assert "against t001, the incumbent at its start" in ended.reason
    assert {trial.handle: trial.ended for trial in ws.memory.trials.all(SESSION)} == {"t001": 1, "t002": 3, "t003": 2}
    incumbent = ws.memory.trials.incumbent(SESSION)
    assert incumbent is not None and incumbent.handle == "t003"


def test_a_trial_that_is_kept_last_is_the_incumbent_whatever_its_number(ws: Workspace) -> None:
    run_trial(ws, SESSION, {})
    late = start_paused(ws, {"transition_weight": 8.0, **PAUSED})
    assert run_trial(ws, SESSION, {"transition_weight": 1.0}).verdict == "keep"
    go_on(ws, late.trial)
    assert wait_trial(ws, SESSION, late.trial).verdict == "keep"
    incumbent = ws.memory.trials.incumbent(SESSION)
    assert incumbent is not None and incumbent.handle == late.trial == "t002"


def test_trials_that_end_while_nobody_looks_are_judged_in_the_order_of_ending(ws: Workspace) -> None:
    late, early = start_paused(ws, PAUSED), start_paused(ws, {"hidden_dim": 24})
    for observation in (early, late):
        go_on(ws, observation.trial)
        until((ws.trial_directory(SESSION, observation.trial) / RESULT).exists)
    assert adopt_all(ws) == []
    outcomes = {trial.handle: trial for trial in ws.memory.trials.all(SESSION)}
    assert (outcomes[early.trial].ended, outcomes[late.trial].ended) == (1, 2)
    second = outcomes[late.trial].outcome
    assert second is not None and second.incumbent_before == early.trial


def test_waiting_for_any_returns_the_first_to_end_and_leaves_the_others_alone(ws: Workspace) -> None:
    slow = start_paused(ws, PAUSED)
    quick = run_trial(ws, SESSION, {}, wait_seconds=0)
    assert wait_trial(ws, SESSION).trial == quick.trial
    assert wait_trial(ws, SESSION, [slow.trial, quick.trial]).trial == quick.trial
    waiting = wait_trial(ws, SESSION, wait_seconds=0.2)
    assert (waiting.trial, waiting.status) == (slow.trial, "running")
    go_on(ws, slow.trial)
    assert wait_trial(ws, SESSION).status == "finished"
    assert wait_trial(ws, SESSION).trial == slow.trial, "the last one, if none is running"
    with pytest.raises(SessionError, match="t009"):
        wait_trial(ws, SESSION, ["t009"])


def test_waiting_for_any_trial_of_a_session_without_trials_says_what_to_do(ws: Workspace) -> None:
    with pytest.raises(SessionError, match="call run_trial first"):
        wait_trial(ws, SESSION)


def test_a_model_that_is_being_trained_is_not_trained_a_second_time(ws: Workspace) -> None:
    start_paused(ws, PAUSED)
    with pytest.raises(AdmissionError, match="t001 is training this model"):
        run_trial(ws, SESSION, {**PAUSED, "transition_weight": 4.0}, base="default")
    go_on(ws, "t001")
    wait_trial(ws, SESSION, "t001")
    assert run_trial(ws, SESSION, {**PAUSED, "transition_weight": 4.0}, base="default").rescored


def test_a_pending_reflection_stops_the_next_trial_and_no_running_one(tmp_path: Path, ws: Workspace) -> None:
    reflecting = opened(tmp_path / "home", parallel=2)
    session = open_session(reflecting, "demo", "sasrec", new=True).session
    first = run_trial(reflecting, session, {"hidden_dim": 24}, base="default", wait_seconds=0)
    second = run_trial(reflecting, session, {}, base="default")
    ended = {second.trial, wait_trial(reflecting, session, first.trial).trial}
    for _ in range(2):  # each of the two needs its reflection, in the order in which they ended
        pending = read_memory(reflecting, session, "state").content["pending_reflection"]
        assert pending in ended
        assert wait_trial(reflecting, session).trial == pending
        with pytest.raises(AdmissionError, match=f"write_reflection for {pending}"):
            run_trial(reflecting, session, {"transition_weight": 2.0})
        write_reflection(reflecting, session, pending, "unclear", "capacity", "a first measurement")
        ended.remove(pending)
    assert run_trial(reflecting, session, {"transition_weight": 2.0}).status == "finished"
    reflecting.close()


def test_simultaneous_requests_start_no_configuration_twice_and_no_trial_beyond_the_budget(ws: Workspace) -> None:
    ws.memory.sessions.set_parallel(SESSION, 6, auto=False)
    sizes = [size for size in (260, 300, 340, 380, 420, 460, 500) for _ in range(2)]
    gate = threading.Barrier(len(sizes))

    def ask(size: int) -> str:
        own = Workspace.open(ws.home, settings=ws.settings)
        gate.wait()
        try:
            return run_trial(own, SESSION, {"batch_size": size}, base="default", wait_seconds=0).trial
        except AdmissionError as error:
            return str(error)
        finally:
            own.close()

    with ThreadPoolExecutor(len(sizes)) as pool:
        answers = list(pool.map(ask, sizes))
    trials = ws.memory.trials.all(SESSION)
    configurations = [effective(trial.configuration) for trial in trials]
    assert len(trials) == 6 and all(configurations.count(one) == 1 for one in configurations)
    assert sum(answer in {trial.handle for trial in trials} for answer in answers) >= 6
    for trial in trials:
        cancel_trial(ws, SESSION, trial.handle)


def record_of(ws: Workspace, **fields: Any) -> TrialRecord:
    config = ws.protocol.space.default("sasrec")
    values = {"session": SESSION, "handle": "", "number": 0, "base": "default", "changes": {}}
    values |= {"config": config.model_dump(), "config_hash": "c", "train_hash": "t"}
    return TrialRecord(**{**values, **fields})


def test_a_start_after_another_one_and_a_verdict_after_another_keep_are_not_stored(ws: Workspace) -> None:
    trials = ws.memory.trials
    first = trials.start(record_of(ws), seen=0)
    with pytest.raises(ConflictError, match="another client has started a trial"):
        trials.start(record_of(ws), seen=0)
    second = trials.start(record_of(ws), seen=1)
    kept = TrialOutcome(status="finished", verdict="keep", metrics={"ndcg@10": 0.1})
    assert trials.finish(SESSION, second.handle, kept, judged=True)
    assert not trials.finish(SESSION, first.handle, kept, judged=True), "judged without the incumbent of now"
    assert trials.get(SESSION, first.handle).status == "running"
    against_it = kept.model_copy(update={"incumbent_before": second.handle})
    assert trials.finish(SESSION, first.handle, against_it, judged=True)


def test_running_trials_count_against_the_seconds_of_the_budget(ws: Workspace) -> None:
    trials = ws.memory.trials
    curve = [{"epoch": 1, "loss": 1.0, "ndcg10": 0.1, "train_seconds": 280.0, "evaluate_seconds": 20.0}]
    trials.start(record_of(ws))
    measured = TrialOutcome(
        status="finished", verdict="keep", metrics={"ndcg@10": 0.1}, curve=curve, train_seconds=310.0
    )
    assert trials.finish(SESSION, "t001", measured)
    session = ws.memory.sessions.get(SESSION)
    assert free_places(ws, session, trials.all(SESSION)) == 2
    other = ws.protocol.space.default("sasrec").model_copy(update={"lr": 0.002})
    trials.start(record_of(ws, train_hash="u", config=other.model_dump()))  # costs as much as the first: 310 + 300 s
    assert reserved_seconds(session, trials.all(SESSION)) == pytest.approx(300.0, abs=5)
    assert free_places(ws, session, trials.all(SESSION)) == 0
    assert "t002" in read_memory(ws, SESSION, "state").content["next"]
    with pytest.raises(AdmissionError, match="t002 will probably use the rest of the 600 training seconds"):
        run_trial(ws, SESSION, {"batch_size": 256}, base="default")


def test_an_automatic_session_takes_as_many_places_as_fit_into_measured_memory(ws: Workspace) -> None:
    ws.memory.sessions.set_parallel(SESSION, 64, auto=True)
    session = ws.memory.sessions.get(SESSION)
    assert places_of(ws, session, []) == 1, "nothing is measured yet"
    finished = run_trial(ws, SESSION, {})
    directory = ws.trial_directory(SESSION, finished.trial)
    result = read_result(directory)
    peak = ws.memory.trials.peak_bytes(SESSION)
    assert result is not None and peak == result.peak_bytes and 50e6 < result.peak_bytes < 10e9
    expected = free_bytes() / (HEADROOM * result.peak_bytes)
    assert places_of(ws, session, []) == pytest.approx(min(64, expected), rel=0.3, abs=1)
    for share, places in ((3, 2), (1.1, 1)):  # of the free memory, in the units of one place
        started = ws.memory.trials.start(record_of(ws))
        large = TrialOutcome(
            status="crashed", verdict="crash", details={"peak_bytes": round(free_bytes() / HEADROOM / (share - 0.5))}
        )
        ws.memory.trials.finish(SESSION, started.handle, large)
        assert places_of(ws, session, []) == places


def test_the_number_of_a_session_s_places_comes_from_the_option_or_from_the_page(tmp_path: Path) -> None:
    home = quick_home(tmp_path / "home")
    page = (home / "SANDBOX.md").read_text(encoding="utf-8")
    (home / "SANDBOX.md").write_text(page.replace("| `patience` | 10 |", "| `patience` | 10 |\n| `parallel` | 3 |"))
    for option, places in ((None, 3), (2, 2), ("auto", num_cores())):
        ws = Workspace.open(home, settings=Settings(device="cpu", parallel=option))  # type: ignore[arg-type]
        brief = open_session(ws, "demo", "sasrec", new=True)
        stored = ws.memory.sessions.get(brief.session)
        assert (brief.parallel, stored.parallel, stored.auto_parallel) == (places, places, option == "auto")
        assert any("trials run at a time" in rule for rule in brief.rules) == (places > 1)
        ws.close()


def test_a_trial_s_peak_is_its_own_and_not_that_of_an_earlier_trial_of_its_process() -> None:
    if not CLEAR.exists():
        pytest.skip("this system cannot reset the peak of a process")
    block = bytearray(300_000_000)
    block[::4096] = b"x" * len(block[::4096])
    high = peak_bytes()
    del block
    reset_peak()
    assert peak_bytes() < high - 200_000_000


@pytest.mark.anyio
async def test_a_wait_of_a_client_for_any_trial_returns_the_one_that_ends_during_it(
    ws: Workspace, anyio_backend: str
) -> None:
    slow, quick = start_paused(ws, PAUSED), start_paused(ws, {"hidden_dim": 24})
    info = Implementation(name="virtualmle", version="1")
    async with Client(build_server(ws.home, ws.settings), client_info=info) as client:

        async def wait(**arguments: Any) -> dict[str, Any]:
            answer = await client.call_tool("wait_trial", {"session": SESSION, **arguments})
            assert not answer.is_error and answer.structured_content, answer.content
            return answer.structured_content

        running = await wait(wait_seconds=0.2)
        assert (running["trial"], running["status"]) == (slow.trial, "running")
        assert "Trials t001 and t002 are still running" in running["next"]
        assert (await wait(trial=quick.trial, wait_seconds=0.2))["next"].startswith("Trial t002 is still running")
        threading.Timer(0.5, go_on, (ws, quick.trial)).start()  # after the wait has begun
        named: list[dict[str, Any]] = [{"trial": [slow.trial, quick.trial]}, {"trial": quick.trial}]
        for arguments in ({}, *named):
            ended = await wait(**arguments)
            assert (ended["trial"], ended["status"]) == (quick.trial, "finished")
        assert [trial.handle for trial in sync_session(ws, SESSION)] == [slow.trial]


def test_the_option_parallel_is_read_passed_on_to_the_server_and_reported_if_it_has_no_effect(ws: Workspace) -> None:
    assert [parallel_of(text) for text in (None, "auto", "3")] == [None, "auto", 3]
    for text in ("0", "-1", "two", "1000"):
        with pytest.raises(ConfigError, match="neither auto nor a number"):
            parallel_of(text)
    options = settings_options(Settings(parallel="auto"))
    assert options[options.index("--parallel") + 1] == "auto" and "--parallel" not in settings_options(Settings())
    record = ws.memory.sessions.get(SESSION)
    assert "--parallel 4" in ignored_options(Settings(parallel=4), record)
    assert "--parallel" not in ignored_options(Settings(parallel=2), record)
