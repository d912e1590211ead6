"""When the engineer proposes an ensemble, of which trials, and what the other agents make of the knob."""

from typing import Any

import pytest

from tests.agents_world import World, decide, smooth
from virtualmle.agents.base import Finalize, Refusal, RunTrial, WaitTrial
from virtualmle.agents.digest import state_digest
from virtualmle.agents.engineer import Engineer
from virtualmle.agents.ensembles import planned_ensemble, planned_student
from virtualmle.agents.history import History
from virtualmle.agents.reflecting import reflect_on, summarise
from virtualmle.agents.space import Space
from virtualmle.models.config import KNOBS
from virtualmle.sandbox.action_space import effective


def ensembles(world: World) -> list[dict[str, Any]]:
    return [row for row in world.trials if "ensemble" in row["changes"]]


def run(world: World, *changes: dict[str, Any]) -> None:
    for one in changes:
        world.act(RunTrial(one, "default"))
        world.act(reflect_on(world.situation, world.trials[-1]["trial"]))


def test_the_engineer_proposes_one_ensemble_in_its_last_two_trials() -> None:
    world = World(trials_max=12).play(Engineer())
    (row,) = ensembles(world)
    assert row["number"] in (11, 12) and len(world.trials) == 12
    members = row["changes"]["ensemble"].split("+")
    assert 2 <= len(members) <= 4 and members == sorted(members)
    trained = {repr({k: v for k, v in effective(world.configs[m]).items() if KNOBS.get(k) is None
                     or KNOBS[k].dimension != "scoring"}) for m in members}  # fmt: skip
    assert len(trained) == len(members), "every member has a model of its own"
    best = max(world.trials[: row["number"] - 1], key=lambda t: t["metrics"]["ndcg@10"])
    assert row["base"] == best["trial"]


def test_members_are_the_best_trial_of_each_model_that_is_nearly_as_good() -> None:
    scores = {3e-4: 0.05, 1e-3: 0.06, 2e-3: 0.059, 1e-2: 0.02}
    world = World(lambda config: scores[config.lr] + 0.001 * config.transition_weight, trials_max=7)
    run(world, {}, {"lr": 1e-3}, {"lr": 2e-3}, {"lr": 1e-2}, {"lr": 1e-3, "transition_weight": 1.0})
    planned = planned_ensemble(History(world.situation, from_best=True))
    assert planned and (planned.changes, planned.base) == ({"ensemble": "t003+t005"}, "t005")
    assert planned.hypothesis and planned.hypothesis.dimension == "scoring"


def test_a_longer_training_with_the_same_best_epoch_is_no_second_model() -> None:
    world = World(lambda config: 0.06 if config.lr == 1e-3 else 0.059, trials_max=9)
    run(world, {}, {"lr": 1e-3}, {"lr": 1e-3, "epochs": 40}, {"lr": 1e-3, "patience": 9}, {"lr": 1e-3, "epochs": 60})
    for row, best_epoch in zip(world.trials, (7, 12, 12, 12, 50), strict=True):
        row["best_epoch"] = best_epoch
    planned = planned_ensemble(History(world.situation, from_best=True))
    assert planned and planned.changes == {"ensemble": "t001+t002+t005"}


def test_a_session_that_its_patience_ends_tries_the_ensemble_first() -> None:
    world = World(lambda config: 0.05, trials_max=30, patience=4)
    run(world, {}, {"lr": 1e-3}, {"dropout": 0.5})
    world.act(RunTrial({"hidden_dim": 64}, "default"))
    world.act(reflect_on(world.situation, "t004"))
    world.act(RunTrial({"hidden_dim": 256}, "default"))
    world.act(reflect_on(world.situation, "t005"))
    (action,) = decide(Engineer(), world.situation)
    assert isinstance(action, RunTrial) and action.changes == {"ensemble": "t001+t002+t003+t004"}


