"""Students through the tools, in a real home with real workers: teachers, refusals, scoring, memory, and the look."""

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
from virtualmle.data.errors import ConfigError
from virtualmle.examiner.main import load_candidate
from virtualmle.examiner.request import read_revealed
from virtualmle.examiner.vault import PRIVATE, Vault
from virtualmle.memory.records import TrialRecord
from virtualmle.models.build import num_parameters
from virtualmle.models.config import train_hash
from virtualmle.report.gather import gather
from virtualmle.sandbox.effects import knob_effects
from virtualmle.sandbox.joint import evidence
from virtualmle.sandbox.protocol import PACKAGED
from virtualmle.sandbox.steps import knob_steps
from virtualmle.tools.cancel_trial import cancel_trial
from virtualmle.tools.finalize import finalize
from virtualmle.tools.open_session import open_session
from virtualmle.tools.read_memory import read_memory
from virtualmle.tools.revealing import pack_choice, reveal
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.sweep import sweep
from virtualmle.tools.views import StateView, TrialView
from virtualmle.tools.wait_trial import wait_trial
from virtualmle.tools.workspace import Workspace
from virtualmle.training.checkpoint import load_checkpoint
from virtualmle.training.evaluate import train_histories
from virtualmle.training.spec import CHECKPOINT, RANKS, USERS, NamedModel, TrialSpec, read_result, read_spec
from virtualmle.trials.lease import read_lease

TINY = {"epochs": 1, "hidden_dim": 16, "batch_size": 512, "lr": 0.005}
SESSION, OTHER = "demo-sasrec-1", "demo-hstu-1"
TEACHERS = f"{OTHER}/t001+t002"
DECAYED = {"weight_decay": 0.02}
TAUGHT = {"loss": "full_softmax", "teachers": [f"{OTHER}/t001", "t002"]}
FROM_AFAR = {**TINY, "loss": "full_softmax", "teachers": [f"{SESSION}/t002", f"{OTHER}/t001"]}
NUM_TRIALS = 6  # of SESSION, in the trained home


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two sessions on one dataset: t003 is a student, t004 re-scores it, t005 is a sweep over it, and t006
    an ensemble with it. The other session's t002 was trained with causal=false."""
    home = tmp_path_factory.mktemp("trained") / "home"
    ws = opened(home)
    open_session(ws, "demo", "hstu")
    run_trial(ws, OTHER, TINY)
    run_trial(ws, OTHER, {"causal": False, "supervision": "last"}, base="t001")
    open_session(ws, "demo", "sasrec")
    run_trial(ws, SESSION, TINY)
    run_trial(ws, SESSION, DECAYED, base="t001")
    run_trial(ws, SESSION, TAUGHT, base="t001")
    run_trial(ws, SESSION, {"transition_weight": 8.0}, base="t003")
    sweep(ws, SESSION, [{"transition_weight": 2.0}, {"transition_weight": 16.0}], base="t003")
    run_trial(ws, SESSION, {"ensemble": [f"{OTHER}/t001", "t003"]}, base="t005")
    closed(ws)
    return home


@pytest.fixture
def ws(trained: Path, tmp_path: Path) -> Iterator[Workspace]:
    workspace = opened(Path(shutil.copytree(trained, tmp_path / "home")))
    yield workspace
    closed(workspace)


def recorded(ws: Workspace, handle: str, session: str = SESSION) -> TrialRecord:
    return ws.memory.trials.get(session, handle)


def spec_of(ws: Workspace, handle: str, session: str = SESSION) -> TrialSpec:
    return read_spec(ws.trial_directory(session, handle))


def ranks(ws: Workspace, handle: str, session: str = SESSION) -> Any:
    return np.load(ws.trial_directory(session, handle) / RANKS)


def losses(trial: TrialRecord) -> list[float]:
    return [epoch["loss"] for epoch in trial.outcome.curve] if trial.outcome else []


def score(trial: TrialRecord) -> float:
    return trial.outcome.metrics["ndcg@10"] if trial.outcome else 0.0


def lose(ws: Workspace, *names: str) -> None:
    """Delete the checkpoints of trials, given as SESSION/TRIAL."""
    for name in names:
        (ws.trial_directory(*name.split("/")) / CHECKPOINT).unlink()


