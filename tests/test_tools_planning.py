"""Time before money: dry runs, estimates, and what a call says of arguments that have no effect."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.quick_home import quick_home
from virtualmle.data.errors import AdmissionError
from virtualmle.examiner.audit import AuditLog
from virtualmle.examiner.vault import Vault
from virtualmle.sandbox.program import Heuristic, Occupation, admit
from virtualmle.tools.finalize import finalize
from virtualmle.tools.guidance import budget_of
from virtualmle.tools.open_session import open_session
from virtualmle.tools.planning import planned
from virtualmle.tools.recording import extend_recorded
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.sweep import sweep
from virtualmle.tools.wait_trial import wait_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.trials.warm import retire

SESSION = "demo-sasrec-1"
SETTINGS = Settings(threads=1, device="cpu", with_reflection=False, keep_warm=30, max_trials=4)


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A session with the default and one wider trial; tests add nothing to it, except the last one."""
    workspace = Workspace.open(quick_home(tmp_path_factory.mktemp("planning") / "home"), settings=SETTINGS)
    open_session(workspace, "demo", "sasrec")
    first = run_trial(workspace, SESSION, {}, dry_run=True)
    assert (first.status, first.estimate and first.estimate.seconds) == ("planned", None)
    assert first.estimate is not None and "no trial has finished here" in first.estimate.basis
    run_trial(workspace, SESSION, {})
    run_trial(workspace, SESSION, {"hidden_dim": 32})
    yield workspace
    workspace.close()


def written(ws: Workspace) -> tuple[int, int]:
    """Trials and entries of the audit log, none of which a dry run may add."""
    return len(ws.memory.trials.all(SESSION)), len(AuditLog(Vault(ws.home).directory).entries())


@pytest.mark.parametrize("base", ["Default", " INCUMBENT ", "T002"])
def test_a_base_may_be_in_any_case(ws: Workspace, base: str) -> None:
    found = run_trial(ws, SESSION, {"hidden_dim": 24}, base=base, dry_run=True)
    assert found.base in {"default", "t001", "t002"}


def test_a_dry_run_estimates_and_starts_and_records_nothing(ws: Workspace) -> None:
    before = written(ws)
    found = run_trial(ws, SESSION, {"hidden_dim": 24}, base="default", dry_run=True)
    assert written(ws) == before
    assert (found.status, found.trial, found.changes) == ("planned", "", {"hidden_dim": 24})
    assert found.plan is not None and found.estimate is not None
    assert (found.plan.would, found.plan.rescores, found.plan.trials_left) == ("start", False, 1)
    outcome = ws.memory.trials.get(SESSION, "t001").outcome
    assert outcome is not None and found.estimate.seconds is not None and found.estimate.memory_mb is not None
    assert 0.2 < found.estimate.seconds / outcome.train_seconds < 5
    assert found.estimate.wall_seconds is not None and found.estimate.wall_seconds > found.estimate.seconds
    assert "scaled from those of t00" in found.estimate.basis and "memory: peak of t00" in found.estimate.basis
    left = ws.memory.sessions.get(SESSION).max_train_seconds - found.budget.train_seconds_used
    assert found.plan.train_seconds_left == pytest.approx(left - found.estimate.seconds, abs=0.2)


def test_a_dry_run_of_a_known_configuration_names_its_trial(ws: Workspace) -> None:
    found = run_trial(ws, SESSION, {"hidden_dim": 32}, base="default", dry_run=True)
    assert found.plan is not None
    assert (found.duplicate, found.trial, found.plan.would, found.estimate) == (True, "t002", "return", None)
    assert found.plan.trials_left == 2, "it costs nothing"


def test_a_dry_run_of_a_sweep_with_one_setting_names_it(ws: Workspace) -> None:
    found = sweep(ws, SESSION, [{"transition_weight": 2.0}], base="default", dry_run=True)
    assert found.changes == {"transition_weight": 2.0}


def test_a_dry_run_says_that_it_would_only_score_again(ws: Workspace) -> None:
    found = run_trial(ws, SESSION, {"transition_weight": 4.0}, base="default", dry_run=True)
    assert found.plan is not None and found.plan.rescores
    assert found.estimate is not None and found.estimate.basis.startswith("seconds: only scores again")


def test_changes_without_an_effect_and_roundings_are_said(ws: Workspace) -> None:
    changes = {"batch_size": 512, "transition_weight": 2.0000001}
    found = run_trial(ws, SESSION, changes, base="default", dry_run=True)
    assert found.ignored == "batch_size=512 is the value of default already"
    assert found.rounded.startswith("transition_weight=2.0000001 was rounded to 2.0")
    again = run_trial(ws, SESSION, {"batch_size": 512, "hidden_dim": 32}, base="default")
    assert again.duplicate and again.ignored == found.ignored, "a call that starts or returns a trial says it too"


