"""How the engineer plans, from its prior knowledge to the effects that its own trials have measured."""

import math
from typing import Any

import numpy as np
import pytest

from tests.agents_world import SE, SPACE, World, smooth
from virtualmle.agents.base import Agent, RunTrial
from virtualmle.agents.engineer import Engineer
from virtualmle.agents.follow_ups import follow_ups, random_neighbours
from virtualmle.agents.history import History
from virtualmle.agents.moves import openings
from virtualmle.agents.random_search import RandomSearch
from virtualmle.agents.space import Space
from virtualmle.models.config import TrialConfig
from virtualmle.sandbox.action_space import ActionSpace


def changes(world: World) -> list[dict[str, Any]]:
    return [row["changes"] for row in world.trials]


def test_it_reaches_an_optimum_that_random_search_misses_with_the_same_budget() -> None:
    engineered = World(trials_max=25).play(Engineer(0)).best
    random = max(World(trials_max=25).play(RandomSearch(seed)).best for seed in range(3))
    assert engineered > 0.0585 > random  # the maximum of the surface is 0.0590


def test_every_dimension_is_covered_within_twenty_trials() -> None:
    world = World(trials_max=20).play(Engineer(0))
    tried = {knob for change in changes(world) for knob in change}
    dimensions = {knob.dimension for knob in world.space.knobs("sasrec") if knob.name in tried}
    assert len(dimensions) == 6


def test_a_change_that_helped_is_continued_in_its_direction() -> None:
    def deeper(config: TrialConfig) -> float:
        return 0.05 + 0.01 * config.num_blocks

    world = World(deeper, knobs={"num_blocks"}).play(Engineer(0))
    assert changes(world) == [{}, {"num_blocks": 2}, {"num_blocks": 3}, {"num_blocks": 4}]


def test_after_a_change_that_hurt_the_other_direction_is_tried() -> None:
    def lighter(config: TrialConfig) -> float:
        return 0.05 - 0.02 * config.dropout

    world = World(lighter, knobs={"dropout"}).play(Engineer(0))
    assert changes(world)[1] == {"dropout": 0.5}
    assert changes(world)[2] == {"dropout": 0.1}
    assert world.configs[world.incumbent or ""].dropout == 0.0


def test_changes_within_noise_are_combined_when_each_was_positive() -> None:
    def faint(config: TrialConfig) -> float:
        return 0.05 + 0.6 * SE * (config.dropout == 0.5) + 0.6 * SE * (config.num_blocks == 2)

    world = World(faint, knobs={"dropout", "num_blocks"}).play(Engineer(0))
    best = world.configs[world.incumbent or ""]
    assert (best.dropout, best.num_blocks) == (0.5, 2)


def test_a_score_weight_is_tuned_again_after_the_model_has_changed() -> None:
    def coupled(config: TrialConfig) -> float:
        wanted = 8 if config.lr < 5e-4 else 2  # the better model needs a weaker prior
        return 0.05 + (0.01 if config.lr >= 5e-4 else 0.0) - 0.001 * abs(config.transition_weight - wanted)

    world = World(coupled, knobs={"transition_weight", "lr"}, trials_max=12).play(Engineer(0))
    assert world.configs[world.incumbent or ""].transition_weight == 2


@pytest.mark.parametrize(
    ("best_epoch", "schedule", "bounds"),
    [
        (9, "constant", []),  # patience has ended it at 12 of 20 epochs
        (2, "constant", [{"patience": 5}]),  # the same, but so early that it may be a plateau
        (20, "constant", [{"epochs": 40, "patience": 5}]),  # its epochs have ended it
        (9, "cosine", [{"epochs": 10}, {"epochs": 40}]),  # another learning rate in every epoch
    ],
)
def test_only_the_curve_says_whether_a_training_should_be_longer(
    best_epoch: int, schedule: str, bounds: list[dict[str, Any]]
) -> None:
    world = World(knobs={"epochs", "patience", "schedule", "tie_embeddings"}, trials_max=10)
    bundle = {"schedule": schedule, "epochs": 20, "patience": 3, "tie_embeddings": True}
    world.act(RunTrial(bundle))
    settings = {**world.trials[0]["settings"], "epochs": 20, "patience": 3}  # set in a bundle, never tuned alone
    world.trials[0].update(best_epoch=best_epoch, reflected=True, verdict="keep", changes=bundle, settings=settings)
    moves = [move.changes for move in follow_ups(History(world.situation))]
    assert [changes for changes in moves if changes.keys() <= {"epochs", "patience"}] == bounds