def page_of(path: Path, changed: str) -> Path:
    path.write_text(changed, encoding="utf-8")
    return path


def test_a_student_of_both_backbones_is_a_trial_that_trains_a_model_of_its_own(ws: Workspace) -> None:
    record, spec = recorded(ws, "t003"), spec_of(ws, "t003")
    assert record.changes == {"loss": "full_softmax", "teachers": TEACHERS} and record.base == "t001"
    assert record.uses_models and not record.is_ensemble
    outcome = record.outcome
    assert outcome and outcome.status == "finished" and not outcome.details["rescored"] and outcome.verdict
    assert len(outcome.curve) == 1 and outcome.train_seconds > 0 and outcome.base_delta is not None
    model, config = load_checkpoint(ws.trial_directory(SESSION, "t003") / CHECKPOINT)
    assert config == record.configuration and config.hidden_dim == 16
    assert outcome.parameters == num_parameters(model)
    assert spec.members == [] and spec.rescore_from is None
    assert [teacher.name for teacher in spec.teachers] == [f"{OTHER}/t001", "t002"]
    for teacher, (owner, handle) in zip(spec.teachers, ((OTHER, "t001"), (SESSION, "t002")), strict=True):
        result = read_result(ws.trial_directory(owner, handle))
        assert result and teacher.files == {name: result.files[name] for name in (CHECKPOINT, USERS)}
    assert not recorded(ws, "t002").uses_models and spec_of(ws, "t002").teachers == []


def test_the_order_the_base_and_the_own_session_in_a_name_do_not_make_another_trial(ws: Workspace) -> None:
    turned = {**TINY, "loss": "full_softmax", "teachers": [f"{SESSION}/T002", f"{OTHER}/t001"]}
    for base in ("default", "t001", "t003"):
        again = run_trial(ws, SESSION, turned, base=base)
        assert again.trial == "t003" and "nothing was spent" in again.next
    assert len(ws.memory.trials.all(SESSION)) == NUM_TRIALS


def test_a_student_without_its_teachers_or_with_fewer_is_another_model(ws: Workspace) -> None:
    fewer = run_trial(ws, SESSION, {"teachers": "t002"}, base="t003")
    plain = run_trial(ws, SESSION, {"teachers": []}, base="t003")
    found = [recorded(ws, handle) for handle in ("t003", fewer.trial, plain.trial)]
    assert [len(spec_of(ws, trial.handle).teachers) for trial in found] == [2, 1, 0]
    assert not any(trial.outcome and trial.outcome.details["rescored"] for trial in found)
    assert len({train_hash(trial.configuration) for trial in found}) == 3 == len({losses(trial)[0] for trial in found})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["t001", "t002", "t003", "t004", "t005"], "teachers names 5; give a list of 1 to 4 trials"),
        (["t001", "T001"], "names a trial twice"),
        ([f"{SESSION}/t001", "t001"], "names a trial twice"),
        (["t001", 7], "7 is not the name of a trial"),
        ("best", "'best' is not the name of a trial; write t004, or SESSION/t004"),
        (3, "teachers=3 is not a list of trials"),
    ],
)
def test_a_list_that_names_no_trials_is_refused_and_costs_nothing(ws: Workspace, names: Any, message: str) -> None:
    for dry_run in (False, True):
        with pytest.raises(ConfigError) as error:
            run_trial(ws, SESSION, {**TAUGHT, "teachers": names}, base="t001", dry_run=dry_run)
        assert message in str(error.value)
    assert len(ws.memory.trials.all(SESSION)) == NUM_TRIALS


