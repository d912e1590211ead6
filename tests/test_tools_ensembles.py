"""Ensembles through the tools, in a real home with real workers: members, verdicts, errors, and the look at the end."""

import contextlib
import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.small_parts import closed, opened
from tests.waiting import until
from virtualmle.agents.base import Brief, Situation
from virtualmle.agents.ensembles import planned_ensemble
from virtualmle.agents.history import History
from virtualmle.data.errors import ConfigError, SessionError, SweepError
from virtualmle.examiner.answers import reveal_choice
from virtualmle.examiner.main import load_candidate
from virtualmle.examiner.request import looks, read_revealed
from virtualmle.examiner.vault import PRIVATE, Vault
from virtualmle.memory.records import TrialRecord
from virtualmle.models.config import train_hash
from virtualmle.sandbox.effects import knob_effects
from virtualmle.sandbox.protocol import PACKAGED
from virtualmle.sandbox.statistics import compare
from virtualmle.tools.finalize import finalize
from virtualmle.tools.open_session import open_session
from virtualmle.tools.read_memory import read_memory
from virtualmle.tools.revealing import pack_choice, reveal
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.sweep import sweep
from virtualmle.tools.views import StateView, TrajectoryView, TrialView
from virtualmle.tools.wait_trial import wait_trial
from virtualmle.tools.workspace import Workspace
from virtualmle.training.evaluate import train_histories
from virtualmle.training.spec import CHECKPOINT, RANKS, read_spec
from virtualmle.trials.lease import read_lease

