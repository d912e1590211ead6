"""The samplers: seeding, free refusals, levels, the grid, coordinate descent, and the margin over random search."""

import math
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler

from tests.agents_world import World, smooth
from virtualmle.agents import optuna_gp, optuna_tpe
from virtualmle.agents.base import Finalize, Refusal, RunTrial
from virtualmle.agents.coordinate import Coordinate
from virtualmle.agents.grid import GridSearch, cells_of
from virtualmle.agents.history import History
from virtualmle.agents.loop import MAX_REFUSALS
from virtualmle.agents.moves import OPENINGS
from virtualmle.agents.optuna_study import Told, study_of
from virtualmle.agents.optuna_tpe import TPE
from virtualmle.agents.registry import AGENTS, AgentOptions
from virtualmle.agents.sampler import MAX_REFUSED, DrawingSampler, Sampler, observations, repaired
from virtualmle.agents.sampler_cmaes import CovarianceAdaptation, from_unit, to_unit
from virtualmle.agents.seeding import NUM_MOVES, Seeding
from virtualmle.agents.space import Space
from virtualmle.models.config import TrialConfig
from virtualmle.sandbox.action_space import Knob, inert_changes

SAMPLERS = sorted(set(AGENTS) & {"random", "grid", "coordinate", "tpe", "gp", "cmaes"})
FEW = {"lr", "dropout", "transition_weight", "loss", "weight_decay", "label_smoothing"}
PAPER = {"lr", "dropout", "hidden_dim", "num_blocks", "weight_decay", "batch_size"}


def sampler(name: str, seed: int = 0, seeding: Seeding = "default") -> Sampler:
    made = AGENTS[name](AgentOptions(seed=seed, seeding=seeding))
    assert isinstance(made, Sampler)
    return made


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_do_not_reflect_and_run_everything_over_the_default(name: str) -> None:
    assert not sampler(name).reflects
    world = World(knobs=FEW, trials_max=12, reflection=False).play(sampler(name))
    assert {row["base"] for row in world.trials} == {"default"}
    assert all(row["changes"] == row["settings"] for row in world.trials)


@pytest.mark.parametrize(
    ("name", "trials", "seeds"),
    [
        pytest.param("tpe", 40, 3, id="tpe"),
        pytest.param("cmaes", 40, 3, id="cmaes"),
        pytest.param("gp", 24, 2, id="gp, half a second a trial"),
    ],
)
def test_a_model_beats_random_search_by_a_clear_margin(name: str, trials: int, seeds: int) -> None:
    def reached(agent: str, seed: int) -> float:
        return World(knobs=FEW, trials_max=trials, reflection=False).play(sampler(agent, seed)).best

    start, top = smooth(World().base("default")), 0.05 + 0.006 + 0.003
    left = {agent: mean(top - reached(agent, seed) for seed in range(seeds)) for agent in (name, "random")}
    assert left[name] < 0.7 * left["random"] < 0.7 * (top - start)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_moves_are_made_over_the_incumbent_in_order_of_their_usual_gain(name: str) -> None:
    world = World(trials_max=NUM_MOVES + 1, reflection=False).play(sampler(name, seeding="moves"))
    moves = sorted(OPENINGS["sasrec"], key=lambda move: -move.gain)[:NUM_MOVES]
    assert world.trials[0]["settings"] == {}
    kept: dict[str, object] = {}
    for row, move in zip(world.trials[1:], moves, strict=True):
        assert row["settings"] == kept | move.changes
        kept = row["settings"] if row["verdict"] == "keep" else kept
    assert {"lr", "transition_weight", "loss"} <= kept.keys()


def test_memory_seeds_with_the_portfolio_and_none_with_nothing() -> None:
    entry = {
        "type": "configuration", "session": "s0", "trial": "t1", "dataset": "other", "gain": 0.4, "ndcg@10": 0.06,
        "similarity": 1.0, "config": {"lr": 0.001, "no_such_knob": 1},
    }  # fmt: skip
    seeded = World(prior=[entry], trials_max=2, reflection=False).play(sampler("tpe", seeding="memory"))
    assert [row["settings"] for row in seeded.trials] == [{}, {"lr": 0.001}]
    unseeded = World(prior=[entry], trials_max=2, reflection=False).play(sampler("tpe", seeding="none"))
    assert {} not in [row["settings"] for row in unseeded.trials]


@pytest.mark.parametrize("name", SAMPLERS)
def test_endless_refusals_end_the_session_before_the_loop_gives_up(name: str) -> None:
    world, agent = World(reflection=False), sampler(name)
    world.act(agent.act(world.situation))
    situation, seen = world.situation, []
    while isinstance(action := agent.act(situation), RunTrial):
        seen.append(action.changes)
        situation = replace(situation, refused=(*situation.refused, Refusal(action.changes, action.base, "no")))
    assert isinstance(action, Finalize) and len(seen) == MAX_REFUSED < MAX_REFUSALS
    assert all(seen.count(one) == 1 for one in seen)


def test_refused_configurations_cost_no_trial() -> None:
    world = World(avoid="dropout >= 0.1", trials_max=12, reflection=False).play(sampler("tpe"))
    assert len(world.trials) == 12


@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_are_the_only_values(name: str) -> None:
    world = World(trials_max=9, reflection=False)
    lr = Knob(name="lr", type="float", dimension="optimisation", low=1e-4, high=3e-3, scale="log",
              levels=(1e-4, 3e-4, 1e-3, 3e-3), defaults={"sasrec": 3e-4})  # fmt: skip
    dim = Knob(name="hidden_dim", type="int", dimension="capacity", low=32, high=128, scale="log",
               levels=(32, 64, 128), defaults={"sasrec": 64})  # fmt: skip
    agent, situation = sampler(name), world.situation
    situation = replace(situation, brief=replace(situation.brief, knobs=[lr, dim]))
    for _ in range(4):
        action = agent.act(situation)
        assert isinstance(action, RunTrial)
        assert action.changes.get("lr", 3e-4) in lr.levels and action.changes.get("hidden_dim", 64) in dim.levels
        situation = replace(situation, refused=(*situation.refused, Refusal(action.changes, "default", "no")))
    assert [from_unit(dim, to_unit(dim, level)) for level in dim.levels] == [32, 64, 128]