def assert_refused(ws: Workspace, session: str, names: list[str], message: str, possible: str) -> None:
    """The teachers are refused with both texts, also by a dry run, and nothing is spent."""
    before = len(ws.memory.trials.all(session))
    changes = {**TINY, "loss": "full_softmax", "teachers": names}
    with pytest.raises(ConfigError) as error:
        run_trial(ws, session, changes, base="default")
    said, _, offered = str(error.value).rpartition("; ")
    assert said.startswith("teachers: ") and message in said and possible in offered
    plan = run_trial(ws, session, changes, base="default", dry_run=True).plan
    assert plan and (plan.would, plan.reason) == ("refuse", str(error.value))
    assert len(ws.memory.trials.all(session)) == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["t006"], f"t006 is an ensemble itself; name its members ({OTHER}/t001, t003)"),
        (["t009"], "unknown trial 't009' of session 'demo-sasrec-1'"),
        (["shop-hstu-1/t001", "t001"], "unknown session 'shop-hstu-1'"),
        (["t003", "t004"], "t003 and t004 share one trained model, so they would count twice; leave one out"),
        ([f"{OTHER}/t002"], f"{OTHER}/t002 was trained with causal=false, so that it sees the events"),
    ],
)
def test_trials_that_cannot_teach_are_refused_with_those_that_can(
    ws: Workspace, names: list[str], message: str
) -> None:
    assert_refused(ws, SESSION, names, message, "possible now: ")
    assert_refused(ws, SESSION, names, message, f"{OTHER}/t001")


def test_a_refusal_offers_no_trial_that_cannot_teach(ws: Workspace) -> None:
    for names in (["t009"], [f"{OTHER}/t002"]):
        with pytest.raises(ConfigError) as error:
            run_trial(ws, SESSION, {**TAUGHT, "teachers": names}, base="t001")
        offered = str(error.value).partition("possible now: ")[2].split(", ")
        assert {"t001", "t002", f"{OTHER}/t001"} <= {*offered}
        assert f"{OTHER}/t002" not in offered, "it was trained with causal=false"


def test_a_trial_that_runs_or_has_not_finished_cannot_teach(ws: Workspace) -> None:
    long = {**TINY, "epochs": 300, "patience": 60}
    for handle, width, ends in (("t003", 24, "cancelled"), ("t004", 32, "crashed")):
        assert run_trial(ws, OTHER, {**long, "hidden_dim": width}, wait_seconds=0).status == "running"
        directory, name = ws.trial_directory(OTHER, handle), [f"{OTHER}/{handle}"]
        until(lambda directory=directory: read_lease(directory) is not None)
        assert_refused(ws, SESSION, name, f"{name[0]} is running: wait_trial for it first", "possible now: ")
        lease = read_lease(directory)
        assert lease
        if ends == "cancelled":
            cancel_trial(ws, OTHER, handle)
        else:
            os.kill(lease.pid, signal.SIGKILL)
        assert wait_trial(ws, OTHER, handle).status == ends
        assert_refused(ws, SESSION, name, f"{name[0]} is {ends}", "possible now: ")


def test_a_teacher_that_has_lost_its_checkpoint_is_refused_and_a_duplicate_is_answered_without_it(
    ws: Workspace,
) -> None:
    lose(ws, f"{SESSION}/t002")
    assert_refused(ws, SESSION, ["t002"], "t002 has lost its checkpoint", "possible now: ")
    assert run_trial(ws, SESSION, TAUGHT, base="t001").trial == "t003"


def test_a_session_without_memory_may_not_learn_from_the_trials_of_others(ws: Workspace) -> None:
    alone = opened(ws.home, with_memory=False)
    session = open_session(alone, "demo", "sasrec", new=True).session
    foreign = "belongs to another session, and this one may not use"
    assert_refused(alone, session, [f"{OTHER}/t001"], foreign, "no trial may be named yet: train one first")
    run_trial(alone, session, TINY)
    own = run_trial(alone, session, {"loss": "full_softmax", "teachers": ["t001"]})
    assert own.status == "finished" and [t.name for t in spec_of(alone, own.trial, session).teachers] == ["t001"]
    closed(alone)


def test_teachers_are_not_offered_by_a_page_without_their_row(ws: Workspace, tmp_path: Path) -> None:
    lines = PACKAGED.read_text(encoding="utf-8").split("\n")
    page = page_of(tmp_path / "old.md", "\n".join(line for line in lines if not line.startswith("| `teachers` |")))
    old = opened(ws.home, protocol_path=page)
    session = open_session(old, "demo", "sasrec", new=True).session
    with pytest.raises(ConfigError, match="SANDBOX.md does not offer it"):
        run_trial(old, session, FROM_AFAR)
    old.close()


