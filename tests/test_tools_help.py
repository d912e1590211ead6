"""Diagnosis, proposals, amendments and optional reflections in a real session with real worker processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from virtualmle.data.errors import AdmissionError, SessionError
from virtualmle.sandbox.proposal_scores import proposal_scores
from virtualmle.tools.open_session import open_session
from virtualmle.tools.read_memory import read_memory
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.views import ReflectionRow, StateView, TrajectoryView
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.tools.write_reflection import RuleInput, write_reflection

TINY = {"epochs": 1, "hidden_dim": 16, "batch_size": 512}
NEGLIGIBLE = {"popularity_weight": 1e-6}
FORMER_BYTES = {  # the next steps as they were before they named a diagnosis
    "reflect": len("Call write_reflection for t003: did the change help, and which dimension explains the result?"),
    "plan": len(
        "Plan the next trial: read_memory(view='state') shows knob effects and untried knobs; then call run_trial."
    ),
}
ADDED = len(" without priors")


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace.open(tmp_path, settings=Settings(max_trials=8, threads=1))
    yield workspace
    workspace.close()


def state_of(ws: Workspace, session: str) -> StateView:
    return StateView.model_validate(read_memory(ws, session).content)


def reflections_of(ws: Workspace, session: str) -> list[ReflectionRow]:
    return TrajectoryView.model_validate(read_memory(ws, session, "trajectory").content).reflections


def test_a_session_is_told_what_limits_it_and_follows_a_proposal_that_is_scored(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    first = run_trial(ws, session, TINY)
    measured = ws.memory.trials.get(session, "t001").outcome
    assert measured and 0.05 < measured.details["popularity_ndcg10"] < 0.08  # as the demo's log says
    model, popularity = measured.details["model_ndcg10"], measured.details["popularity_ndcg10"]
    popular = f"NDCG@10 {model:.4f} without priors, {popularity:.4f} by popularity"
    assert first.next.startswith(f"Call write_reflection for t001. Popularity-bound: {popular} alone.")
    assert len(first.next) <= FORMER_BYTES["reflect"] + ADDED
    receipt = write_reflection(ws, session, "t001", "unclear", "capacity", "A small model is quick.")
    assert receipt.check == "supported"  # nothing was measured to compare with, and nothing is claimed
    assert receipt.next.startswith("Popularity-bound: ") and len(receipt.next) <= FORMER_BYTES["plan"] + ADDED

    proposal = state_of(ws, session).proposals[0]
    assert proposal.source == "popularity-bound" and proposal.reason.startswith(f"popularity-bound ({popular}")
    assert proposal.expected_delta > 0 and proposal.cost_seconds and proposal.cost_seconds < 60
    followed = run_trial(ws, session, proposal.changes)
    stored = ws.memory.trials.get(session, followed.trial)
    assert stored.proposal and stored.outcome and stored.proposal.whole
    expected = proposal.model_dump(include={"source", "evidence", "changes", "expected_delta", "sd", "cost_seconds"})
    assert stored.proposal.model_dump(exclude={"whole"}) == expected
    (score,) = proposal_scores(ws.memory.trials.all(session))
    assert (score.trial, score.measured, score.se) == ("t002", stored.outcome.base_delta, stored.outcome.base_delta_se)
    z = (score.measured or 0.0) / (score.se or 1.0)
    assert score.came_true == ("yes" if z >= 1 else "no" if z <= -1 else "unclear")


def test_a_rescoring_within_noise_needs_no_reflection_but_may_have_one(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    run_trial(ws, session, TINY)
    with pytest.raises(AdmissionError, match="call write_reflection for t001 first"):
        run_trial(ws, session, NEGLIGIBLE)
    write_reflection(ws, session, "t001", "unclear", "capacity", "A small model is quick.")
    second = run_trial(ws, session, NEGLIGIBLE)
    assert second.rescored and second.verdict == "discard" and abs((second.base_delta or {})["z"]) < 1
    assert state_of(ws, session).pending_reflection is None and "write_reflection" not in second.next
    third = run_trial(ws, session, {"transition_weight": 8.0})
    assert third.rescored and third.verdict == "keep"
    assert state_of(ws, session).pending_reflection == "t003" and "write_reflection for t003" in third.next
    late = write_reflection(ws, session, "t002", "no", "scoring", "A tiny weight has no effect.")
    assert late.check == "supported" and "within noise: no effect" in late.note


def test_a_reflection_is_amended_and_checked_again(ws: Workspace) -> None:
    session = open_session(ws, "demo", "sasrec").session
    run_trial(ws, session, TINY)
    with pytest.raises(SessionError, match="leave out amend=true"):
        write_reflection(ws, session, "t001", "unclear", "capacity", "Quick.", amend=True)
    write_reflection(ws, session, "t001", "unclear", "capacity", "A small model is quick.")
    run_trial(ws, session, {"transition_weight": 8.0})
    wrong = write_reflection(ws, session, "t002", "no", "scoring", "I expect -0.0300 from transitions.", effect=-0.03)
    assert wrong.check == "contradicted" and "the lesson names a change of -0.0300" in wrong.note
    outcome = ws.memory.trials.get(session, "t002").outcome
    assert outcome and outcome.base_delta and outcome.base_delta > 0
    right = write_reflection(
        ws, session, "t002", "yes", "scoring", f"Transitions add {outcome.base_delta:+.5f}.", amend=True,
        effect=outcome.base_delta, rule=RuleInput(kind="prefer", statement="use it", condition="transition_weight > 0"),
    )  # fmt: skip
    assert (right.check, right.amended_from) == ("supported", "contradicted")
    assert right.rule and right.rule.check == "supported"
    row = reflections_of(ws, session)[-1]
    assert (row.helped, row.check) == ("yes", "supported")
    assert row.amended_from and row.amended_from.lesson == "“I expect -0.0300 from transitions.”"
    assert (row.amended_from.check, row.amended_from.effect) == ("contradicted", -0.03)
    assert reflections_of(ws, session)[0].amended_from is None

    again = write_reflection(
        ws, session, "t002", "yes", "scoring", "Transitions help.", amend=True,
        rule=RuleInput(kind="prefer", statement="weigh transitions", condition="transition_weight >= 1"),
    )  # fmt: skip
    assert again.rule and again.rule.rule_id == right.rule.rule_id  # no trial tells a weight of 1 from one above 0
    assert again.rule.summary.startswith(
        f"'prefer transition_weight > 0.0' merged with rule {right.rule.rule_id}, which was stated 2 times: supported"
    )
    assert again.rule_note.startswith("1 trial")
    assert reflections_of(ws, session)[-1].amended_from == row.amended_from  # the first, not the previous one


def test_a_session_without_memory_is_not_told_about_earlier_trials(tmp_path: Path) -> None:
    ws = Workspace.open(tmp_path, settings=Settings(threads=1, with_memory=False))
    session = open_session(ws, "demo", "sasrec").session
    assert run_trial(ws, session, TINY).next.startswith("Call write_reflection for t001: did the change help")
    assert ws.memory.trials.get(session, "t001").proposal is None
    ws.close()
