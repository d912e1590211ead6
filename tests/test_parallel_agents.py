"""Agents in a session that runs several trials at a time: what they run beside others, and when they wait."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from mcp import Client
from mcp.types import Implementation
from optuna.trial import TrialState

from tests.agents_world import World, decide
from tests.language_models import RuleModel, asking_agent
from tests.quick_home import QUICK_SANDBOX, quick_home
from tests.scripted_endpoint import Answer, Call
from virtualmle.agents.base import Agent, Outcome, Reflect, RunTrial, Situation, Sweep, WaitTrial
from virtualmle.agents.beside import apart
from virtualmle.agents.chat import next_messages
from virtualmle.agents.engineer import Engineer
from virtualmle.agents.events import Event, Finalized, Reflected, TrialFinished, TrialStarted
from virtualmle.agents.history import History
from virtualmle.agents.language import LanguageAgent
from virtualmle.agents.llm.messages import Message, ToolCall
from virtualmle.agents.loop import run_agent
from virtualmle.agents.moves import Move
from virtualmle.agents.optuna_study import Told, distribution_of, study_of
from virtualmle.agents.optuna_tpe import TPE
from virtualmle.agents.registry import AGENTS
from virtualmle.agents.sampler import DrawingSampler, lies, observations
from virtualmle.sandbox.program import Stop
from virtualmle.server.app import build_server
from virtualmle.tools.workspace import Settings


class ScriptedModel(RuleModel):
    """Gives these answers, in order."""

    def __init__(self, *answers: Answer) -> None:
        left = list(answers)
        super().__init__(lambda *_: left.pop(0))


def beside(situation: Situation, *running: dict[str, Any], places: int = 2) -> Situation:
    """The situation with further trials that run, of `places` at a time."""
    known = len(situation.trajectory.trials)
    rows = [
        {
            "trial": f"t{known + n:03d}", "number": known + n, "base": "default", "changes": changes,
            "settings": changes, "status": "running", "reflected": False,
        }
        for n, changes in enumerate(running, 1)
    ]  # fmt: skip
    trajectory = situation.trajectory.model_dump(by_alias=True, exclude_unset=True)
    trajectory["trials"] += rows
    used = situation.state.budget.trials_used + len(rows)
    state = situation.state.model_copy(
        update={
            "running": rows[0]["trial"],
            "running_trials": [row["trial"] for row in rows],
            "free_places": places - len(rows),
            "budget": situation.state.budget.model_copy(update={"trials_used": used}),
        }
    )
    return replace(
        situation,
        brief=replace(situation.brief, parallel=places),
        state=state,
        trajectory=type(situation.trajectory).model_validate(trajectory),
    )


def played(agent: Agent, trials: int, **world: Any) -> World:
    """A world after `trials` trials of an agent."""
    made = World(**world)
    while len(made.trials) < trials or made.situation.state.pending_reflection:
        made.execute(decide(agent, made.situation), corrects=agent.corrects)
    return made


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_agent_waits_for_the_first_to_end_if_no_place_is_free(name: str) -> None:
    situation = beside(World().situation, {"lr": 0.001}, {"dropout": 0.5})
    assert decide(asking_agent(name, seed=7), situation) == (WaitTrial(("t001", "t002")),)


@pytest.mark.parametrize("name", sorted(set(AGENTS) - {"llm"}))
def test_every_planner_fills_a_free_place_with_another_configuration(name: str) -> None:
    world = World(reflection=False)
    first = decide(asking_agent(name, seed=7), world.situation)
    world.execute(first)
    second = decide(asking_agent(name, seed=7), world.situation)
    assert isinstance(second[0], RunTrial)
    beside_it = decide(asking_agent(name, seed=7), beside(world.situation, second[0].changes))
    assert isinstance(beside_it[0], RunTrial | Sweep) and beside_it[0].changes != second[0].changes


def test_a_reflection_comes_before_a_free_place_is_filled_or_a_wait() -> None:
    world = World()
    world.execute(decide(Engineer(1), world.situation))
    for running in ([{"lr": 0.001}], [{"lr": 0.001}, {"dropout": 0.5}]):
        (action,) = decide(Engineer(1), beside(world.situation, *running))
        assert isinstance(action, Reflect) and action.trial == "t001"


def test_an_agent_does_not_close_while_a_trial_runs_that_may_be_kept() -> None:
    world = World(reflection=False, trials_max=3)
    world.execute(decide(Engineer(1), world.situation))
    situation = beside(world.situation, {"lr": 0.001}, places=4)
    stopping = situation.state.model_copy(update={"stop": Stop(True, "patience")})
    for name in sorted(AGENTS):
        assert decide(asking_agent(name, seed=1), replace(situation, state=stopping)) == (WaitTrial("t002"),)


def test_an_exhausted_space_is_left_only_when_nothing_runs() -> None:
    world = World(reflection=False, knobs={"tie_embeddings"})
    world.execute(decide(Engineer(1), world.situation))
    for name in ("engineer", "tpe", "grid", "coordinate", "random"):
        situation = beside(world.situation, {"tie_embeddings": True})
        assert decide(asking_agent(name, seed=1), situation) == (WaitTrial("t002"),)


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
@pytest.mark.parametrize("knob", ["lr", "dropout", "hidden_dim", "loss", "transition_weight"])
def test_the_engineer_runs_moves_of_other_dimensions_beside_a_trial(backbone: str, knob: str) -> None:
    values = {"lr": 0.001, "dropout": 0.1, "hidden_dim": 96, "loss": "bce", "transition_weight": 3.0}
    world = played(Engineer(5), 8, backbone=backbone)
    (action,) = decide(Engineer(5), beside(world.situation, {knob: values[knob]}))
    assert isinstance(action, RunTrial | Sweep)
    dimensions = {world.space.dimension(name) for name in action.changes}
    assert world.space.dimension(knob) not in dimensions


def test_a_move_of_the_same_dimension_runs_only_if_there_is_no_other_and_its_knob_is_free() -> None:
    history = History(beside(played(Engineer(5), 2).situation, {"lr": 0.001}))
    same_knob, same_dimension = Move({"lr": 0.002}, 0.1, ""), Move({"batch_size": 64}, 0.1, "")
    other = Move({"dropout": 0.4}, 0.0, "")
    assert apart([same_knob, same_dimension, other], history) == [other]
    assert apart([same_knob, same_dimension], history) == [same_dimension]
    assert apart([same_knob], history) == []


def test_without_running_trials_nothing_is_held_back() -> None:
    moves = [Move({"lr": 0.002}, 0.1, ""), Move({"transition_weight": 4.0}, 0.1, "")]
    assert apart(moves, History(played(Engineer(5), 2).situation)) == moves
    untrained = beside(World().situation, {})
    assert apart(moves, History(untrained)) == moves[:1], "there is no trained model yet that could be scored"


def test_a_running_trial_is_told_with_the_mean_of_the_finished_ones() -> None:
    world = played(TPE(3), 3, reflection=False)
    history = History(beside(world.situation, {"lr": 0.002}))
    scores = [row["metrics"]["ndcg@10"] for row in world.trials]
    (lie,) = lies(history)
    assert lie.settings == {"lr": 0.002} and lie.score == pytest.approx(sum(scores) / 3) and lie.pruned is None
    assert [observed.score for observed in observations(history)] == scores, "it is no observation"
    assert lies(History(beside(World().situation, {"lr": 0.002}))) == []


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_a_model_based_sampler_takes_running_trials_into_account(name: str) -> None:
    world = played(asking_agent(name, seed=3), 11, reflection=False, knobs={"lr", "dropout"})
    sampler = asking_agent(name, seed=3)
    assert isinstance(sampler, DrawingSampler)
    first = next(sampler.draws(History(world.situation), np.random.default_rng(1)))
    told = History(beside(world.situation, first))
    assert next(sampler.draws(told, np.random.default_rng(1))) != first, "with equal random numbers"


def test_the_study_of_a_sampler_holds_running_trials_as_running() -> None:
    knob = World().situation.brief.knobs[0]
    distributions = {knob.name: distribution_of(knob)}
    value = knob.defaults["sasrec"]
    told = [Told({knob.name: value}, 0.1)]
    study = study_of(optuna.samplers.RandomSampler(), told, distributions, [{knob.name: value}])
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.RUNNING]


def wait_call(**arguments: Any) -> Answer:
    return Answer(calls=[Call("wait_trial", arguments)])


def test_a_language_model_may_fill_a_place_or_wait_for_any_trial() -> None:
    world = World(reflection=False, trials_max=30)
    world.execute(decide(Engineer(1), world.situation))
    situation = beside(world.situation, {"lr": 0.001}, {"dropout": 0.1}, places=3)
    for call, action in (
        (wait_call(), WaitTrial(("t002", "t003"))),
        (wait_call(trial="t003"), WaitTrial("t003")),
        (wait_call(trial='["t003", "t002"]'), WaitTrial(("t003", "t002"))),
        (Answer(calls=[Call("run_trial", {"changes": {"hidden_dim": 96}})]), RunTrial({"hidden_dim": 96})),
    ):
        model = ScriptedModel(call)
        assert decide(LanguageAgent(model), situation) == [action]
        (asked,) = model.asked
        assert {"wait_trial", "run_trial"} <= {tool.name for tool in asked.tools}
        assert "finalize" not in {tool.name for tool in asked.tools}
        assert "t002 and t003 are running. 1 more trial may start" in asked.messages[-1].text


def test_a_model_that_waits_for_an_unknown_trial_is_told_which_ones_run() -> None:
    world = World(reflection=False)
    world.execute(decide(Engineer(1), world.situation))
    model = ScriptedModel(wait_call(trial="t009"), wait_call())
    assert decide(LanguageAgent(model), beside(world.situation, {"lr": 0.001})) == [WaitTrial("t002")]
    assert "no trial t009; those that run: t002" in model.asked[-1].messages[-1].text


def test_wait_trial_is_not_offered_while_nothing_runs() -> None:
    world = World(reflection=False)
    world.execute(decide(Engineer(1), world.situation))
    model = ScriptedModel(Answer(calls=[Call("run_trial", {"changes": {"hidden_dim": 96}})]))
    decide(LanguageAgent(model), world.situation)
    assert "wait_trial" not in {tool.name for tool in model.asked[0].tools}


def test_a_conversation_is_told_what_came_of_waits_that_it_did_not_ask_for() -> None:
    said = [Message("assistant", "", (ToolCall("c1", "run_trial", {"changes": {}}, "{}"),))]
    outcomes = [
        Outcome(RunTrial({}), "t002 is running"),
        Outcome(WaitTrial(("t001", "t002")), "t001: lr=0.001 over default: keep."),
    ]
    result, now = next_messages(said, World().situation, outcomes, ())
    assert (result.text, result.call_id) == ("t002 is running", "c1")
    assert now.text.startswith("t001: lr=0.001 over default: keep.")


@pytest.mark.anyio
async def test_a_session_of_two_places_runs_two_trials_at_a_time_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    seen: list[Event] = []
    settings = Settings(device="cpu", threads=1, parallel=2, max_trials=5, keep_warm=60.0)
    home = quick_home(tmp_path / "home")
    longer = QUICK_SANDBOX.replace("| `epochs` | 1 … 1 | 1 | 1 |", "| `epochs` | 1 … 9 | 9 | 9 |")
    (home / "SANDBOX.md").write_text(longer, encoding="utf-8")  # a trial must not end before another has started
    server = build_server(home, settings)
    async with Client(server, client_info=Implementation(name="virtualmle-tpe", version="1")) as client:
        result = await run_agent(client, TPE(1), "demo", "sasrec", on_event=seen.append)
    assert (result.state, result.look) == ("revealed", 1) and isinstance(seen[-1], Finalized)
    running: set[str] = set()
    most = 0
    for event in seen:
        if isinstance(event, TrialStarted):
            running.add(event.trial)
        if isinstance(event, TrialFinished):
            running.remove(event.observation.trial)
            assert event.observation.status == "finished"
        most = max(most, len(running))
    assert (most, running) == (2, set()) and not any(isinstance(event, Reflected) for event in seen)
    assert sum(isinstance(event, TrialFinished) for event in seen) == 5, "each end is reported once"