def test_teachers_act_with_the_full_softmax_only_and_the_answer_says_so(ws: Workspace) -> None:
    ignored = run_trial(ws, SESSION, {"teachers": ["t001"]}, base="t002")
    assert ignored.trial == "t002" and "nothing was spent" in ignored.next
    assert ignored.ignored == "teachers has no effect: it acts only with loss='full_softmax'"
    trained = run_trial(ws, SESSION, {"teachers": ["t001"], "hidden_dim": 24}, base="t002")
    assert trained.trial == "t007" and trained.status == "finished"
    assert "teachers has no effect" in trained.ignored and spec_of(ws, "t007").teachers == []
    assert run_trial(ws, SESSION, {"hidden_dim": 24}, base="t002").trial == "t007"
    beside = run_trial(ws, SESSION, {"prior_distillation": 0.3}, base="t003")
    assert beside.trial == "t003" and "prior_distillation has no effect" in beside.ignored
    assert "without teachers" in beside.ignored
    over = run_trial(ws, SESSION, {"teachers": ["t001"]}, base="t006")
    assert over.trial == "t006" and "teachers has no effect: an ensemble trains nothing" in over.ignored


def test_a_rescoring_of_a_student_trains_nothing(ws: Workspace) -> None:
    student, record, spec = recorded(ws, "t003"), recorded(ws, "t004"), spec_of(ws, "t004")
    assert record.changes == {"transition_weight": 8.0} and record.uses_models
    assert record.outcome and record.outcome.details["rescored"] and losses(record) == losses(student)
    assert spec.rescore_from and Path(spec.rescore_from).name == "t003"
    assert train_hash(record.configuration) == train_hash(student.configuration)
    weights = [dict(load_checkpoint(ws.trial_directory(SESSION, t) / CHECKPOINT)[0].named_parameters())
               for t in ("t003", "t004")]  # fmt: skip
    assert all(weight.equal(weights[1][name]) for name, weight in weights[0].items())
    assert (ranks(ws, "t003") != ranks(ws, "t004")).any()


def test_a_student_whose_teachers_are_gone_can_still_be_scored_again(ws: Workspace) -> None:
    lose(ws, f"{SESSION}/t002", f"{OTHER}/t001")
    asked = run_trial(ws, SESSION, {"transition_weight": 4.0}, base="t003", dry_run=True).plan
    assert asked and (asked.would, asked.rescores) == ("start", True)
    again = run_trial(ws, SESSION, {"transition_weight": 4.0}, base="t003")
    assert again.status == "finished" and again.rescored
    assert sweep(ws, SESSION, [{"transition_weight": 5.0}], base="t003").status == "finished"


def test_a_sweep_over_a_student_chooses_its_best_setting(ws: Workspace) -> None:
    record = recorded(ws, "t005")
    assert record.outcome and record.outcome.status == "finished" and record.outcome.details["rescored"]
    assert record.config["transition_weight"] in (2.0, 16.0) and record.config["teachers"] == TEACHERS
    candidate = load_candidate(ws.trial_directory(SESSION, "t005"), ws.dataset("demo"))
    assert candidate.config == record.configuration and len(candidate.members) == 1


def test_an_ensemble_over_a_student_finalizes_without_the_teachers(ws: Workspace) -> None:
    record, spec = recorded(ws, "t006"), spec_of(ws, "t006")
    assert record.outcome and record.outcome.status == "finished"
    assert [member.name for member in spec.members] == [f"{OTHER}/t001", "t003"] and spec.teachers == []
    members = [recorded(ws, "t001", OTHER), recorded(ws, "t003")]
    assert record.outcome.parameters == sum(m.outcome.parameters for m in members if m.outcome)
    assert max(ws.memory.trials.all(SESSION), key=score).handle == "t006", "the test needs a selected ensemble"
    lose(ws, f"{SESSION}/t002")
    final = finalize(ws, SESSION, "an ensemble with a student", confirm=True)
    assert (final.state, final.selected) == ("withheld", "t006"), f"{OTHER} is open"
    test = read_revealed(ws.home, SESSION)
    assert test is not None and 0 < test.metrics["ndcg@10"] < 1


