"""Checks of reflections and rules against measured differences, parsing of conditions, and effects of knobs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtualmle.data.errors import ConfigError, SessionError
from virtualmle.memory.records import Sweep, TrialOutcome, TrialRecord
from virtualmle.models.config import make_config
from virtualmle.sandbox.action_space import ActionSpace
from virtualmle.sandbox.conditions import parse_condition
from virtualmle.sandbox.protocol import load_protocol
from virtualmle.sandbox.reflection import Claim, check_reflection, dimensions_of, needs_reflection
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
        ("no", 0.5, "supported"),  # the change did not help measurably
        ("no", -0.11, "supported"),
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


def test_the_note_says_that_no_effect_is_true_within_noise() -> None:
    found, note = check(trial(2, {"lr": 1e-3}, delta=-0.00011), "no")
    assert found == "supported" and "(z = -0.11); within noise: no effect, neither gain nor loss" in note


def test_within_noise_the_note_suggests_other_claims() -> None:
    note = check(trial(2, {"lr": 1e-3}, delta=0.0001), "yes")[1]
    assert "within noise, so helped='no' or 'unclear' would be right" in note


@pytest.mark.parametrize(("helped", "expected"), [("yes", "contradicted"), ("no", "supported")])
def test_a_crash_contradicts_the_claim_that_the_change_helped(helped: str, expected: str) -> None:
    crashed = trial(2, {"lr": 1e-3}, status="crashed", verdict="crash", cause="the loss is NaN in epoch 2")
    found, note = check(crashed, helped)
    assert found == expected and note.startswith("t002 crashed: the loss is NaN in epoch 2; ")


def test_without_a_paired_difference_only_unclear_is_supported() -> None:
    note = "t001 has no paired difference against its base default"
    for helped, expected in (("unclear", "supported"), ("yes", "unsupported"), ("no", "unsupported")):
        found, text = check(FIRST, helped)  # the unchanged default has no effect to claim
        assert found == expected and text.startswith(note)
    unmeasured = trial(2, {"lr": 1e-3})  # the default was never run
    assert check(unmeasured, "unclear")[0] == "supported" and check(unmeasured, "no")[0] == "unsupported"


def test_a_claim_about_an_unchanged_dimension_is_unsupported() -> None:
    record = trial(2, {"lr": 1e-3}, delta=0.005)
    found, note = check(record, "yes", "capacity")
    assert found == "unsupported"
    assert "no knob of dimension capacity was changed, only lr (optimisation)" in note
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
        pytest.param(0.0058, "supported", id="inside the interval"),
        pytest.param(0.0062, "contradicted", id="outside the interval"),
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
    assert ("is claimed, +0.0050 ± 0.0005 recorded (95 %: +0.0040 to +0.0060)" in note) is (expected == "contradicted")


def test_a_size_rounded_to_one_digit_is_the_recorded_one() -> None:
    record = trial(2, {"lr": 1e-3}, delta=0.01499, se=0.0005)
    assert check_reflection(record, Claim("yes", "optimisation", 0.01), [FIRST, record], SPACE)[0] == "supported"
    assert check_reflection(record, Claim("yes", "optimisation", 0.011), [FIRST, record], SPACE)[0] == "contradicted"


@pytest.mark.parametrize(
    ("changes", "delta", "doubt"),
    [
        pytest.param({"lr": 2e-3}, 0.004, None, id="same direction, same outcome"),
        pytest.param({"lr": 1e-4}, -0.004, None, id="opposite direction, opposite outcome"),
        pytest.param({"lr": 1e-4}, 0.004, None, id="opposite direction, same outcome: both may be better"),
        pytest.param({"lr": 2e-3}, 0.0002, None, id="within noise"),
        pytest.param({"lr": 2e-3}, -0.004, "t003 is cited but shows the opposite", id="opposite outcome"),
        pytest.param({"dropout": 0.4}, -0.004, None, id="another knob, cited for comparison"),
        pytest.param({"lr": 2e-3, "dropout": 0.4}, -0.004, None, id="another knob may explain the loss"),
        pytest.param({"lr": 2e-3, "epochs": 40}, -0.004, "t003 is cited but shows the opposite", id="more epochs"),
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


def test_several_dimensions_may_explain_a_joint_change_and_each_needs_a_changed_knob() -> None:
    record = trial(2, {"lr": 1e-3, "dropout": 0.4}, delta=0.005)
    assert check(record, "yes", "regularisation,optimisation")[0] == "supported"
    found, note = check(record, "yes", "optimisation, capacity")
    assert found == "unsupported" and "no knob of dimension capacity was changed" in note
    assert dimensions_of(" capacity ,optimisation,capacity") == ("capacity", "optimisation")
    for wrong in ("capacity, luck", "", " , "):
        with pytest.raises(ConfigError, match="is unknown; choose one of optimisation"):
            dimensions_of(wrong)


def test_raised_epochs_and_patience_do_not_explain_a_result() -> None:
    record = trial(2, {"dropout": 0.4, "epochs": 40, "patience": 6}, delta=0.005)
    assert check(record, "yes", "regularisation")[0] == "supported"
    found, note = check(record, "yes", "optimisation")
    assert found == "unsupported" and note.count("only dropout (regularisation)") == 1
    alone = trial(2, {"epochs": 40}, delta=0.005)  # as the only change, it is what was tested
    assert check(alone, "yes", "optimisation")[0] == "supported"


def with_ndcg(record: TrialRecord, ndcg: float, **details: Any) -> TrialRecord:
    assert record.outcome
    outcome = record.outcome.model_copy(update={"metrics": {"ndcg@10": ndcg}, "details": details})
    return record.model_copy(update={"outcome": outcome})


RECORDED = [
    with_ndcg(FIRST, 0.0561, model_ndcg10=0.0561, train_ndcg10=0.3912),
    with_ndcg(trial(2, {"lr": 1e-3}, delta=0.00473), 0.06083, model_ndcg10=0.06083, train_ndcg10=0.41),
]


@pytest.mark.parametrize(
    "lesson",
    [
        "Raising lr from 0.0003 to 0.001 helped: NDCG@10 from .0561 to .0608 (+.0047).",
        "NDCG@10 is 0.06083 and +0.00473 ± 0.00100 over the default; train NDCG .410 shows memorising.",
        "lr=0.001 over t001: NDCG@10 +0.00473 ± 0.00077 (z +6.1), it helped.",
        "It gains +0.0047 over t001, while t001 was -0.0047 below t002.",
        "The gap of train and validation is +0.3492. NDCG rose by 8.4%, or +8.432 %.",
        "Larger steps help. Next, dropout .425 and weight decay 0.001.",
    ],
)
def test_figures_that_the_records_bear_out_raise_no_doubt(lesson: str) -> None:
    claim = Claim("yes", "optimisation", None, (), lesson)
    found, note = check_reflection(RECORDED[1], claim, RECORDED, SPACE)
    assert (found, "the lesson names" in note) == ("supported", False)


@pytest.mark.parametrize(
    ("lesson", "doubt"),
    [
        ("NDCG@10 rose to .0712.", "the lesson names NDCG@10 .0712, recorded for t002 is 0.06083"),
        ("I expect +0.0100 from larger steps.", "a change of +0.0100, recorded for t002 is +0.00473 ± 0.00100 against"),
        ("The loss of −0.0047 was large.", "the lesson names a change of −0.0047, recorded for t002 is +0.00473"),
        ("As in t009, larger steps help.", "the lesson names t009, which is no trial of this session"),
    ],
)
def test_figures_that_no_record_bears_out_are_named_with_the_recorded_ones(lesson: str, doubt: str) -> None:
    claim = Claim("yes", "optimisation", None, (), lesson)
    found, note = check_reflection(RECORDED[1], claim, RECORDED, SPACE)
    assert found == "unsupported" and doubt in note


def test_the_note_lists_what_was_checked_because_a_text_cannot_be() -> None:
    bare = check(RECORDED[1], "yes")[1]
    assert bare.endswith("checked: direction, dimension, 1 cited trial")
    full = Claim("yes", "optimisation", 0.005, (), "It gains +0.0047, as I knew before the trial ran.")
    assert check_reflection(RECORDED[1], full, RECORDED, SPACE)[1].endswith(
        "checked: direction, dimension, size, figures in the lesson"
    )


@pytest.mark.parametrize(
    ("rescored", "z", "verdict", "settings", "needed"),
    [
        pytest.param(True, 0.4, "discard", 1, False, id="re-scoring within noise"),
        pytest.param(True, -0.9, "discard", 1, False, id="re-scoring slightly worse"),
        pytest.param(True, 1.2, "keep", 1, True, id="kept"),
        pytest.param(True, 0.4, "keep", 1, True, id="kept as simpler"),
        pytest.param(True, -1.5, "discard", 1, True, id="clearly worse"),
        pytest.param(True, None, "discard", 1, True, id="nothing to compare with"),
        pytest.param(False, 0.4, "discard", 1, True, id="trained"),
        pytest.param(True, 2.5, "discard", 24, False, id="the best of 24 settings gains by chance"),
        pytest.param(True, 4.0, "discard", 24, True, id="more than chance"),
    ],
)
def test_a_rescoring_within_noise_needs_no_reflection(
    rescored: bool, z: float | None, verdict: str, settings: int, needed: bool
) -> None:
    record = trial(2, {"transition_weight": 4.0}, None if z is None else z / 1000, verdict=verdict,
                   details={"rescored": rescored})  # fmt: skip
    if settings > 1:
        values = [{"transition_weight": float(n)} for n in range(settings)]
        record = record.model_copy(update={"sweep": Sweep(settings=values)})
    assert needs_reflection(record, keep_z=1.0) is needed
    assert not needs_reflection(record.model_copy(update={"reflected": True}), keep_z=1.0)


def test_the_best_of_many_settings_is_within_noise_up_to_the_inflation_of_choosing_it() -> None:
    swept = trial(2, {"transition_weight": 4.0}, 0.0025).model_copy(
        update={"sweep": Sweep(settings=[{"transition_weight": float(n)} for n in range(24)])}
    )
    assert check(swept, "yes", "scoring")[0] == "unsupported" and check(swept, "no", "scoring")[0] == "supported"


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
        ("causal is false", "operators are ==, !=, <, <=, >, >= and in; write e.g. .*'causal == false'"),
        ("learning_rate > 0.001", "'learning_rate' is not a knob; did you mean lr?"),
        ("learning rate > 0.001", "is not KNOB OPERATOR VALUE .did you mean lr"),
        ("dropout > 0.3 and lr < 0.01", "names dropout and lr; state a rule for each"),
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