def test_the_grid_enumerates_its_cells_once_and_ends() -> None:
    world = World(knobs=PAPER, trials_max=1000, reflection=False)
    assert len(cells_of(Space("sasrec", world.situation.brief.knobs))) == 729
    small = World(knobs={"lr", "dropout", "num_blocks"}, trials_max=1000, reflection=False).play(GridSearch(4))
    cells = cells_of(Space("sasrec", small.situation.brief.knobs))
    ran = [{"lr": c.lr, "dropout": c.dropout, "num_blocks": c.num_blocks} for c in small.configs.values()]
    assert len(ran) == 27 and sorted(map(str, ran)) == sorted(map(str, cells))


def test_the_grid_of_the_whole_space_has_three_levels_of_six_knobs() -> None:
    cells = cells_of(Space("hstu", World(backbone="hstu").situation.brief.knobs))
    assert len(cells) == 729 and len(cells[0]) == 6


def test_refused_cells_of_the_grid_are_not_asked_for_again() -> None:
    world = World(avoid="lr >= 0.0009", knobs={"lr", "dropout", "num_blocks"}, trials_max=1000, reflection=False)
    world.play(GridSearch(4))
    assert len(world.trials) == 9


def test_coordinate_descent_changes_one_knob_of_the_incumbent_and_refines_its_steps() -> None:
    world = World(knobs={"lr", "dropout"}, trials_max=40, reflection=False).play(Coordinate())
    incumbent: dict[str, object] = {}
    for row in world.trials[1:]:
        differing = {k for k in {**incumbent, **row["settings"]} if incumbent.get(k) != row["settings"].get(k)}
        assert len(differing) == 1
        incumbent = row["settings"] if row["verdict"] == "keep" else incumbent
    best = world.base("incumbent")
    assert abs(math.log10(best.lr / 1e-3)) < 0.1 and abs(best.dropout - 0.35) < 0.08


def test_crashes_count_as_the_worst_score_of_the_session() -> None:
    def fragile(config: TrialConfig) -> float:
        return float("nan") if config.lr > 1e-3 else smooth(config)

    world = World(fragile, knobs=FEW, trials_max=15, reflection=False).play(sampler("tpe"))
    history = History(world.situation)
    told = dict(zip([row["trial"] for row in world.trials], observations(history), strict=True))
    crashed = [row["trial"] for row in world.trials if row["status"] == "crashed"]
    worst = min(row["metrics"]["ndcg@10"] for row in world.trials if row["metrics"])
    assert crashed and {told[handle][1] for handle in crashed} == {worst}


def test_stopped_trials_are_pruned_for_tpe_and_have_their_bound_for_methods_that_know_values_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    studies: dict[str, list[optuna.trial.FrozenTrial]] = {}

    def noted(backend: BaseSampler, told: list[Told], *rest: Any) -> optuna.Study:
        study = study_of(backend, told, *rest)
        studies["last"] = study.trials
        return study

    world = World(knobs=FEW, trials_max=14, reflection=False)
    world.raced = True
    world.play(sampler("random"))
    history = History(world.situation)
    bounds = [row["stopped"] for row in world.trials if row["status"] == "stopped"]
    for name, module in (("tpe", optuna_tpe), ("gp", optuna_gp)):
        monkeypatch.setattr(module, "study_of", noted)
        agent = sampler(name)
        assert isinstance(agent, DrawingSampler)
        next(agent.draws(history, np.random.default_rng(0)))
        pruned = [trial for trial in studies["last"] if trial.state == optuna.trial.TrialState.PRUNED]
        complete = [trial.value for trial in studies["last"] if trial.state == optuna.trial.TrialState.COMPLETE]
        if name == "tpe":
            assert [trial.intermediate_values for trial in pruned] == [{b["epoch"]: b["reached"]} for b in bounds]
            assert len(complete) == 14 - len(bounds)
        else:
            assert not pruned and {b["at_most"] for b in bounds} <= set(complete)
    assert bounds


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_tpe_asks_for_no_knob_without_effect(backbone: str) -> None:
    world = World(backbone=backbone)
    history, space = History(world.situation), Space(backbone, world.situation.brief.knobs)
    accepted = 0
    for seed in range(4):
        for settings in TPE(seed).draws(history, np.random.default_rng(seed)):
            config = space.config(settings)
            accepted += config is not None
            assert config is None or not inert_changes(config, settings)
    assert accepted > 10


def test_repair_puts_back_only_knobs_of_the_refused_combination() -> None:
    space = Space("sasrec", World().situation.brief.knobs)
    settings = {"hidden_dim": 129, "num_heads": 2, "lr": 0.001, "dropout": 0.4}
    assert space.config(settings) is None
    repairs = [repaired(settings, space, np.random.default_rng(seed)) for seed in range(5)]
    assert all(space.config(repair) and len(repair) == 3 and {"lr", "dropout"} <= repair.keys() for repair in repairs)


def test_a_generation_of_cmaes_moves_its_distribution() -> None:
    world = World(knobs=FEW, trials_max=30, reflection=False).play(CovarianceAdaptation(1))
    assert mean(row["metrics"]["ndcg@10"] for row in world.trials[20:]) > mean(
        row["metrics"]["ndcg@10"] for row in world.trials[1:11]
    )