def test_an_early_best_epoch_suggests_more_dropout_where_the_protocol_does_not_offer_epochs() -> None:
    world = World(knobs={"dropout", "tie_embeddings"}, trials_max=10)
    world.act(Engineer(0).act(world.situation))
    world.trials[0].update(best_epoch=2, reflected=True)
    assert {"dropout": 0.35} in [move.changes for move in follow_ups(History(world.situation))]


def test_training_is_extended_if_the_last_epoch_was_the_best() -> None:
    world = World(knobs={"epochs", "patience", "num_blocks"}, trials_max=10)
    world.act(Engineer(0).act(world.situation))
    world.trials[0].update(best_epoch=20, reflected=True)  # of 20 epochs
    assert Engineer(0).act(world.situation).changes == {"epochs": 40, "patience": 5}  # type: ignore[union-attr]


def test_patience_is_raised_if_training_stopped_after_few_epochs() -> None:
    world = World(knobs={"epochs", "patience", "num_blocks"}, trials_max=10)
    world.act(Engineer(0).act(world.situation))
    world.trials[0].update(best_epoch=2, reflected=True)
    assert Engineer(0).act(world.situation).changes == {"patience": 5}  # type: ignore[union-attr]


def test_the_best_configuration_of_a_similar_dataset_runs_second() -> None:
    config = TrialConfig(backbone="sasrec", lr=2e-3, dropout=0.35, epochs=40).model_dump()
    world = World(prior=[configuration("office", gain=None, **config)], trials_max=2).play(Engineer(0))
    assert changes(world)[1] == {"lr": 2e-3, "dropout": 0.35, "epochs": 40}
    assert world.trials[1]["base"] == "default"


def test_a_preference_from_memory_comes_before_the_usual_openings() -> None:
    prior = [rule("prefer", "num_blocks >= 3", support=9, similarity=1.0)]
    world = World(knobs={"num_blocks", "dropout"}, prior=prior, trials_max=2).play(Engineer(0))
    assert changes(world)[1] == {"num_blocks": 3}


@pytest.mark.parametrize(
    ("kind", "condition"),
    [
        ("avoid", "num_blocks >= 3"),
        ("prefer", "no grammar at all"),
        ("prefer", "hidden_dim > 4096"),
        ("prefer", "causal == false"),  # alone it is not a valid combination
        ("prefer", None),
        ("insight", None),
    ],
    ids=["avoid", "unreadable", "out of reach", "invalid", "no condition", "insight"],
)
def test_rules_without_an_applicable_recommendation_change_nothing(kind: str, condition: str | None) -> None:
    advised = World(prior=[rule(kind, condition, similarity=0.5)], trials_max=4).play(Engineer(0))
    assert changes(advised) == changes(World(trials_max=4).play(Engineer(0)))


def test_a_move_without_effect_is_not_repeated_over_a_new_incumbent() -> None:
    world = World(trials_max=20).play(Engineer(0))
    assert changes(world).count({"position": "relative"}) == 1


def test_each_trial_after_the_default_carries_a_hypothesis_with_a_reason() -> None:
    world = World(trials_max=10)
    while not world.over:
        action = Engineer(0).act(world.situation)
        if isinstance(action, RunTrial) and world.trials:
            assert action.hypothesis and action.hypothesis.size > 0 and action.hypothesis.reason
            assert action.hypothesis.dimension in {knob.dimension for knob in world.space.entries}
        world.act(action)


def test_the_smooth_surface_peaks_where_its_docstring_says() -> None:
    peak = TrialConfig(backbone="sasrec", lr=1e-3, dropout=0.35, transition_weight=8, loss="full_softmax")
    assert smooth(peak) == pytest.approx(0.059)