def test_matching_heuristics_are_named_whether_they_refuse_the_trial_or_are_overridden(ws: Workspace) -> None:
    session, trials = ws.memory.sessions.get(SESSION), ws.memory.trials.all(SESSION)
    space = ws.session_protocol(session).space
    base, changes = space.default("sasrec"), {"hidden_dim": 8}
    config = space.resolve(base, changes)
    heuristics = [Heuristic(3, "“narrow hurts”", "hidden_dim < 12"), Heuristic(4, "“wide hurts”", "hidden_dim > 24")]
    plans = []
    for reason in ("", "a small catalogue"):
        admission = admit(
            session_state="open", trials=trials, budget=budget_of(session, trials), running=Occupation(),
            pending_reflection=None, base=base, config=config, changes=changes, heuristics=heuristics,
            override_reason=reason,
        )  # fmt: skip
        plans.append(planned(ws, session, trials, [config], admission, heuristics, ("default", base), changes))
    refused, overridden = plans
    assert refused.plan is not None and overridden.plan is not None
    assert (refused.plan.would, overridden.plan.would) == ("refuse", "start")
    assert refused.plan.heuristics == overridden.plan.heuristics == ["3: hidden_dim < 12 (“narrow hurts”)"]
    assert "discard heuristic 3" in refused.next
    assert (refused.plan.trials_left, overridden.plan.trials_left) == (2, 1), "a refusal uses nothing"
    assert refused.estimate is not None and refused.estimate.seconds is not None, "it does not depend on a refusal"


def test_a_dry_run_of_a_sweep_counts_its_new_settings(ws: Workspace) -> None:
    before = written(ws)
    settings = [{"transition_weight": 0.0}, {"transition_weight": 2.0}, {"transition_weight": 4.0}]
    found = sweep(ws, SESSION, settings, base="default", dry_run=True)
    assert written(ws) == before
    assert found.plan is not None and (found.plan.would, found.plan.settings, found.plan.rescores) == ("start", 2, True)
    assert found.estimate is not None and found.estimate.seconds is not None
    assert found.ignored == "transition_weight=0.0 is the value of default already"
    known = sweep(ws, SESSION, settings[:1], base="default", dry_run=True)
    assert known.plan is not None and (known.plan.would, known.trial) == ("return", "t001")


def test_a_trial_that_runs_is_answered_with_its_estimate_and_another_session_learns_from_it(ws: Workspace) -> None:
    started = run_trial(ws, SESSION, {"hidden_dim": 24}, base="default", wait_seconds=0)
    if started.status == "running":
        assert started.estimate is not None and started.estimate.seconds is not None
    assert wait_trial(ws, SESSION, started.trial).estimate is None, "then it has what it took"
    finalize(ws, SESSION, "a small catalogue", confirm=True)
    other = open_session(ws, "demo", "sasrec", new=True).session
    found = run_trial(ws, other, {"hidden_dim": 20}, dry_run=True)
    assert found.estimate is not None and found.estimate.seconds is not None
    assert f"scaled from those of {SESSION}/t00" in found.estimate.basis
    closed = run_trial(ws, SESSION, {"hidden_dim": 20}, dry_run=True)
    assert closed.plan is not None and closed.plan.would == "refuse" and "takes no more trials" in closed.plan.reason


def test_a_session_whose_patience_is_exceeded_takes_no_more_trials_until_a_person_extends_it(tmp_path: Path) -> None:
    home = quick_home(tmp_path / "home")
    page = home / "SANDBOX.md"
    text = page.read_text(encoding="utf-8").replace("`max_trials` | 2", "`max_trials` | 9")
    page.write_text(text.replace("| `patience` | 10 |", "| `patience` | 1 |"), encoding="utf-8")
    ws = Workspace.open(home, settings=Settings(threads=1, device="cpu", with_reflection=False, keep_warm=30))
    open_session(ws, "demo", "sasrec")
    run_trial(ws, SESSION, {"batch_size": 256})
    discarded = run_trial(ws, SESSION, {"batch_size": 512})
    assert discarded.verdict == "discard" and "1 trial in a row without a keep (patience 1)" in discarded.next
    asked = run_trial(ws, SESSION, {"hidden_dim": 32}, dry_run=True).plan
    assert asked is not None and asked.would == "refuse" and asked.reason.startswith("the session has stopped")
    for call in (lambda: run_trial(ws, SESSION, {"hidden_dim": 32}),
                 lambda: sweep(ws, SESSION, [{"transition_weight": 4.0}])):  # fmt: skip
        with pytest.raises(AdmissionError, match="the session has stopped: 1 trial in a row without a keep"):
            call()
    assert run_trial(ws, SESSION, {"batch_size": 512}).duplicate
    extend_recorded(ws.home, ws.memory, SESSION, 2, 0.0)
    assert run_trial(ws, SESSION, {"hidden_dim": 32}).status == "finished"
    retire(ws.inbox(SESSION))
    ws.close()
