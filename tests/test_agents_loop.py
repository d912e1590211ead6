"""The loop runs a real server and real trials: to the end, through interruptions and past refusals."""

from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import Implementation

from tests.quick_home import environment, quick_home
from virtualmle.agents.base import Action, Agent, RunTrial, Situation
from virtualmle.agents.engineer import Engineer
from virtualmle.agents.events import (
    Event,
    Finalized,
    Reflected,
    SessionOpened,
    TrialFinished,
    TrialRefused,
    TrialStarted,
)
from virtualmle.agents.loop import MAX_REFUSALS, run_agent
from virtualmle.agents.required import required_action
from virtualmle.data.errors import AdmissionError, SessionError
from virtualmle.memory.records import RuleRecord
from virtualmle.memory.store import Memory
from virtualmle.server.app import build_server
from virtualmle.server.waits import OVERRIDE
from virtualmle.tools.results import FinalResult
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.tools.write_reflection import write_reflection

pytestmark = pytest.mark.anyio
CLIENT = Implementation(name="virtualmle-engineer", version="1")


@pytest.fixture(autouse=True)
def importable_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


class Killed(Exception):
    """Simulates a process that ends in the middle of a session."""


async def drive(home: Path, agent: Agent, on_event: Any = lambda _: None, **options: Any) -> FinalResult:
    """One run over an in-memory connection; its errors are raised again outside the client's task groups."""
    failure: BaseException
    async with Client(
        build_server(home, Settings(threads=1, **options.pop("settings", {"keep_warm": 60.0}))), client_info=CLIENT
    ) as client:
        try:
            return await run_agent(client, agent, "demo", "sasrec", on_event=on_event, **options)
        except (Killed, SessionError, AdmissionError) as error:
            failure = error
    raise failure


def recorded(home: Path, session: str) -> list[Any]:
    """The trials and reflections of a session, without times."""
    with Memory(home / "memory.db") as memory:
        trials = memory.trials.all(session)
        lessons = [(r.trial, r.helped, r.lesson) for r in memory.reflections.all(session)]
    return [[(t.base, t.changes, t.outcome.metrics if t.outcome else None) for t in trials], lessons]


async def test_an_interrupted_session_ends_like_an_uninterrupted_one_after_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Event] = []
    uninterrupted = quick_home(tmp_path / "uninterrupted")
    result = await drive(uninterrupted, Engineer(5), seen.append)
    assert (result.state, result.look) == ("revealed", 1)
    assert result.test and 0 < result.test["ndcg@10"] < 1
    kinds = [type(event) for event in seen if type(event) in (SessionOpened, TrialStarted, TrialFinished, Reflected)]
    assert kinds == [SessionOpened, *[TrialStarted, TrialFinished, Reflected] * 2]
    assert isinstance(seen[-1], Finalized)

    def stop_at_second(event: Event) -> None:
        if isinstance(event, TrialStarted) and event.trial == "t002":
            raise Killed

    monkeypatch.setenv(OVERRIDE, "0.2")  # a short limit per call: the loop has to wait many times
    broken = quick_home(tmp_path / "broken")
    with pytest.raises(Killed):
        await drive(broken, Engineer(5), stop_at_second)
    resumed: list[Event] = []
    again = await drive(broken, Engineer(5), resumed.append, session=result.session)
    assert recorded(broken, again.session) == recorded(uninterrupted, result.session)
    assert next(event.brief.resumed for event in resumed if isinstance(event, SessionOpened))
    assert again.test == result.test

    with pytest.raises(SessionError, match="has been finalized"):
        await drive(broken, Engineer(5), session=result.session)


async def test_a_run_continues_if_another_client_writes_the_pending_reflection(tmp_path: Path) -> None:
    home = quick_home(tmp_path / "home")
    seen: list[Event] = []

    def write_first(event: Event) -> None:
        seen.append(event)
        if isinstance(event, TrialFinished) and event.observation.trial == "t001":
            ws = Workspace.open(home)
            with ws.memory:
                write_reflection(ws, event.observation.session, "t001", "unclear", "optimisation", "Written elsewhere.")

    result = await drive(home, Engineer(5), write_first)
    assert result.state == "revealed"
    assert [event.action.trial for event in seen if isinstance(event, Reflected)] == ["t002"]


class Stubborn(Agent):
    """Requests the default again and again."""

    def act(self, situation: Situation) -> Action:
        return required_action(situation) or RunTrial({}, "default")


async def test_an_agent_that_repeats_itself_is_stopped_after_max_refusals(tmp_path: Path) -> None:
    refused: list[Event] = []
    with pytest.raises(AdmissionError, match="already tried as t001"):
        await drive(quick_home(tmp_path / "home"), Stubborn(0), refused.append, settings={"with_reflection": False})
    assert sum(isinstance(event, TrialRefused) for event in refused) == MAX_REFUSALS


async def test_the_refusal_of_a_tool_arrives_as_its_plain_message(tmp_path: Path) -> None:
    with pytest.raises(SessionError) as refusal:
        await drive(tmp_path, Engineer(0), session="nowhere-sasrec-1")
    assert "nowhere-sasrec-1" in str(refusal.value) and "Error executing tool" not in str(refusal.value)


class Insistent(Agent):
    """Requests a wider hidden state, first without and then with a reason to override the discard heuristic."""

    def act(self, situation: Situation) -> Action:
        action = required_action(situation)
        if action or not situation.trajectory.trials:
            return action or RunTrial({}, "default")
        return RunTrial({"hidden_dim": 32}, override="wider helped on this catalogue" if situation.refused else "")


async def test_a_reason_to_override_a_discard_heuristic_reaches_the_server(tmp_path: Path) -> None:
    home = quick_home(tmp_path / "home")
    rule = RuleRecord(
        kind="avoid", statement="wide hidden states overfit", condition="hidden_dim >= 32", backbone="sasrec",
        check="supported", support=3,
    )  # fmt: skip
    with Memory(home / "memory.db") as memory:
        memory.rules.add(rule)
    seen: list[Event] = []
    result = await drive(home, Insistent(0), seen.append)
    assert [event.reason for event in seen if isinstance(event, TrialRefused)][0].startswith("discard heuristic")
    with Memory(home / "memory.db") as memory:
        recorded = memory.trials.get(result.session, "t002").override_reason or ""
    assert recorded.endswith("wider helped on this catalogue")


async def test_the_engineer_sweeps_and_the_server_confirms_the_effects_that_it_claims(tmp_path: Path) -> None:
    home = quick_home(tmp_path / "home")
    page = (home / "SANDBOX.md").read_text(encoding="utf-8")
    (home / "SANDBOX.md").write_text(page.replace("| `max_trials` | 2 |", "| `max_trials` | 7 |"), encoding="utf-8")
    seen: list[Event] = []
    await drive(home, Engineer(1), seen.append)
    sweeps = [event.observation for event in seen if isinstance(event, TrialFinished) and event.observation.sweep]
    assert sweeps and all("transition_weight" in sweep.changes for sweep in sweeps)
    claims = [event for event in seen if isinstance(event, Reflected) and event.action.effect is not None]
    assert claims and {event.receipt.note for event in claims if event.receipt.check != "supported"} == set()