def proposal(changes: dict[str, Any], delta: float) -> dict[str, Any]:
    return {"changes": changes, "base": "incumbent", "dimension": "capacity", "expected_delta": delta, "sd": 0.001,
            "evidence": "session", "cost_seconds": 60.0, "source": "surrogate", "reason": "fitted here"}  # fmt: skip


def test_every_few_trials_the_surrogate_chooses_if_it_expects_a_gain() -> None:
    hopeful = World(trials_max=12, known={"proposals": [proposal({"beta1": 0.8}, 1e-6)]}).play(Engineer(0))
    assert [change for change in changes(hopeful)].index({"beta1": 0.8}) == 8
    hopeless = World(trials_max=12, known={"proposals": [proposal({"beta1": 0.8}, -1e-6)]}).play(Engineer(0))
    assert {"beta1": 0.8} not in changes(hopeless)


def test_two_knobs_with_kept_steps_are_moved_further_together() -> None:
    def steady(config: TrialConfig) -> float:
        return 0.05 + 0.002 * config.num_blocks + 0.002 * config.num_heads

    world = World(steady, knobs={"num_blocks", "num_heads"}, trials_max=6)
    world.act(Engineer(0).act(world.situation))
    for knob in ("num_blocks", "num_heads"):
        world.trials[-1]["reflected"] = True
        world.act(RunTrial({knob: 2}))
    world.trials[-1]["reflected"] = True
    assert Engineer(0).act(world.situation).changes == {"num_blocks": 3, "num_heads": 4}  # type: ignore[union-attr]


def rule(kind: str, condition: str | None, **fields: Any) -> dict[str, Any]:
    return {"type": "rule", "kind": kind, "condition": condition, "backbone": "sasrec", "dataset": "office",
            "session": "office-sasrec-1", "check": "supported", "id": 1, "statement": "quoted", "support": 3,
            "contradiction": 0, "confidence": 0.8, "similarity": 0.9, **fields}  # fmt: skip


def heuristic(condition: str) -> dict[str, Any]:
    return rule("avoid", condition, type="heuristic")


def test_a_discard_heuristic_of_the_prior_is_respected() -> None:
    world = World(avoid="num_blocks >= 2", prior=[heuristic("num_blocks >= 2")], trials_max=20).play(Engineer(0))
    assert {config.num_blocks for config in world.configs.values()} == {1} and not world.refused


def test_a_discard_heuristic_is_overridden_only_by_measurements_of_this_session() -> None:
    def deeper(config: TrialConfig) -> float:
        return 0.05 + 0.01 * config.num_blocks

    prior = [heuristic("num_blocks >= 3")]
    world = World(deeper, knobs={"num_blocks"}, avoid="num_blocks >= 3", prior=prior)
    seen: list[RunTrial] = []
    while not world.over:
        action = Engineer(0).act(world.situation)
        seen += [action] if isinstance(action, RunTrial) else []
        world.act(action)
    assert [action.changes for action in seen] == [{}, {"num_blocks": 2}, {"num_blocks": 3}, {"num_blocks": 4}]
    assert seen[2].override.startswith("here num_blocks from 1 to 2 changed NDCG@10 by +16.7%") and not seen[1].override


def test_a_heuristic_holds_for_proposals_and_for_random_neighbours() -> None:
    prior = [heuristic("dropout >= 0.3"), heuristic("dropout <= 0.1")]
    known = {"proposals": [proposal({"dropout": 0.4}, 0.01)]}
    world = World(knobs={"dropout", "num_blocks"}, prior=prior, known=known, trials_max=30).play(Engineer(0))
    tried = {config.dropout for config in world.configs.values()}
    assert tried and all(0.1 < value < 0.3 for value in tried)


def test_random_neighbours_name_only_knobs_that_they_change() -> None:
    world = World(knobs={"epochs", "num_blocks"}, trials_max=30)
    world.act(Engineer(0).act(world.situation))
    history = History(world.situation)
    drawn = random_neighbours(history, np.random.default_rng(0))
    assert len({repr(move.changes) for move in drawn}) > 1
    assert all(value != history.current[name] for move in drawn for name, value in move.changes.items())


def configuration(
    dataset: str, similarity: float = 0.9, gain: float | None = 0.5, **config: Any
) -> dict[str, Any]:
    return {"type": "configuration", "session": f"{dataset}-sasrec-1", "trial": "t001", "dataset": dataset,
            "config": config, "gain": gain, "ndcg@10": 0.05, "similarity": similarity}  # fmt: skip


