"""Checks of reflections and rules against measured differences, parsing of conditions, and effects of knobs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtualmle.data.errors import ConfigError, SessionError
from virtualmle.memory.records import TrialOutcome, TrialRecord
from virtualmle.models.config import make_config
from virtualmle.sandbox.action_space import ActionSpace
from virtualmle.sandbox.conditions import parse_condition
from virtualmle.sandbox.protocol import load_protocol
from virtualmle.sandbox.reflection import Claim, check_reflection
from virtualmle.sandbox.rule_evidence import check_rule

SPACE: ActionSpace = load_protocol().space
DEFAULT = make_config("sasrec")


def trial(
    number: int, changes: dict[str, Any], delta: float | None = None, se: float | None = 0.001, **more: Any
) -> TrialRecord:
    """A trial over the default (or `base`, a record) that differs from its base by `delta` ± `se`."""
    base: TrialRecord | None = more.pop("base", None)
    status = more.pop("status", "finished")
    outcome = TrialOutcome(
        status=status, base_delta=delta, base_delta_se=None if delta is None else se, **more
    )
    return TrialRecord(
        session="demo-sasrec-1",
        handle=f"t{number:03}",
        number=number,
        base=base.handle if base else "default",
        changes=changes,
        config={**(base.config if base else DEFAULT.model_dump()), **changes},
        config_hash="",
        train_hash="",
        status=status,
        outcome=outcome,
    )


FIRST = trial(1, {})


def check(record: TrialRecord, helped: Any, dimension: str = "optimisation") -> tuple[str, str]:
    return check_reflection(record, Claim(helped, dimension, None, [record.handle]), [FIRST, record], SPACE)


@pytest.mark.parametrize(
    ("helped", "z", "expected"),
    [
        ("yes", 1.5, "supported"),
        ("yes", 0.5, "unsupported"),
        ("yes", -1.5, "contradicted"),
        ("no", -1.5, "supported"),
        ("no", 0.5, "unsupported"),
        ("no", 1.5, "contradicted"),
        ("unclear", 0.5, "supported"),
        ("unclear", -1.5, "unsupported"),
        ("unclear", 3.0, "contradicted"),
        ("unclear", -3.0, "contradicted"),
    ],
)
def test_a_claim_is_checked_against_the_paired_difference(helped: str, z: float, expected: str) -> None:
    found, note = check(trial(2, {"lr": 1e-3}, delta=z * 0.001), helped)
    assert found == expected
    assert f"against its base default: {z * 0.001:+.4f} ± 0.0010 (z = {z:+.2f})" in note


def test_within_noise_the_note_suggests_unclear() -> None:
    note = check(trial(2, {"lr": 1e-3}, delta=0.0001), "yes")[1]
    assert note.endswith("within noise, so helped='unclear' would be right")


@pytest.mark.parametrize(("helped", "expected"), [("yes", "contradicted"), ("no", "supported")])
def test_a_crash_contradicts_the_claim_that_the_change_helped(helped: str, expected: str) -> None:
    crashed = trial(2, {"lr": 1e-3}, status="crashed", verdict="crash", cause="the loss is NaN in epoch 2")
    assert check(crashed, helped) == (expected, "t002 crashed: the loss is NaN in epoch 2")


def test_without_a_paired_difference_only_unclear_is_supported() -> None:
    note = "t001 has no paired difference against its base default"
    assert check(FIRST, "unclear") == ("supported", note)  # the unchanged default has no effect to claim
    assert check(FIRST, "yes") == ("unsupported", note)


def test_a_claim_about_an_unchanged_dimension_is_unsupported() -> None:
    record = trial(2, {"lr": 1e-3}, delta=0.005)
    found, note = check(record, "yes", "capacity")
    assert found == "unsupported"
    assert note.endswith("no knob of dimension capacity was changed, only lr (optimisation)")
    assert check(record, "no", "capacity")[0] == "contradicted"


def test_a_change_to_the_value_of_the_base_does_not_count_as_a_change() -> None:
    record = trial(2, {"lr": 1e-3, "hidden_dim": 128}, delta=0.005)
    assert "only lr (optimisation)" in check(record, "yes", "capacity")[1]


def test_unknown_dimensions_unknown_evidence_and_running_trials_are_refused() -> None:
    record = trial(2, {"lr": 1e-3}, delta=0.005)
    with pytest.raises(ConfigError, match="dimension='luck' is unknown; choose one of optimisation"):
        check(record, "yes", "luck")
    with pytest.raises(SessionError, match=r"evidence 't009' names no trial of this session"):
        check_reflection(record, Claim("yes", "optimisation", None, ["t001", "t009"]), [FIRST, record], SPACE)
    running = record.model_copy(update={"status": "running", "outcome": None})
    with pytest.raises(SessionError, match="t002 is running: there is no result to reflect on yet"):
        check(running, "yes")


@pytest.mark.parametrize(
    ("claimed", "expected"),
    [
        pytest.param(0.005, "supported", id="the recorded size"),
        pytest.param(0.0062, "supported", id="within a quarter"),
        pytest.param(0.0, "contradicted", id="zero"),
        pytest.param(-0.005, "contradicted", id="the opposite sign"),
        pytest.param(0.05, "contradicted", id="ten times as large"),
    ],
)
def test_a_claimed_effect_must_have_the_recorded_sign_and_size(claimed: float, expected: str) -> None:
    record = trial(2, {"lr": 1e-3}, delta=0.005, se=0.0005)
    claim = Claim("yes", "optimisation", claimed)
    found, note = check_reflection(record, claim, [FIRST, record], SPACE)
    assert found == expected
    assert ("is claimed, +0.0050 ± 0.0005 recorded" in note) is (expected == "contradicted")


@pytest.mark.parametrize(
    ("changes", "delta", "doubt"),
    [
        pytest.param({"lr": 2e-3}, 0.004, None, id="same direction, same outcome"),
        pytest.param({"lr": 1e-4}, -0.004, None, id="opposite direction, opposite outcome"),
        pytest.param({"lr": 2e-3}, 0.0002, None, id="within noise"),
        pytest.param({"lr": 2e-3}, -0.004, "t003 is cited but shows the opposite", id="opposite outcome"),
        pytest.param({"dropout": 0.4}, 0.004, "t003 is cited but changed none of lr", id="another knob"),
    ],
)
def test_cited_trials_must_show_the_claimed_effect(
    changes: dict[str, Any], delta: float, doubt: str | None
) -> None:
    record, cited = trial(2, {"lr": 1e-3}, delta=0.005), trial(3, changes, delta)
    claim = Claim("yes", "optimisation", None, ["t001", "t002", "t003"])
    found, note = check_reflection(record, claim, [FIRST, record, cited], SPACE)
    assert found == ("unsupported" if doubt else "supported")
    assert doubt is None or doubt in note


WIDE = "hidden_dim > 128"


def test_avoid_rules_are_supported_by_losses_and_prefer_rules_by_gains() -> None:
    trials = [FIRST, trial(2, {"hidden_dim": 256}, -0.002), trial(3, {"hidden_dim": 192}, -0.003)]
    avoid, prefer = check_rule("avoid", WIDE, trials), check_rule("prefer", WIDE, trials)
    assert avoid[:3] == ("supported", 2, 0)
    assert prefer[:3] == ("contradicted", 0, 2)
    assert "2 trials made 'hidden_dim > 128' true" in avoid.note and "'t002', 't003'" in avoid.note


def test_rules_ignore_noise_and_trials_whose_base_already_satisfied_the_condition() -> None:
    wide = trial(2, {"hidden_dim": 256}, 0.0001)
    deeper = trial(3, {"num_blocks": 2}, -0.005, base=wide)
    narrow = trial(4, {"hidden_dim": 64}, -0.005)
    assert check_rule("avoid", WIDE, [FIRST, wide, deeper, narrow])[:3] == ("unverified", 0, 0)


def test_equal_counts_for_and_against_leave_a_rule_unverified() -> None:
    trials = [FIRST, trial(2, {"hidden_dim": 256}, -0.002), trial(3, {"hidden_dim": 192}, 0.002)]
    assert check_rule("avoid", WIDE, trials)[:3] == ("unverified", 1, 1)


def test_trials_with_several_changes_count_only_for_a_knob_that_is_invalid_without_the_others() -> None:
    trials = [FIRST, trial(2, {"hidden_dim": 256}, -0.002), trial(3, {"hidden_dim": 256, "lr": 1e-3}, 0.002)]
    checked = check_rule("avoid", WIDE, trials)
    assert checked[:3] == ("supported", 1, 0)
    assert "1 more changed other knobs too" in checked.note and checked.note.endswith("the shares: none")
    joint = trial(2, {"causal": False, "supervision": "last"}, -0.002)  # causal=False needs supervision="last"
    assert check_rule("avoid", "causal == false", [FIRST, joint])[:3] == ("supported", 1, 0)
    assert check_rule("avoid", "supervision == last", [FIRST, joint])[:3] == ("unverified", 0, 0)


def test_insights_and_rules_without_a_condition_are_unverified() -> None:
    trials = [FIRST, trial(2, {"hidden_dim": 256}, -0.002)]
    assert check_rule("insight", WIDE, trials)[:3] == ("unverified", 0, 0)
    assert check_rule("avoid", None, trials)[:3] == ("unverified", 0, 0)


def test_the_default_can_be_given_if_no_trial_ran_it_unchanged() -> None:
    record = trial(2, {"hidden_dim": 256}, -0.002)
    assert check_rule("avoid", WIDE, [record]).support == 0
    assert check_rule("avoid", WIDE, [record], DEFAULT).support == 1


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("hidden_dim > 128", {"hidden_dim": 129}, True),
        ("hidden_dim > 128", {"hidden_dim": 128}, False),
        ("hidden_dim>=128", {"hidden_dim": 128}, True),
        ("lr < 1e-4", {"lr": 5e-5}, True),
        ("lr <= 0.001", {"lr": 0.001}, True),
        ("dropout == 0.2", {"dropout": 0.2}, True),
        ("dropout != 0.2", {"dropout": 0.2}, False),
        ("causal == false", {"causal": False, "supervision": "last"}, True),
        ("position in {absolute, both}", {"position": "both"}, True),
        ("position in {absolute, both}", {"position": "none"}, False),
        ("scores == 'cosine'", {"scores": "cosine"}, True),
        ("num_blocks in {2,4}", {"num_blocks": 4}, True),
    ],
)
def test_conditions_match_configurations(text: str, settings: dict[str, Any], expected: bool) -> None:
    config = make_config("sasrec", **settings)
    assert parse_condition(text).matches(config) is expected
    assert parse_condition(text).matches(config.model_dump()) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not KNOB OPERATOR VALUE"),
        ("hidden_dim", "is not KNOB OPERATOR VALUE"),
        ("hidden_dim => 3", "is not KNOB OPERATOR VALUE"),
        ("32 < hidden_dim < 64", "is not KNOB OPERATOR VALUE"),
        ("__import__('os') == 1", "is not KNOB OPERATOR VALUE"),
        ("warmup > 3", "'warmup' is not a knob"),
        ("seed == 3", "seeds belong to the server"),
        ("backbone == hstu", "a session tunes one backbone"),
        ("hidden_dim > wide", "'wide' is not a finite number"),
        ("lr < nan", "'nan' is not a finite number"),
        ("position > both", "the values of position have no order"),
        ("causal >= true", "the values of causal have no order"),
        ("causal == 1", "'1' is not one of its values"),
        ("ffn == tanh", "'tanh' is not one of its values; choose from"),
        ("position in {}", "'' is not one of its values"),
        ("lr > " + "0" * 300, "at most 300 characters"),
    ],
)
def test_invalid_conditions_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_condition(text)


@given(
    knob=st.sampled_from(["lr", "dropout", "hidden_dim"]),
    operator=st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
    value=st.floats(-1e6, 1e6) | st.integers(-1000, 1000),
)
def test_the_canonical_text_of_a_condition_parses_to_itself(knob: str, operator: str, value: float) -> None:
    condition = parse_condition(f"{knob} {operator} {value!r}")
    assert parse_condition(str(condition)) == condition


def test_the_canonical_text_has_no_extra_spaces_quotes_or_duplicates() -> None:
    assert str(parse_condition("  position   in {both,'absolute', both}")) == "position in {both, absolute}"
    assert str(parse_condition("causal==True")) == "causal == true"