def test_no_ensemble_is_proposed_without_the_knob_or_after_a_refusal_or_beside_a_running_trial() -> None:
    fixed = World(trials_max=8, knobs=set(KNOBS) - {"ensemble"}).play(Engineer())
    assert not ensembles(fixed) and len(fixed.trials) == 8
    world = World(trials_max=4)
    run(world, {}, {"lr": 1e-3}, {"lr": 2e-3})
    (action,) = decide(Engineer(), world.situation)
    assert isinstance(action, RunTrial) and "ensemble" in action.changes
    world.running = "t003"
    assert decide(Engineer(), world.situation) == (WaitTrial("t003"),)
    world.running = None
    world.refused.append(Refusal(action.changes, action.base, "t001 has lost its checkpoint"))
    (other,) = decide(Engineer(), world.situation)
    assert isinstance(other, Finalize) or "ensemble" not in other.changes


def test_a_clear_gain_of_an_ensemble_is_no_rule_and_the_summary_names_the_best_single_model() -> None:
    world = World(lambda config: 0.09 if config.ensemble else smooth(config), trials_max=8).play(Engineer())
    (row,) = ensembles(world)
    reflection = next(r for r in world.reflections if r.trial == row["trial"])
    assert (reflection.helped, reflection.dimension, reflection.rule) == ("yes", "scoring", None)
    summary = summarise(world.situation)
    assert f"ensemble={row['changes']['ensemble']}" in summary and "Best single model: 0.0" in summary


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_searchers_do_not_see_the_knob(backbone: str) -> None:
    brief = World(backbone=backbone).situation.brief
    space = Space(backbone, brief.knobs)
    assert "ensemble" not in space.knobs and "ensemble" not in space.defaults
    assert space.offers_ensembles and space.dimension("ensemble") == "scoring"
    assert space.allows({"ensemble": "t001+t002"}, {"lr": 1e-3}) and not space.allows({"ensemble": "t001"}, {})
    assert not space.allows({"lr": 1e-3}, {"ensemble": "t001+t002"})


def others(*rows: tuple[str, str, float]) -> dict[str, Any]:
    """What the server says of trials of other sessions: (trial, backbone, NDCG@10), the best first."""
    named = [{"trial": trial, "backbone": backbone, "ndcg@10": score} for trial, backbone, score in rows]
    return {"other_members": named}


def test_two_trials_of_other_sessions_join_the_best_own_ones_the_other_backbone_first() -> None:
    rows = ("d-sasrec-2/t009", "sasrec", 0.07), ("d-hstu-1/t003", "hstu", 0.06), ("d-hstu-1/t004", "hstu", 0.058)
    scores = {3e-4: 0.05, 1e-3: 0.06, 2e-3: 0.0595, 1e-2: 0.058}
    world = World(lambda config: scores[config.lr], trials_max=7, known=others(*rows, ("d-hstu-2/t001", "hstu", 0.01)))
    run(world, {}, {"lr": 1e-3}, {"lr": 2e-3}, {"lr": 1e-2})
    planned = planned_ensemble(History(world.situation, from_best=True))
    assert planned and planned.base == "t002"
    assert planned.changes == {"ensemble": "d-hstu-1/t003+d-hstu-1/t004+t002+t003"}


def test_a_single_model_is_scored_with_one_of_another_session_once_it_stands() -> None:
    known = others(("d-hstu-1/t003", "hstu", 0.046), ("d-hstu-1/t004", "hstu", 0.0449))
    world = World(lambda config: 0.05, trials_max=5, known=known)
    run(world, {})
    assert planned_ensemble(History(world.situation, from_best=True)) is None, "the default alone is no own model"
    run(world, {"transition_weight": 2.0})
    assert planned_ensemble(History(world.situation, from_best=True)) is None, "re-scored, not trained"
    run(world, {"lr": 1e-3})
    planned = planned_ensemble(History(world.situation, from_best=True))
    assert planned and planned.changes == {"ensemble": "d-hstu-1/t003+t001+t003"}, "of at least 90 % of the best"