def test_a_recommendation_that_fails_lowers_the_trust_in_the_others() -> None:
    prior = [configuration("a", lr=5e-5), configuration("b", dropout=0.6), configuration("c", dropout=0.7),
            configuration("d", 0.3, dropout=0.8)]  # fmt: skip
    world = World(prior=prior, trials_max=6).play(Engineer(0))
    assert changes(world)[1:3] == [{"lr": 5e-5}, {"dropout": 0.6}]  # neither of them helps
    assert {"dropout": 0.8} not in changes(world)


def test_after_a_configuration_is_kept_the_knobs_that_only_others_set_are_added() -> None:
    prior = [configuration("a", lr=1e-3, dropout=0.35), configuration("b", lr=5e-3, loss="full_softmax")]
    world = World(prior=prior, trials_max=5).play(Engineer(0))
    assert {"loss": "full_softmax"} in changes(world) and changes(world)[1] == {"lr": 1e-3, "dropout": 0.35}


def effect(value: Any, relative: float) -> dict[str, Any]:
    row = {"value": value, "n": 3, "mean_relative": relative, "se": 0.01}
    return {"n": 3, "datasets": 2, "mean_relative": relative, "se": 0.01, "interval": [-1.0, 1.0], "values": [row]}


def test_effects_on_other_datasets_raise_or_lower_the_gain_of_an_opening_move() -> None:
    harmful = World(knobs={"lr", "dropout"}, known={"history_effects": {"lr": effect(1e-3, -0.2)}}, trials_max=2)
    assert changes(harmful.play(Engineer(0)))[1] == {"dropout": 0.5}
    plain = World(knobs={"lr", "dropout"}, trials_max=2)
    assert changes(plain.play(Engineer(0)))[1] == {"lr": 1e-3, "dropout": 0.5}


def test_a_value_that_clearly_helped_elsewhere_is_tried_although_no_opening_move_has_it() -> None:
    world = World(known={"history_effects": {"conv_kernel": effect(4, 0.3)}}, trials_max=2).play(Engineer(0))
    assert changes(world)[1] == {"conv_kernel": 4}


def test_without_memory_the_list_of_opening_moves_is_worked_through() -> None:
    world = World(lambda _: 0.05, memory=False, trials_max=8).play(Engineer(0))
    tried = changes(world)
    assert tried[0] == {} and tried[1].items() >= {"lr": 1e-3, "loss": "full_softmax", "dropout": 0.5}.items()
    assert all(tried.count(change) == 1 for change in tried)
    assert {"hidden_dim": 256} in tried


def test_the_opening_moves_for_the_model_are_bundled_and_a_harmful_bundle_is_taken_apart() -> None:
    def fragile(config: TrialConfig) -> float:  # every change helps, but not together
        changed = (config.lr == 1e-3, config.loss == "full_softmax", config.dropout == 0.5)
        return 0.05 + 0.005 * sum(changed) - (0.03 if all(changed) else 0.0)

    world = World(fragile, knobs={"lr", "loss", "dropout"}, trials_max=6).play(Engineer(0))
    assert changes(world)[1] == {"lr": 1e-3, "loss": "full_softmax", "dropout": 0.5}
    assert world.trials[1]["verdict"] == "discard"
    assert world.best == pytest.approx(0.06)


def test_score_priors_wait_for_the_model() -> None:
    knobs = {"lr", "loss", "transition_weight"}
    first = [[*change] for change in changes(World(knobs=knobs, trials_max=3).play(Engineer(0)))]
    assert first == [[], ["lr", "loss"], ["transition_weight"]]


def test_a_dimension_without_a_trial_is_tried_before_half_of_the_budget_is_used() -> None:
    def eager(config: TrialConfig) -> float:  # some move always helps, and following it could fill the session
        return 0.05 + 0.003 * math.log2(config.batch_size) + 0.01 * math.log10(config.lr / 1e-5) + 0.001 * config.epochs

    world = World(eager, knobs={"batch_size", "lr", "epochs", "ema_decay", "readout"}, trials_max=12).play(Engineer(0))
    assert any("readout" in change for change in changes(world))


