"""Reflections, rules and summaries state what was measured and nothing else."""

from dataclasses import replace
from typing import Any

import pytest

from tests.agents_world import World
from virtualmle.agents.base import Situation
from virtualmle.agents.engineer import Engineer
from virtualmle.agents.reflecting import reflect_on, summarise
from virtualmle.agents.required import close
from virtualmle.sandbox.conditions import parse_condition


def situation_with(
    changes: dict[str, Any], z: float | None, *, earlier: dict[str, Any] | None = None, reflection: bool = True
) -> Situation:
    """The default, optionally an earlier trial with z = 3, and a last trial with these changes and this z."""
    rows = [_row("t001", {}, None)]
    if earlier:
        rows.append(_row("t002", earlier, 3.0))
    rows.append(_row(f"t{len(rows) + 1:03d}", changes, z))
    world = World()
    world.trials, world.incumbent, world.reflection = rows, "t001", reflection
    return world.situation


def _row(handle: str, changes: dict[str, Any], z: float | None) -> dict[str, Any]:
    return {
        "trial": handle, "number": int(handle[1:]), "base": "default", "changes": changes, "settings": changes,
        "status": "finished", "verdict": "discard", "metrics": {"ndcg@10": 0.05}, "reflected": False,
        "base_delta": None if z is None else z * 0.001, "base_delta_se": None if z is None else 0.001,
    }  # fmt: skip


@pytest.mark.parametrize(("z", "helped"), [(1.0, "yes"), (0.99, "unclear"), (0.0, "unclear"), (-1.0, "no")])
def test_a_change_helped_or_hurt_from_one_standard_error_on(z: float, helped: str) -> None:
    assert reflect_on(situation_with({"lr": 0.001}, z), "t002").helped == helped


def test_without_a_comparison_nothing_is_claimed() -> None:
    reflection = reflect_on(situation_with({}, None), "t001")
    assert (reflection.helped, reflection.rule) == ("unclear", None)


def test_the_dimension_is_that_of_the_changed_knob() -> None:
    assert reflect_on(situation_with({"transition_weight": 8.0}, 2.0), "t002").dimension == "scoring"


def test_a_lesson_contains_the_figures_and_cites_the_trial_as_evidence() -> None:
    reflection = reflect_on(situation_with({"lr": 0.001}, 2.5), "t002")
    assert "+0.00250 ± 0.00100 (z +2.5)" in reflection.lesson
    assert reflection.evidence == ("t002",)


def test_changes_of_several_knobs_are_reported_as_confounded_and_give_no_rule() -> None:
    reflection = reflect_on(situation_with({"lr": 0.001, "dropout": 0.5}, 9.0), "t002")
    assert "individual effects are not known" in reflection.lesson and reflection.rule is None


@pytest.mark.parametrize(
    ("changes", "z", "kind", "condition"),
    [
        pytest.param({"lr": 0.001}, 2.0, "prefer", "lr >= 0.001", id="up helped"),
        pytest.param({"lr": 0.0001}, 2.0, "prefer", "lr <= 0.0001", id="down helped"),
        pytest.param({"dropout": 0.5}, -2.0, "avoid", "dropout >= 0.5", id="up hurt"),
        pytest.param({"loss": "full_softmax"}, 3.0, "prefer", "loss == full_softmax", id="choice"),
        pytest.param({"tie_embeddings": True}, -3.0, "avoid", "tie_embeddings == true", id="boolean"),
    ],
)
def test_a_clear_effect_becomes_a_rule_with_a_condition_that_parses(
    changes: dict[str, Any], z: float, kind: str, condition: str
) -> None:
    rule = reflect_on(situation_with(changes, z), "t002").rule
    assert rule is not None
    assert (rule.kind, rule.condition) == (kind, condition)
    assert str(parse_condition(rule.condition or "")) == condition


def test_an_effect_below_two_standard_errors_gives_no_rule() -> None:
    assert reflect_on(situation_with({"lr": 0.001}, 1.9), "t002").rule is None


def test_the_same_claim_is_not_made_twice() -> None:
    assert reflect_on(situation_with({"lr": 0.002}, 3.0, earlier={"lr": 0.001}), "t003").rule is None
    assert reflect_on(situation_with({"lr": 0.002}, -3.0, earlier={"lr": 0.001}), "t003").rule is not None


def test_the_summary_lists_what_helped_what_hurt_and_what_made_no_difference() -> None:
    summary = summarise(World(trials_max=25).play(Engineer(0)).situation)
    helped, rest = summary.split("Helped: ")[1].split("Hurt: ")
    hurt, nothing = rest.split("Made no measurable difference: ")
    assert "transition_weight 0.0→8.0" in helped and "lr 0.001→" in hurt and "hidden_dim 128→256" in nothing
    assert "from 0.04862 for the plain default" in summary