def test_the_engineer_runs_and_reflects_on_an_ensemble_with_another_session_once() -> None:
    known = others(("d-hstu-1/t003", "hstu", 0.06))
    world = World(lambda config: 0.09 if config.ensemble else smooth(config), trials_max=8, known=known)
    (row,) = ensembles(world.play(Engineer()))
    assert row["changes"]["ensemble"].startswith("d-hstu-1/t003+t0")
    reflection = next(r for r in world.reflections if r.trial == row["trial"])
    assert (reflection.helped, reflection.dimension, reflection.rule) == ("yes", "scoring", None)


def test_a_language_model_reads_which_trials_of_other_sessions_an_ensemble_may_have() -> None:
    world = World(known=others(("d-hstu-1/t003", "hstu", 0.06), ("d-sasrec-2/t001", "sasrec", 0.05)))
    line = "models of other sessions: d-hstu-1/t003 (hstu, 0.0600), d-sasrec-2/t001 (sasrec, 0.0500)"
    assert line in state_digest(world.situation) and "other sessions" not in state_digest(World().situation)


FULL = {"loss": "full_softmax", "dropout": 0.5, "epochs": 24}


def students(world: World) -> list[dict[str, Any]]:
    return [row for row in world.trials if "teachers" in row["changes"]]


def taught(config: Any) -> float:
    return 0.09 if config.ensemble else 0.08 if config.teachers else 0.06 - abs(config.lr - 1e-3)


def test_the_student_of_the_best_models_comes_before_the_ensemble_which_it_may_join() -> None:
    world = World(taught, trials_max=14).play(Engineer())
    (student,), (ensemble,) = students(world), ensembles(world)
    assert student["number"] == 12 and ensemble["number"] in (13, 14)
    teachers = student["changes"]["teachers"].split("+")
    assert 2 <= len(teachers) <= 4 and all(world.configs[name].teachers == "" for name in teachers)
    assert student["trial"] in ensemble["changes"]["ensemble"]
    reflection = next(r for r in world.reflections if r.trial == student["trial"])
    assert (reflection.helped, reflection.rule) == ("yes", None), "the names of a session's trials are no rule"
    assert "Best single model: 0.0" in summarise(world.situation)


def test_a_student_trains_half_of_the_epochs_with_less_dropout_and_keeps_the_rest() -> None:
    world = World(taught, trials_max=6)
    run(world, {}, {**FULL, "lr": 1e-3}, {**FULL, "lr": 2e-3, "embedding_dropout": 0.1})
    world.trials[1]["best_epoch"] = 13
    planned = planned_student(History(world.situation, from_best=True))
    assert planned and planned.base == "t002" and planned.hypothesis and planned.hypothesis.dimension == "supervision"
    less = {"dropout": 0.2, "epochs": 7, "patience": 7, "schedule": "cosine"}
    assert planned.changes == {"teachers": "t001+t002+t003", **less}


def test_no_student_without_two_models_or_the_full_softmax_or_after_one_was_tried() -> None:
    world = World(taught, trials_max=9)
    run(world, {}, {"lr": 1e-3}, {"lr": 2e-3})
    assert planned_student(History(world.situation, from_best=True)) is None, "its softmax is sampled"
    world = World(lambda config: 0.08 if config.loss == "full_softmax" else 0.05, trials_max=9)
    run(world, {}, FULL)
    assert planned_student(History(world.situation, from_best=True)) is None, "one model is as good as itself"
    run(world, {**FULL, "lr": 1e-3})
    planned = planned_student(History(world.situation, from_best=True))
    assert planned and planned.changes["teachers"] == "t002+t003"
    world.act(planned)
    world.act(reflect_on(world.situation, "t004"))
    assert planned_student(History(world.situation, from_best=True)) is None
    fixed = World(taught, trials_max=8, knobs=set(KNOBS) - {"teachers"}).play(Engineer())
    assert not students(fixed)
