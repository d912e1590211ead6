"""Trials that racing stops, in a real home with real worker processes: what they teach, and how they go on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from virtualmle.agents.base import Brief, Situation
from virtualmle.agents.digest import state_digest
from virtualmle.agents.history import History
from virtualmle.agents.observed import observation_text
from virtualmle.agents.reflecting import reflect_on, summarise
from virtualmle.cli.live import _finished
from virtualmle.compare.outcome import trial_result
from virtualmle.data.errors import AdmissionError, SessionError
from virtualmle.memory.records import Hypothesis, TrialRecord
from virtualmle.report.gather import gather
from virtualmle.report.html import render
from virtualmle.report.tables import trials_table
from virtualmle.sandbox.joint import model_of
from virtualmle.sandbox.reflection import Helped
from virtualmle.tools.cognition import computed_summary, good_configurations, select, session_effects
from virtualmle.tools.open_session import open_session
from virtualmle.tools.read_memory import read_memory
from virtualmle.tools.results import OpenedSession, ReflectionReceipt, TrialObservation
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.views import StateView, TrajectoryView
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.tools.write_reflection import RuleInput, write_reflection
from virtualmle.training.spec import STATE

SMALL = {"epochs": 12, "patience": 12, "hidden_dim": 16, "batch_size": 512, "lr": 0.01}
SLOWER = (0.0015, 0.0012, 0.001)
"""Learning rates in the family of the incumbent's, all hopeless; the rule decides how many of them run to their end."""


@dataclass
class Raced:
    """A session with an incumbent and slower trials of its family, the last of which was stopped."""

    ws: Workspace
    opened: OpenedSession
    observation: TrialObservation

    @property
    def handle(self) -> str:
        return self.observation.trial

    @property
    def changes(self) -> dict[str, float]:
        return self.observation.changes

    @property
    def session(self) -> str:
        return self.opened.session

    @property
    def record(self) -> TrialRecord:
        return self.ws.memory.trials.get(self.session, self.observation.trial)

    @property
    def trials(self) -> list[TrialRecord]:
        return self.ws.memory.trials.all(self.session)

    @property
    def situation(self) -> Situation:
        views = [read_memory(self.ws, self.session, view).content for view in ("state", "trajectory")]
        state, trajectory = StateView.model_validate(views[0]), TrajectoryView.model_validate(views[1])
        return Situation(Brief.of(self.opened), state, trajectory)

    def reflect(
        self, trial: str, helped: Helped, effect: float | None = None, lesson: str = "slow"
    ) -> ReflectionReceipt:
        amend = self.ws.memory.trials.get(self.session, trial).reflected
        return write_reflection(
            self.ws, self.session, trial, helped, "optimisation", lesson, effect=effect, amend=amend
        )


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raced]:
    home = tmp_path_factory.mktemp("raced")
    ws = Workspace.open(home, settings=Settings(max_trials=6, threads=1, keep_warm=30.0))
    opened = open_session(ws, "demo", "sasrec")
    run_trial(ws, opened.session, SMALL)
    write_reflection(ws, opened.session, "t001", "unclear", "optimisation", "the pace matters")
    expected = Hypothesis(dimension="optimisation", direction="better", size=0.01)
    for lr in SLOWER:
        trial = run_trial(ws, opened.session, {"lr": lr}, expected, base="t001")
        if trial.status == "stopped":
            break
        write_reflection(ws, opened.session, trial.trial, "unclear", "optimisation", "the pace matters")
    assert trial.status == "stopped"
    found = Raced(ws, opened, trial)
    yield found
    ws.close()


def test_a_stopped_trial_is_recorded_with_its_cause_its_bounds_and_its_seconds(raced: Raced) -> None:
    record, outcome = raced.record, raced.record.outcome
    assert outcome is not None and (record.status, outcome.verdict, outcome.metrics) == ("stopped", "discard", {})
    cause = outcome.details["stopped"]
    assert outcome.reason == cause["sentence"] and cause["incumbent"] == "t001" == outcome.incumbent_before
    assert record.floor == cause["ndcg10"] < cause["bound"] == record.bound
    assert outcome.curve[-1]["epoch"] == cause["epoch"] < SMALL["epochs"]
    assert outcome.train_seconds > 0 and outcome.details["saved_seconds"] > 0 and outcome.details["bound_se"] > 0
    assert (raced.ws.trial_directory(raced.session, record.handle) / STATE).exists()
    budget = raced.opened.budget.trials_max
    assert raced.observation.budget.trials_used == len(raced.trials) and budget == 6
    assert raced.observation.budget.train_seconds_used == pytest.approx(
        sum(t.outcome.train_seconds for t in raced.trials if t.outcome), abs=0.1
    )