def test_a_student_may_teach_another_one(ws: Workspace) -> None:
    second = run_trial(ws, SESSION, {"teachers": ["t003"], "hidden_dim": 24}, base="t003")
    assert second.status == "finished" and [t.name for t in spec_of(ws, second.trial).teachers] == ["t003"]


def test_a_student_is_examined_without_its_teachers(ws: Workspace, tmp_path: Path) -> None:
    session = open_session(ws, "demo", "sasrec", new=True).session
    assert run_trial(ws, session, FROM_AFAR).status == "finished"
    lose(ws, f"{SESSION}/t002", f"{OTHER}/t001")
    dataset = ws.dataset("demo")
    candidate = load_candidate(ws.trial_directory(session, "t001"), dataset)
    examined, _ = candidate.rank(train_histories(dataset), dataset.valid_items, dataset.num_items)
    assert (examined == ranks(ws, "t001", session)).all()
    key = (Vault(ws.home).directory / PRIVATE).rename(tmp_path / "key")
    assert finalize(ws, session, "a student", confirm=True).state == "frozen"
    choice = pack_choice(ws, session, tmp_path / "choice.tar")
    assert f"sessions/{session}/t001/{CHECKPOINT}" in choice.files
    assert not any(f"/{owner}/" in name for name in choice.files for owner in (SESSION, OTHER))
    final = reveal(ws, session, key)
    assert (final.state, final.selected) == ("withheld", "t001"), f"{OTHER} is open"
    test = read_revealed(ws.home, session)
    assert test is not None and 0 < test.metrics["ndcg@10"] < 1


def test_a_confirmation_trains_a_student_again_with_its_teachers_in_a_home_that_was_moved(
    ws: Workspace, tmp_path: Path
) -> None:
    rows = "| `confirm_top` | 2 | |\n| `confirm_repetitions` | 1 | |\n"
    text = PACKAGED.read_text(encoding="utf-8").replace("| `keep_z` |", f"{rows}| `keep_z` |", 1)
    before = opened(ws.home, protocol_path=page_of(tmp_path / "confirm.md", text))
    session = open_session(before, "demo", "sasrec", new=True).session
    run_trial(before, session, FROM_AFAR)
    run_trial(before, session, {"transition_weight": 8.0}, base="t001")
    teachers = spec_of(before, "t001", session).teachers
    closed(before)
    shutil.move(ws.home, tmp_path / "moved")
    moved = opened(tmp_path / "moved")
    final = finalize(moved, session, "students", confirm=True)
    assert final.state == "withheld" and final.confirmation and not any(t.failed for t in final.confirmation.trials)
    repetitions = {record.handle: record for record in moved.memory.trials.repetitions(session)}
    assert {handle: r.status for handle, r in repetitions.items()} == {"t001r1": "finished", "t002r1": "finished"}
    specs = {handle: spec_of(moved, handle, session) for handle in ("t001", *repetitions)}
    trains = {handle for handle in repetitions if specs[handle].rescore_from is None}
    assert len(trains) == 1, "the other one scores its model again"
    for handle, repetition in repetitions.items():
        assert _without_directory(specs[handle].teachers) == _without_directory(teachers)
        assert all(Path(t.directory).is_relative_to(tmp_path / "moved") for t in specs[handle].teachers)
        assert specs[handle].seed != specs["t001"].seed
        assert losses(repetition) != losses(recorded(moved, "t001", session))
    test = read_revealed(moved.home, session)
    assert test is not None and 0 < test.metrics["ndcg@10"] < 1
    closed(moved)
    shutil.move(tmp_path / "moved", ws.home)  # where the fixture closes it


def _without_directory(models: list[NamedModel]) -> list[tuple[str, dict[str, str]]]:
    return [(model.name, model.files) for model in models]


