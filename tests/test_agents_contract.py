"""The contract of every agent and seeding: the engine accepts all its configurations, and none is tried twice."""

from dataclasses import replace

import pytest

from tests.agents_world import World, decide, smooth, stopped, without_memory
from tests.language_models import asking_agent
from virtualmle.agents.base import Agent, Finalize, Reflect, RunTrial, WaitTrial
from virtualmle.agents.registry import AGENTS, make_agent
from virtualmle.agents.seeding import SEEDINGS, Seeding
from virtualmle.data.errors import ConfigError
from virtualmle.models.config import TrialConfig
from virtualmle.sandbox.action_space import effective

pytestmark = pytest.mark.parametrize("name", sorted(AGENTS))
SLOW = {"gp": 14}  # trials of a session if a trial takes a second; more than the sampler's ten random ones
PRIOR = [
    {
        "type": "configuration", "session": "s0", "trial": "t009", "dataset": "other", "gain": 0.4, "ndcg@10": 0.06,
        "similarity": 1.0, "config": {"lr": 0.001, "dropout": 0.4, "unknown_knob": 3},
    }
]  # fmt: skip


@pytest.fixture
def agent(name: str) -> Agent:
    return asking_agent(name, seed=7)


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_a_session_runs_to_its_end_with_valid_and_different_configurations(
    agent: Agent, name: str, backbone: str
) -> None:
    trials = SLOW.get(name, 25)
    world = World(backbone=backbone, trials_max=trials).play(agent)  # World raises for what the action space refuses
    assert len(world.trials) == trials
    acting = [effective(config) for config in world.configs.values()]
    assert all(acting.count(one) == 1 for one in acting)


def test_a_session_with_stopped_trials_runs_to_its_end_and_repeats_none(agent: Agent) -> None:
    world = World(trials_max=14)
    world.raced = True
    world.play(agent)
    ended = [row for row in world.trials if row["status"] == "stopped"]
    assert len(world.trials) == 14 and ended
    acting = [effective(config) for config in world.configs.values()]
    assert all(acting.count(one) == 1 for one in acting)
    said = {reflection.trial: reflection.helped for reflection in world.reflections}
    assert all(said[row["trial"]] != "yes" for row in ended if row["trial"] in said)


def test_the_plain_default_is_measured_first(agent: Agent) -> None:
    (action,) = decide(agent, World().situation)
    assert isinstance(action, RunTrial) and (action.changes, action.base) == ({}, "default")


def test_a_pending_reflection_comes_before_the_next_trial(agent: Agent) -> None:
    world = World()
    world.execute(decide(agent, world.situation))
    action = decide(agent, world.situation)[0]
    assert isinstance(action, Reflect) and action.trial == "t001" and action.lesson


def test_no_reflection_is_written_if_reflections_are_off(agent: Agent) -> None:
    world = World(reflection=False, trials_max=6).play(agent)
    assert len(world.trials) == 6 and not world.reflections


def test_a_running_trial_is_waited_for(agent: Agent) -> None:
    world = World()
    world.running = "t001"
    assert decide(agent, world.situation) == (WaitTrial("t001"),)


def test_the_session_is_finalized_when_a_stop_rule_applies(agent: Agent) -> None:
    world = World(trials_max=3, reflection=False)
    while len(world.trials) < 2:
        world.execute(decide(agent, world.situation))
    actions = decide(agent, stopped(world.situation))
    for used in ("teachers", "ensemble"):  # the engineer first uses its models together
        if isinstance(actions[-1], RunTrial):
            assert used in actions[-1].changes
            world.execute(actions)
            actions = decide(agent, stopped(world.situation))
    assert isinstance(actions[-1], Finalize) and "0.0" in actions[-1].summary


def test_a_session_that_is_no_longer_open_is_finalized_again(agent: Agent) -> None:
    situation = World().situation
    frozen = replace(situation, state=situation.state.model_copy(update={"state": "frozen"}))
    assert isinstance(decide(agent, frozen)[0], Finalize)


def test_trials_that_admission_refuses_are_replaced_by_others(agent: Agent) -> None:
    world = World(avoid="lr >= 0.0004", trials_max=15).play(agent)
    assert len(world.trials) == 15
    assert all(config.lr < 0.0004 for config in world.configs.values())


def test_crashed_trials_do_not_end_the_session_and_are_not_repeated(agent: Agent) -> None:
    def fragile(config: TrialConfig) -> float:
        return float("nan") if config.lr > 5e-4 or config.num_blocks > 1 else smooth(config)

    world = World(fragile, trials_max=15).play(agent)
    assert len({str(row["settings"]) for row in world.trials}) == 15


def test_a_crash_of_the_default_does_not_end_the_session(agent: Agent) -> None:
    world = World(lambda config: float("nan") if config.lr == 3e-4 else 0.05, trials_max=20).play(agent)
    assert len(world.trials) == 20


def test_the_same_situation_gives_the_same_action_in_a_new_process(agent: Agent, name: str) -> None:
    world = World(trials_max=12)
    while not world.over:
        actions = decide(agent, world.situation)
        assert decide(asking_agent(name, seed=7), world.situation) == actions
        world.execute(actions, corrects=agent.corrects)


def test_only_the_knobs_of_the_action_space_are_changed(agent: Agent) -> None:
    world = World(knobs={"lr", "dropout"}, trials_max=12).play(agent)
    assert {knob for row in world.trials for knob in row["changes"]} <= {"lr", "dropout"}


def test_a_space_with_nothing_left_to_try_ends_the_session(agent: Agent) -> None:
    world = World(knobs={"tie_embeddings"}, trials_max=30).play(agent)
    assert [row["changes"] for row in world.trials] == [{}, {"tie_embeddings": True}]


def test_a_space_without_knobs_ends_after_the_default(agent: Agent) -> None:
    assert len(World(knobs=set()).play(agent).trials) == 1


def test_without_memory_only_the_last_trial_is_known(agent: Agent) -> None:
    world = World(trials_max=6)
    while not world.over:
        situation = without_memory(world.situation)
        assert len(situation.trajectory.trials) <= 1
        world.execute(decide(agent, situation), corrects=agent.corrects)
    assert len(world.trials) == 6


def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        make_agent("oracle", 0)


@pytest.mark.parametrize("seeding", SEEDINGS)
def test_a_session_resumes_identically_from_every_seeding(name: str, seeding: Seeding) -> None:
    world = World(trials_max=11, prior=PRIOR, reflection=False)
    while not world.over:
        agent = asking_agent(name, seed=3, seeding=seeding)
        actions = decide(agent, world.situation)
        assert decide(asking_agent(name, seed=3, seeding=seeding), world.situation) == actions
        world.execute(actions, corrects=agent.corrects)
    assert len(world.trials) == 11