def test_the_observation_says_what_is_known_and_what_to_do(raced: Raced) -> None:
    observation, found = raced.observation, raced.observation.stopped
    assert found is not None and found.at_most == raced.record.bound and found.epochs == 12
    first = raced.trials[0].outcome
    assert first is not None and found.at_most is not None and found.base_delta_at_most is not None
    assert found.base_delta_at_most == pytest.approx(found.at_most - first.metrics["ndcg@10"]) and found.base_z_at_most
    assert len(observation.model_dump_json()) < 2048
    assert f"write_reflection for {observation.trial}" in observation.next and "helped='no'" in observation.next
    assert observation.hypothesis is not None
    assert (observation.hypothesis.happened, observation.hypothesis.held) == ("worse", "no")
    text = observation_text(observation)
    assert "stopped early" in text and f"at most {found.base_delta_at_most:+.4f}" in text and "saved about" in text
    line = _finished(observation, 6)
    assert line.startswith(f"{raced.handle}/6 stopped") and f"≤ {found.at_most:.4f}" in line and "saved" in line


def test_claims_about_a_stopped_trial_are_checked_against_its_bound(raced: Raced) -> None:
    delta = raced.observation.stopped.base_delta_at_most if raced.observation.stopped else None
    assert delta is not None and delta < 0
    with pytest.raises(AdmissionError, match=f"write_reflection for {raced.handle}"):
        run_trial(raced.ws, raced.session, {"dropout": 0.3})
    wrong = raced.reflect(raced.handle, "yes")
    assert wrong.check == "contradicted" and f"{delta:+.4f} against its base t001" in wrong.note
    assert raced.reflect(raced.handle, "no").check == "supported"
    assert raced.reflect(raced.handle, "unclear").check == "unsupported"
    unverifiable = raced.reflect(raced.handle, "no", effect=delta - 0.01)
    assert unverifiable.check == "unsupported" and "cannot be verified" in unverifiable.note
    too_small = raced.reflect(raced.handle, "no", effect=delta / 2)
    assert too_small.check == "contradicted" and f"at most {delta:+.4f} is expected" in too_small.note
    lesson = f"a slow pace: NDCG@10 at most {raced.record.bound:.4f}, {delta:+.4f} against its base"
    assert raced.reflect(raced.handle, "no", lesson=lesson).check == "supported"
    assert raced.reflect(raced.handle, "no", lesson="it ended at NDCG@10 0.0312").check == "unsupported"


def test_a_stopped_trial_is_never_a_base_never_selected_and_counts_as_a_trial_without_a_keep(raced: Raced) -> None:
    with pytest.raises(SessionError, match="was stopped early .*run its configuration again"):
        run_trial(raced.ws, raced.session, {"dropout": 0.3}, base=raced.handle)
    assert select(raced.trials).handle == "t001"
    state = read_memory(raced.ws, raced.session, "state").content
    assert raced.handle not in [row["trial"] for row in state["best"]] and state["incumbent"] == "t001"


def test_effects_views_and_proposals_know_the_bound(raced: Raced) -> None:
    state = StateView.model_validate(read_memory(raced.ws, raced.session, "state").content)
    value = next(one for one in state.effects["lr"].values if one.value == raced.changes["lr"])
    assert (value.n, value.stopped, value.trial) == (1, 1, raced.handle)
    row = TrajectoryView.model_validate(read_memory(raced.ws, raced.session, "trajectory").content).trials[-1]
    assert row.status == "stopped" and row.stopped == raced.observation.stopped and row.metrics == {}
    view = read_memory(raced.ws, raced.session, "trial", trial=raced.handle).content
    assert view["shares"][0]["knob"] == "lr" and view["stopped"] == row.stopped.model_dump()
    tried = {json.dumps(proposal.changes) for proposal in state.proposals}
    assert json.dumps(raced.changes) not in tried