def test_without_reflections_verdicts_count_but_measured_effects_are_not_followed() -> None:
    def deeper(config: TrialConfig) -> float:
        return 0.05 + 0.01 * config.num_blocks + 0.001 * config.time_bias

    reflecting = World(deeper, knobs={"num_blocks", "time_bias"}, trials_max=3)
    assert {"num_blocks": 3} in changes(reflecting.play(Engineer(0)))
    blind = World(deeper, knobs={"num_blocks", "time_bias"}, trials_max=3, reflection=False).play(Engineer(0))
    assert changes(blind)[:3] == [{}, {"num_blocks": 2}, {"time_bias": True}]
    assert {"num_blocks": 3} not in changes(blind) and blind.incumbent == "t003"


def test_a_resumed_session_ignores_its_own_rules_in_the_prior() -> None:
    own = rule("prefer", "num_blocks >= 3", session="s", support=9)
    resumed = World(prior=[own], trials_max=4).play(Engineer(0))
    assert changes(resumed) == changes(World(trials_max=4).play(Engineer(0)))


def test_knobs_that_the_incumbent_sets_are_not_reset_to_values_that_helped_the_default() -> None:
    prior = [configuration("a", lr=2e-3, transition_weight=16.0)]
    known = {"history_effects": {"transition_weight": effect(8.0, 0.5), "lr": effect(1e-3, 0.5)}}
    first_changes = changes(World(prior=prior, known=known, trials_max=20).play(Engineer(0)))[:6]
    assert first_changes[1] == {"lr": 2e-3, "transition_weight": 16.0}
    assert {"lr": 1e-3} not in first_changes and {"transition_weight": 8.0} not in first_changes


def with_levels(**levels: tuple[float, ...]) -> ActionSpace:
    """The shipped action space with these knobs only, each with these levels."""
    return ActionSpace(
        entries=tuple(
            knob.model_copy(update={"levels": levels[knob.name], "low": levels[knob.name][0],
                                    "high": levels[knob.name][-1]} if levels[knob.name] else {})
            for knob in SPACE.entries
            if knob.name in levels
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    "levels, expected",
    [
        pytest.param({"dropout": (0.2, 0.4)}, [{"dropout": 0.4}], id="nearest level in the move's direction"),
        pytest.param({"dropout": (0.1, 0.2)}, [], id="no level in the move's direction"),
        pytest.param({"lr": (3e-4, 1e-3)}, [{"lr": 1e-3}], id="two moves become one"),
        pytest.param({"lr": (3e-4, 1e-3, 3e-3)}, [{"lr": 1e-3}, {"lr": 3e-3}], id="nearest by ratio"),
        pytest.param({"transition_window": (1, 3)}, [], id="a move with knobs that are not offered"),
        pytest.param({"loss": ()}, [{"loss": "full_softmax"}], id="a choice"),
    ],
)
def test_opening_moves_fit_the_levels_that_a_session_offers(
    levels: dict[str, tuple[float, ...]], expected: list[dict[str, Any]]
) -> None:
    space = Space("sasrec", with_levels(**levels).knobs("sasrec"))
    assert [move.changes for move in openings(space)] == expected


@pytest.mark.parametrize("agent", [Engineer(0), RandomSearch(0)], ids=["engineer", "random"])
def test_a_session_with_levels_is_played_on_them_alone(agent: Agent) -> None:
    world = World(trials_max=12)
    world.space = with_levels(lr=(3e-4, 1e-3, 3e-3), dropout=(0.2, 0.4), transition_weight=(0.0, 2.0, 8.0))
    world.play(agent)  # a value that is no level would raise
    assert len(world.trials) == 12
    assert world.best > smooth(world.space.default("sasrec"))


def test_the_engineer_finds_the_best_of_the_levels() -> None:
    world = World(trials_max=12)
    world.space = with_levels(lr=(3e-4, 1e-3, 3e-3), dropout=(0.2, 0.4), transition_weight=(0.0, 2.0, 8.0))
    best = world.play(Engineer(0)).configs[world.incumbent or ""]
    assert (best.lr, best.dropout, best.transition_weight) == (1e-3, 0.4, 8.0)