TINY = {"epochs": 1, "hidden_dim": 16, "batch_size": 512, "lr": 0.005}
SESSION, OTHER = "demo-sasrec-1", "demo-hstu-1"
ENSEMBLE = "demo-hstu-1/t001+t002"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two sessions on one dataset: t003 re-scores t001, t004 is an ensemble, and t005 a sweep over it."""
    home = tmp_path_factory.mktemp("trained") / "home"
    ws = opened(home)
    open_session(ws, "demo", "hstu")
    run_trial(ws, OTHER, TINY)
    open_session(ws, "demo", "sasrec")
    run_trial(ws, SESSION, TINY)
    run_trial(ws, SESSION, {**TINY, "hidden_dim": 24}, base="default")
    run_trial(ws, SESSION, {"transition_weight": 8.0}, base="t001")
    run_trial(ws, SESSION, {"ensemble": [f"{OTHER}/t001", "t002"]}, base="t003")
    sweep(ws, SESSION, [{"transition_weight": 2.0}, {"transition_weight": 16.0}], base="t004")
    closed(ws)
    return home


@pytest.fixture
def ws(trained: Path, tmp_path: Path) -> Iterator[Workspace]:
    workspace = opened(Path(shutil.copytree(trained, tmp_path / "home")))
    yield workspace
    closed(workspace)


def recorded(ws: Workspace, handle: str) -> TrialRecord:
    return ws.memory.trials.get(SESSION, handle)


def ranks(ws: Workspace, handle: str) -> Any:
    return np.load(ws.trial_directory(SESSION, handle) / RANKS)


def test_an_ensemble_of_both_backbones_is_a_trial_that_is_judged_and_costs_no_training(ws: Workspace) -> None:
    record, view = recorded(ws, "t004"), TrajectoryView(**read_memory(ws, SESSION, "trajectory").content)
    assert record.changes == {"ensemble": ENSEMBLE} and record.is_ensemble and record.base == "t003"
    assert view.trials[3].settings == {"ensemble": ENSEMBLE, "transition_weight": 8.0}
    outcome = record.outcome
    assert outcome and outcome.details["rescored"] and outcome.curve == [] and outcome.train_seconds < 30
    members = [recorded(ws, "t002"), ws.memory.trials.get(OTHER, "t001")]
    assert outcome.parameters == sum(m.outcome.parameters for m in members if m.outcome)
    assert outcome.incumbent_before
    judged = compare(ranks(ws, outcome.incumbent_before), ranks(ws, "t004"))
    assert (outcome.delta, outcome.delta_se) == (judged.delta, judged.se)
    assert outcome.verdict == ("keep" if judged.z >= 1 else "discard")
    assert [m.name for m in read_spec(ws.trial_directory(SESSION, "t004")).members] == [f"{OTHER}/t001", "t002"]


def test_the_order_the_base_and_the_own_session_in_a_name_do_not_make_another_trial(ws: Workspace) -> None:
    turned = {"ensemble": [f"{SESSION}/T002", f"{OTHER}/t001"], "transition_weight": 8.0}
    for base in ("default", "t002", "t005"):
        again = run_trial(ws, SESSION, turned, base=base)
        assert again.trial == "t004" and "nothing was spent" in again.next
    models = {train_hash(recorded(ws, handle).configuration) for handle in ("t004", "t005")}
    assert len(models) == 1 and len(ws.memory.trials.all(SESSION)) == 5


def test_a_training_knob_over_an_ensemble_has_no_effect_and_the_answer_says_what_to_do(ws: Workspace) -> None:
    again = run_trial(ws, SESSION, {"lr": 0.001}, base="t004")
    assert again.trial == "t004" and "lr has no effect" in again.next
    assert "set ensemble=[]" in again.next
    assert run_trial(ws, SESSION, {"ensemble": []}, base="t004").trial == "t003"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["t001"], "ensemble names 1; give a list of 2 to 4 trials"),
        (["t001", "t002", "t003", "t004", "t005"], "ensemble names 5"),
        (["t001", "T001"], "names a trial twice"),
        (["t001", f"{SESSION}/t001"], "names a trial twice"),
        (["t001", 7], "7 is not the name of a trial"),
        (["t001", "best"], "'best' is not the name of a trial; write t004, or SESSION/t004"),
        ("t001", "ensemble names 1"),
        (3, "ensemble=3 is not a list of trials"),
        (["t001", "t003"], "t001 and t003 share one trained model"),
        (["t001", "t009"], "unknown trial 't009' of session 'demo-sasrec-1'"),
        (["t001", "shop-hstu-1/t001"], "unknown session 'shop-hstu-1'"),
    ],
)
def test_a_list_that_is_no_ensemble_is_refused_and_costs_nothing(ws: Workspace, names: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        run_trial(ws, SESSION, {"ensemble": names})
    assert message in str(error.value)
    if "unknown" in message or "share" in message:
        assert "possible now: t003, " in str(error.value) and f"{OTHER}/t001" in str(error.value)
        asked = run_trial(ws, SESSION, {"ensemble": names}, dry_run=True).plan
        assert asked is not None and (asked.would, asked.reason) == ("refuse", str(error.value))
    assert len(ws.memory.trials.all(SESSION)) == 5


def test_what_may_not_be_a_member_is_named_with_the_reason(ws: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"t004 is an ensemble itself; name its members \(demo-hstu-1/t001, t002\)"):
        run_trial(ws, SESSION, {"ensemble": ["t004", "t001"]})
    (ws.trial_directory(SESSION, "t002") / CHECKPOINT).unlink()
    with pytest.raises(ConfigError, match="t002 has lost its checkpoint; possible now: t003, demo-hstu-1/t001"):
        run_trial(ws, SESSION, {"ensemble": ["t002", "t001"]})
    again = run_trial(ws, SESSION, {"ensemble": ["t002", f"{OTHER}/t001"]}, base="t003")
    assert again.trial == "t004"  # a duplicate is answered although its member is gone


def test_a_session_without_memory_may_not_use_the_trials_of_others(ws: Workspace) -> None:
    alone = opened(ws.home, with_memory=False)
    session = open_session(alone, "demo", "sasrec", new=True).session
    with pytest.raises(ConfigError, match="belongs to another session, and this one may not .* train one first"):
        run_trial(alone, session, {"ensemble": [f"{SESSION}/t001", f"{OTHER}/t001"]})
    alone.close()


def test_an_ensemble_is_not_offered_by_a_page_without_its_row(ws: Workspace, tmp_path: Path) -> None:
    page = tmp_path / "old.md"
    lines = PACKAGED.read_text(encoding="utf-8").split("\n")
    page.write_text("\n".join(line for line in lines if not line.startswith("| `ensemble` |")), encoding="utf-8")
    old = opened(ws.home, protocol_path=page)
    session = open_session(old, "demo", "sasrec", new=True).session
    with pytest.raises(ConfigError, match="SANDBOX.md does not offer it"):
        run_trial(old, session, {"ensemble": [f"{SESSION}/t001", f"{SESSION}/t002"]})
    old.close()


def test_effects_and_proposals_are_those_of_single_models(ws: Workspace) -> None:
    trials = ws.memory.trials.all(SESSION)
    assert knob_effects(trials) == knob_effects(trials[:3]) and "transition_weight" in knob_effects(trials)
    state = StateView(**read_memory(ws, SESSION, "state").content)
    assert TrialView(**read_memory(ws, SESSION, "trial", trial="t004").content).shares == []
    assert state.incumbent in ("t004", "t005"), "the test needs an ensemble as incumbent"
    assert state.proposals and all("ensemble" not in proposal.changes for proposal in state.proposals)
    assert {proposal.base for proposal in state.proposals} <= {"t001", "t002", "t003"}


def test_a_sweep_over_an_ensemble_chooses_its_best_setting_and_the_ensemble_itself_is_not_swept(
    ws: Workspace,
) -> None:
    record = recorded(ws, "t005")
    assert record.is_ensemble and record.outcome and record.outcome.status == "finished"
    assert record.config["transition_weight"] in (2.0, 16.0)
    candidate = load_candidate(ws.trial_directory(SESSION, "t005"), ws.dataset("demo"))
    assert candidate.config == record.configuration and len(candidate.members) == 2
    with pytest.raises(SweepError, match="a sweep re-scores one model"):
        sweep(ws, SESSION, [{"ensemble": ["t001", f"{OTHER}/t001"]}], base="t004")


def test_finalize_needs_every_member_and_the_examiner_ranks_as_the_worker_does(ws: Workspace) -> None:
    dataset = ws.dataset("demo")
    best = max(ws.memory.trials.all(SESSION), key=lambda t: t.outcome.metrics["ndcg@10"] if t.outcome else 0).handle
    assert best in ("t004", "t005"), "the test needs a selected ensemble"
    candidate = load_candidate(ws.trial_directory(SESSION, best), dataset)
    examined, _ = candidate.rank(train_histories(dataset), dataset.valid_items, dataset.num_items)
    assert (examined == ranks(ws, best)).all()
    checkpoint = ws.trial_directory(OTHER, "t001") / CHECKPOINT
    content = checkpoint.read_bytes()
    checkpoint.unlink()
    with pytest.raises(SessionError, match=rf"{best} cannot be evaluated: .* missing; .* or leave {OTHER}/t001 out"):
        finalize(ws, SESSION, "an ensemble", confirm=True)
    checkpoint.write_bytes(content[:-4] + b"0000")
    with pytest.raises(SessionError, match=f"is not the checkpoint that {OTHER}/t001 wrote"):
        finalize(ws, SESSION, "an ensemble", confirm=True)
    assert ws.memory.sessions.get(SESSION).state == "open"
    checkpoint.write_bytes(content)
    final = finalize(ws, SESSION, "an ensemble", confirm=True)
    assert (final.state, final.selected, final.look) == ("withheld", best, 1), f"{OTHER} is open"
    test = read_revealed(ws.home, SESSION)
    assert test is not None and 0 < test.metrics["ndcg@10"] < 1
    with contextlib.closing(sqlite3.connect(ws.home / "memory.db")) as db:
        kept = db.execute("SELECT trial, config FROM configurations WHERE session = ?", [SESSION]).fetchall()
        assert {trial for trial, _ in kept} == {"t001", "t002", "t003"} and "ensemble" not in str(kept)
        assert db.execute("SELECT count(*) FROM effects WHERE knob = 'ensemble'").fetchone() == (0,)


def test_the_sealed_choice_of_an_ensemble_takes_its_members_along(ws: Workspace, tmp_path: Path) -> None:
    key = (Vault(ws.home).directory / PRIVATE).rename(tmp_path / "key")
    assert finalize(ws, SESSION, "an ensemble", confirm=True).state == "frozen"
    choice = pack_choice(ws, SESSION, tmp_path / "choice.tar")
    assert f"sessions/{OTHER}/t001/{CHECKPOINT}" in choice.files
    _, answer = reveal_choice(tmp_path / "holder", tmp_path / "choice.tar", key, 250.0)
    assert reveal(ws, SESSION, key).state == "withheld", f"{OTHER} is open"
    here, there = read_revealed(ws.home, SESSION), answer.answer().result
    assert here is not None and there is not None and here.metrics == there.metrics


def test_a_confirmation_leaves_ensembles_out(ws: Workspace, tmp_path: Path) -> None:
    page = tmp_path / "confirm.md"
    rows = "| `confirm_top` | 1 | |\n| `confirm_repetitions` | 1 | |\n"
    text = PACKAGED.read_text(encoding="utf-8")
    page.write_text(text.replace("| `keep_z` |", f"{rows}| `keep_z` |", 1), encoding="utf-8")
    confirming = opened(ws.home, protocol_path=page)
    session = open_session(confirming, "demo", "sasrec", new=True).session
    run_trial(confirming, session, TINY)
    run_trial(confirming, session, {"ensemble": [f"{SESSION}/t002", f"{OTHER}/t001"], "transition_weight": 8.0})
    final = finalize(confirming, session, "confirmed", confirm=True)
    assert final.selected == "t001" and final.confirmation and final.confirmation.selected == "t001"
    later = open_session(confirming, "demo", "sasrec", new=True).session
    repetition = run_trial(confirming, later, {"ensemble": [f"{session}/t001r1", f"{session}/t001"]})
    assert repetition.status == "finished"
    closed(confirming)


def test_a_killed_ensemble_is_a_crash_that_may_be_repeated(ws: Workspace) -> None:
    assert run_trial(ws, SESSION, {"ensemble": ["t001", "t002"]}, wait_seconds=0).status == "running"
    directory = ws.trial_directory(SESSION, "t006")
    until(lambda: read_lease(directory) is not None)
    lease = read_lease(directory)
    assert lease
    os.kill(lease.pid, signal.SIGKILL)
    crashed = wait_trial(ws, SESSION, "t006")
    assert (crashed.status, crashed.verdict) == ("crashed", "crash")
    assert run_trial(ws, SESSION, {"ensemble": ["t002", "t001"]}).trial == "t007"
    assert recorded(ws, "t007").status == "finished"


def situation(ws: Workspace, session: str, backbone: str) -> Situation:
    """What an agent of the session knows now."""
    state, trajectory = (read_memory(ws, session, view).content for view in ("state", "trajectory"))
    brief = Brief.of(open_session(ws, "demo", backbone))
    assert brief.session == session
    return Situation(brief, StateView(**state), TrajectoryView(**trajectory))


def named(ws: Workspace, session: str) -> list[str]:
    return [one.trial for one in StateView(**read_memory(ws, session, "state").content).other_members]


def score(ws: Workspace, handle: str) -> float:
    outcome = recorded(ws, handle).outcome
    return outcome.metrics["ndcg@10"] if outcome else 0.0


def test_the_engineer_scores_its_model_with_the_best_ones_of_another_session(ws: Workspace) -> None:
    best = [max("t001", "t003", key=lambda handle: score(ws, handle)), "t002"]  # t001 and t003 share a model
    best.sort(key=lambda handle: -score(ws, handle))
    assert named(ws, OTHER) == [f"{SESSION}/{handle}" for handle in best]
    assert named(ws, SESSION) == [f"{OTHER}/t001"]
    planned = planned_ensemble(History(situation(ws, OTHER, "hstu"), from_best=True))
    assert planned and planned.changes == {"ensemble": "+".join(sorted(["t001", *named(ws, OTHER)]))}
    found = run_trial(ws, OTHER, planned.changes, hypothesis=planned.hypothesis, base=planned.base)
    assert found.status == "finished" and found.metrics
    assert planned_ensemble(History(situation(ws, OTHER, "hstu"), from_best=True)) is None


def test_what_may_not_be_a_member_is_not_named(ws: Workspace) -> None:
    (ws.trial_directory(SESSION, "t002") / CHECKPOINT).unlink()
    (name,) = named(ws, OTHER)
    assert name in (f"{SESSION}/t001", f"{SESSION}/t003")
    alone = opened(ws.home, with_memory=False)
    session = open_session(alone, "demo", "hstu", new=True).session
    assert named(alone, session) == [] and "other_members" not in read_memory(alone, session, "state").content
    alone.close()


def test_trials_that_began_after_a_look_at_the_data_are_not_named(ws: Workspace) -> None:
    before = named(ws, OTHER)
    finalize(ws, SESSION, "the summary of a session whose look comes first", confirm=True)
    until(lambda: bool(looks(ws.home)))
    late = open_session(ws, "demo", "sasrec", new=True).session
    run_trial(ws, late, {**TINY, "hidden_dim": 32})
    assert named(ws, OTHER) == before and named(ws, late), "those that began before the look"
    assert not any(name.startswith(late) for name in named(ws, OTHER))