def test_a_student_is_not_copied_from_a_session_in_which_its_teachers_were_others(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec", new=True).session
    swapped = [run_trial(ws, session, {**TINY, **more}, base="default") for more in (DECAYED, {})]
    assert [trial.reused_from for trial in swapped] == [f"{SESSION}/t002", f"{SESSION}/t001"]
    student = run_trial(ws, session, {**TINY, **TAUGHT}, base="default")
    here, there = recorded(ws, student.trial, session), recorded(ws, "t003")
    assert here.config_hash == there.config_hash and here.outcome and there.outcome
    assert student.status == "finished" and student.reused_from is None and student.train_seconds > 0
    assert losses(here) != losses(there)
    own = [next(t for t in spec_of(ws, h, s).teachers if t.name == "t002")
           for h, s in ((student.trial, session), ("t003", SESSION))]  # fmt: skip
    assert own[0].files != own[1].files


def test_effects_and_proposals_are_those_of_trials_without_teachers(ws: Workspace) -> None:
    trials = ws.memory.trials.all(SESSION)
    default = ws.session_protocol(ws.memory.sessions.get(SESSION)).space.default("sasrec")
    assert {*knob_effects(trials)} == {*DECAYED} and knob_effects(trials) == knob_effects(trials[:2])
    assert evidence(trials, default) == evidence(trials[:2], default) != []
    assert {step.knob for step in knob_steps(trials, default)} == {*DECAYED}
    for handle in ("t003", "t004"):
        assert TrialView(**read_memory(ws, SESSION, "trial", trial=handle).content).shares == []
    state = StateView(**read_memory(ws, SESSION, "state").content)
    assert recorded(ws, state.incumbent or "").uses_models, "the test needs a student or an ensemble as incumbent"
    assert state.proposals and all("teachers" not in proposal.changes for proposal in state.proposals)
    assert {proposal.base for proposal in state.proposals} <= {"t001", "t002"}


def test_a_closed_session_passes_on_nothing_of_its_students(ws: Workspace) -> None:
    finalize(ws, SESSION, "teachers help", confirm=True)
    with contextlib.closing(sqlite3.connect(ws.home / "memory.db")) as db:
        kept = db.execute("SELECT trial, config FROM configurations WHERE session = ?", [SESSION]).fetchall()
        knobs = {knob for (knob,) in db.execute("SELECT knob FROM effects WHERE session = ?", [SESSION])}
    assert {trial for trial, _ in kept} == {"t001", "t002"}
    assert "teachers" not in str(kept) and "full_softmax" not in str(kept)
    assert knobs == {*DECAYED}


HOPELESS = {"teachers": [f"{OTHER}/t001"], "weight_decay": 0.09}


def session_with_stopped_student(ws: Workspace) -> str:
    """A new session: t001 was kept, t002 is a student, and racing has stopped t003, a student like it."""
    session = open_session(ws, "demo", "sasrec", new=True).session
    slow = {"epochs": 7, "patience": 7, "hidden_dim": 16, "batch_size": 128, "lr": 0.005, "loss": "full_softmax"}
    assert run_trial(ws, session, slow).verdict == "keep"
    assert run_trial(ws, session, {"teachers": ["t001"]}, base="t001").status == "finished"
    assert run_trial(ws, session, HOPELESS, base="t001").status == "stopped", "the test needs a stopped student"
    return session


def test_a_student_that_was_stopped_early_teaches_nobody_until_it_has_run_to_its_end(ws: Workspace) -> None:
    session = session_with_stopped_student(ws)
    refused = "t003 was stopped early and has no model; run its configuration again to finish it"
    assert_refused(ws, session, ["t003"], refused, "possible now: t00")
    assert run_trial(ws, session, HOPELESS, base="t001").status == "finished"
    spec = spec_of(ws, "t004", session)
    assert spec.resume_from and [t.name for t in spec.teachers] == [f"{OTHER}/t001"]
    assert run_trial(ws, session, {"teachers": ["t004"], "epochs": 1}, base="t001").status == "finished"


def test_the_seconds_that_a_stopped_student_has_saved_are_in_the_report(ws: Workspace) -> None:
    session = session_with_stopped_student(ws)
    stopped = recorded(ws, "t003", session).outcome
    assert stopped and stopped.details["saved_seconds"] > 0
    assert gather(ws.home, session).saved_seconds == stopped.details["saved_seconds"]