def test_an_agent_reads_a_stopped_trial_as_a_loss_of_at_least_its_bound(raced: Raced) -> None:
    situation, found = raced.situation, raced.observation.stopped
    assert found is not None and found.base_delta_at_most is not None
    step = next(step for step in History(situation).steps("lr") if step.trial == raced.handle)
    assert step.stopped and step.z < -1 and -1 < step.relative < 0 and not step.kept
    reflection = reflect_on(situation, raced.handle)
    assert (reflection.helped, reflection.effect) == ("no", None) and "stopped after epoch" in reflection.lesson
    checked = raced.reflect(raced.handle, reflection.helped, lesson=reflection.lesson)
    assert checked.check == "supported", checked.note
    assert f"({found.base_delta_at_most:+.4f} to its base)" in state_digest(situation)
    assert "1 of which was stopped early" in summarise(situation)


def test_rules_count_the_loss_that_a_bound_shows(raced: Raced) -> None:
    rule = RuleInput(kind="avoid", statement="a pace this slow", condition=f"lr <= {raced.changes['lr']}")
    receipt = write_reflection(
        raced.ws, raced.session, raced.handle, "no", "optimisation", "slower", rule=rule, amend=raced.record.reflected
    )
    assert receipt.rule and receipt.rule.check == "supported" and f"['{raced.handle}'] support" in receipt.rule_note
    (stored,) = [r for r in raced.ws.memory.rules.all() if r.condition == rule.condition]
    assert (stored.support, stored.contradiction, stored.evidence) == (1, 0, [raced.handle])


def test_the_report_and_the_tables_show_the_bound(raced: Raced) -> None:
    data = gather(raced.ws.home, raced.session)
    console = Console(file=StringIO(), width=100)
    console.print(trials_table(data.trials))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "stopped" in text and f"≤ {raced.record.bound:.4f}" in text and "(stopped after epoch" in text
    page = render(data)
    assert f"≤ {raced.record.bound:.4f}" in page and "1 stopped" in page and "saved by racing" in page
    assert "stopped (at most)" in page
    compared = trial_result(raced.record)
    assert compared.ndcg10 is None and compared.saved_seconds > 0 and compared.train_seconds > 0


def test_what_a_session_passes_on_holds_bounds_as_evidence_and_no_stopped_configuration(raced: Raced) -> None:
    session = raced.ws.memory.sessions.get(raced.session)
    found = {c.trial for c in good_configurations(raced.ws, session, raced.trials)}
    assert found == {t.handle for t in raced.trials if t.status == "finished"} and raced.handle not in found
    effects = {(e.knob, e.value): e for e in session_effects(raced.ws, session, raced.trials)}
    slow = effects.get(("lr", raced.changes["lr"]))
    assert slow is None or slow.n == 1
    summary = computed_summary(raced.ws, session, raced.trials, select(raced.trials))
    assert summary["selected"] == "t001" and summary["trials"] == len(raced.trials)
    assert any(row["stopped"] for row in summary["effects"]["lr"]["values"])


def test_running_it_again_continues_it_to_its_end_bit_for_bit(raced: Raced, tmp_path: Path) -> None:
    raced.reflect(raced.handle, "no")
    again = run_trial(raced.ws, raced.session, raced.changes, base="t001")
    assert (again.status, again.duplicate) == ("finished", False) and again.stopped is None
    record = raced.ws.memory.trials.get(raced.session, again.trial)
    assert record.outcome is not None and record.outcome.curve[-1]["epoch"] == SMALL["epochs"]
    other = Workspace.open(tmp_path, settings=Settings(threads=1))
    whole = run_trial(other, open_session(other, "demo", "sasrec").session, SMALL | raced.changes)
    assert again.metrics == whole.metrics
    other.close()
    assert record.bound is None and raced.record.bound is not None
    assert again.metrics["ndcg@10"] <= raced.record.bound, "the bound held"
    model = model_of(raced.trials)
    assert model is not None and not model.observed.stopped, "the value has replaced the bound"
    assert gather(raced.ws.home, raced.session).saved_seconds == 0, "the seconds were spent after all"
    raced.reflect(again.trial, "no")
    repeated = run_trial(raced.ws, raced.session, raced.changes, base="t001")
    assert repeated.duplicate and repeated.trial == again.trial
