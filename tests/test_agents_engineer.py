"""How the engineer plans: from what is known beforehand to what its own trials have measured."""

from typing import Any

import pytest

from tests.agents_world import SE, World, smooth
from virtualmle.agents.base import RunTrial
from virtualmle.agents.engineer import Engineer
from virtualmle.agents.random_search import RandomSearch
from virtualmle.models.config import TrialConfig


def changes(world: World) -> list[dict[str, Any]]:
    return [row["changes"] for row in world.trials]


def test_it_reaches_the_optimum_that_random_search_misses_at_the_same_budget() -> None:
    engineered = World(trials_max=25).play(Engineer(0)).best
    random = max(World(trials_max=25).play(RandomSearch(seed)).best for seed in range(3))
    assert engineered > 0.0585 > random  # the surface ends at 0.0590


def test_every_dimension_is_covered_within_twenty_trials() -> None:
    world = World(trials_max=20).play(Engineer(0))
    tried = {knob for change in changes(world) for knob in change}
    dimensions = {knob.dimension for knob in world.space.knobs("sasrec") if knob.name in tried}
    assert len(dimensions) == 6


def test_a_change_that_helped_is_driven_further_in_its_direction() -> None:
    def deeper(config: TrialConfig) -> float:
        return 0.05 + 0.01 * config.num_blocks

    world = World(deeper, knobs={"num_blocks"}).play(Engineer(0))
    assert changes(world) == [{}, {"num_blocks": 2}, {"num_blocks": 3}, {"num_blocks": 4}]


def test_a_change_that_hurt_is_tried_the_other_way() -> None:
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
        wanted = 8 if config.lr < 5e-4 else 2  # a better model wants less help from the prior
        return 0.05 + (0.01 if config.lr >= 5e-4 else 0.0) - 0.001 * abs(config.transition_weight - wanted)

    world = World(coupled, knobs={"transition_weight", "lr"}, trials_max=12).play(Engineer(0))
    assert world.configs[world.incumbent or ""].transition_weight == 2


def test_a_run_that_was_best_in_its_last_epoch_is_trained_longer() -> None:
    world = World(knobs={"epochs", "patience", "tie_embeddings"}, trials_max=10)
    world.act(Engineer(0).act(world.situation))
    world.trials[0].update(best_epoch=20, reflected=True)  # of 20 epochs
    assert Engineer(0).act(world.situation).changes == {"epochs": 40, "patience": 5}  # type: ignore[union-attr]


def test_a_run_that_stopped_after_few_epochs_is_given_more_patience() -> None:
    world = World(knobs={"epochs", "patience", "tie_embeddings"}, trials_max=10)
    world.act(Engineer(0).act(world.situation))
    world.trials[0].update(best_epoch=2, reflected=True)
    assert Engineer(0).act(world.situation).changes == {"patience": 5}  # type: ignore[union-attr]


def test_the_best_configuration_of_a_similar_dataset_runs_second() -> None:
    config = TrialConfig(backbone="sasrec", lr=2e-3, dropout=0.35, epochs=40).model_dump()
    entry = {"type": "configuration", "dataset": "office", "config": config, "similarity": 0.9}
    world = World(prior=[entry], trials_max=2).play(Engineer(0))
    assert changes(world)[1] == {"lr": 2e-3, "dropout": 0.35, "epochs": 40}
    assert world.trials[1]["base"] == "default"


def test_a_preference_from_memory_comes_before_the_usual_openings() -> None:
    rule = {"type": "rule", "kind": "prefer", "condition": "num_blocks >= 3", "support": 9, "contradiction": 0,
            "similarity": 1.0, "dataset": "office", "statement": "ignored"}  # fmt: skip
    world = World(knobs={"num_blocks", "dropout"}, prior=[rule], trials_max=2).play(Engineer(0))
    assert changes(world)[1] == {"num_blocks": 3}


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "avoid", "condition": "num_blocks >= 3"},
        {"kind": "prefer", "condition": "no grammar at all"},
        {"kind": "prefer", "condition": "hidden_dim > 4096"},
        {"kind": "prefer", "condition": "causal == false"},  # alone it is not a valid combination
        {"kind": "prefer", "condition": None},
        {"kind": "insight", "condition": None},
    ],
    ids=["avoid", "unreadable", "out of reach", "invalid", "no condition", "insight"],
)
def test_rules_that_recommend_nothing_possible_change_nothing(rule: dict[str, Any]) -> None:
    told = World(prior=[{"type": "rule", "statement": "", "support": 3, **rule}], trials_max=4).play(Engineer(0))
    assert changes(told) == changes(World(trials_max=4).play(Engineer(0)))


def test_a_move_that_brought_nothing_gives_way_to_untried_ones_even_over_a_new_incumbent() -> None:
    world = World(trials_max=20).play(Engineer(0))
    cosine = [change for change in changes(world) if change == {"scores": "cosine", "temperature": 0.07}]
    assert len(cosine) == 1


def test_each_trial_after_the_default_carries_a_hypothesis_with_a_reason() -> None:
    world = World(trials_max=10)
    while not world.over:
        action = Engineer(0).act(world.situation)
        if isinstance(action, RunTrial) and world.trials:
            assert action.hypothesis and action.hypothesis["size"] > 0 and action.hypothesis["reason"]
            assert action.hypothesis["dimension"] in {knob.dimension for knob in world.space.entries}
        world.act(action)


def test_the_smooth_surface_peaks_where_its_docstring_says() -> None:
    peak = TrialConfig(backbone="sasrec", lr=1e-3, dropout=0.35, transition_weight=8, loss="full_softmax")
    assert smooth(peak) == pytest.approx(0.059)