def test_finalize_adds_rules_only_if_reflections_are_off() -> None:
    assert not close(situation_with({"lr": 0.001}, 3.0)).rules
    rules = close(situation_with({"lr": 0.001}, 3.0, reflection=False)).rules
    assert [rule.condition for rule in rules] == ["lr >= 0.001"]


def test_the_summary_of_a_session_in_which_nothing_finished_says_so() -> None:
    world = World(lambda _: float("nan"), trials_max=2).play(Engineer(0))
    assert world.over and "None of 2 trials finished" in world.over.summary


def climbing(*zs: float) -> Situation:
    """The default, then one trial per z with an increasing lr, each over the default."""
    rows = [_row("t001", {}, None)]
    rows += [_row(f"t{i:03d}", {"lr": round(3e-4 * i, 6)}, z) for i, z in enumerate(zs, 2)]
    world = World()
    world.trials, world.incumbent = rows, "t001"
    return world.situation


def test_a_rule_is_written_when_the_pooled_effect_of_several_steps_is_clear() -> None:
    situation = climbing(1.6, 1.6)
    assert reflect_on(situation, "t002").rule is None
    reflection = reflect_on(situation, "t003")
    assert reflection.rule is not None and reflection.rule.kind == "prefer"
    assert (reflection.rule.condition, reflection.rule.evidence) == ("lr >= 0.0006", ["t002", "t003"])
    assert "Pooled over 2 trials, raising lr" in reflection.rule.statement and "(z +2.3)" in reflection.rule.statement


def test_steps_with_different_signs_give_no_pooled_rule() -> None:
    assert reflect_on(climbing(-0.2, 1.9, 1.9), "t004").rule is None


def test_a_pooled_rule_is_stated_once() -> None:
    assert reflect_on(climbing(1.6, 1.6, 1.6), "t004").rule is None


def test_a_lesson_pools_the_earlier_steps_in_the_same_direction_and_cites_those_that_agree() -> None:
    reflection = reflect_on(climbing(1.5, 0.2, 1.5), "t004")
    assert "Pooled over 3 trials, raising lr: +2.2% ± 1.2% (z +1.8)." in reflection.lesson
    assert reflection.evidence == ("t002", "t004")


def test_a_noticeable_effect_is_claimed_and_its_cause_compared_with_the_outcome() -> None:
    hurt = reflect_on(situation_with({"lr": 0.001}, -2.0), "t002")
    assert hurt.effect == pytest.approx(-0.002) and "contradicts it" in hurt.cause
    faint = reflect_on(situation_with({"lr": 0.001}, 0.5), "t002")
    assert faint.effect is None and "smaller than the noise" in faint.cause
    assert reflect_on(situation_with({"beta1": 0.5}, 2.0), "t002").cause == ""


def test_the_summary_lists_the_kept_changes_in_order() -> None:
    summary = summarise(World(trials_max=10).play(Engineer(0)).situation)
    kept = summary.split("Kept in this order: ")[1].split(". ")[0].split("; ")
    assert [step.split("=")[0] for step in kept] == ["lr", "transition_weight"]


@pytest.mark.parametrize(
    ("changes", "z", "expected"),
    [
        ({"lr": 0.001}, -2.0, "Keep the base's value of lr, or try the other direction of lr."),
        ({"loss": "full_softmax"}, -2.0, "Keep the base's value of loss."),
        ({"tie_embeddings": True}, -2.0, "Keep the base's value of tie_embeddings."),
        ({"loss": "bce", "lr": 0.001}, -2.0, "Keep the base's value of loss, lr, or try the other direction of lr."),
        ({"lr": 0.001}, 2.0, "Keep it, and go further in the same direction with lr."),
        ({"loss": "full_softmax"}, 2.0, "Keep it."),
    ],
)  # fmt: skip
def test_only_numbers_have_another_direction_to_try(changes: dict[str, Any], z: float, expected: str) -> None:
    assert reflect_on(situation_with(changes, z), "t002").next_step == expected


def test_the_summary_counts_the_knobs_that_were_never_tried_instead_of_listing_them() -> None:
    situation = situation_with({"lr": 0.001}, 2.0)
    untried = {"optimisation": ["epochs", "batch_size"], "sequence_modelling": ["position"]}
    situation = replace(situation, state=situation.state.model_copy(update={"untried": untried}))
    text = summarise(situation)
    assert "Never tried: 3 knobs (2 of optimisation, 1 of sequence modelling)." in text
    assert "batch_size" not in text
