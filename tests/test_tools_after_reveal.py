"""What long-term memory takes after a look at the test set: rules on values that were tried, in the server's words."""

from typing import Any

import pytest

from virtualmle.memory.records import RuleRecord, TrialOutcome, TrialRecord
from virtualmle.models.config import make_config
from virtualmle.sandbox.conditions import parse_condition
from virtualmle.tools.after_reveal import on_tried_values, passed_on


def a_trial(number: int, **knobs: Any) -> TrialRecord:
    outcome = TrialOutcome(status="finished", metrics={"ndcg@10": 0.1}, base_delta=0.0123, base_delta_se=0.001)
    config = make_config("sasrec", **knobs).model_dump()
    return TrialRecord(
        session="s", handle=f"t{number:03}", number=number, base="default", changes=knobs, config=config,
        config_hash="c", train_hash="t", status="finished", outcome=outcome,
    )  # fmt: skip


TRIALS = [a_trial(1, dropout=0.2), a_trial(2, dropout=0.3, position="absolute"), a_trial(3, dropout=0.5)]


@pytest.mark.parametrize(
    ("stated", "passed"),
    [
        ("dropout >= 0.4242", "dropout >= 0.5"),
        ("dropout > 0.2424", "dropout >= 0.3"),
        ("dropout <= 0.4242", "dropout <= 0.3"),
        ("dropout < 0.4242", "dropout <= 0.3"),
        ("dropout == 0.3", "dropout == 0.3"),
        ("dropout == 0.4242", None),
        ("dropout != 0.4242", None),
        ("dropout in {0.3, 0.4242}", "dropout in {0.3}"),
        ("dropout in {0.42, 0.4242}", None),
        ("dropout > 0.9", None),
        ("position == absolute", "position == absolute"),
    ],
)
def test_a_condition_is_passed_on_with_values_that_were_tried(stated: str, passed: str | None) -> None:
    given = parse_condition(stated)
    condition = on_tried_values(given, TRIALS)
    assert (str(condition) if condition else None) == passed
    if condition:
        assert [condition.matches(t.config) for t in TRIALS] == [given.matches(t.config) for t in TRIALS]


def test_a_supported_rule_is_passed_on_in_the_words_of_the_server() -> None:
    stated = RuleRecord(kind="prefer", statement="the test said 0.4242", condition="dropout >= 0.4242",
                        check="supported", support=1, evidence=["t003"])  # fmt: skip
    rule = passed_on(stated, TRIALS)
    assert rule is not None and (rule.condition, rule.support) == ("dropout >= 0.5", 1)
    assert rule.statement == "prefer dropout >= 0.5: validation NDCG@10 +0.01230 ± 0.00100 (t003 over default)"


@pytest.mark.parametrize("changed", [{"check": "unverified"}, {"check": "contradicted"}, {"condition": None}])
def test_other_rules_are_not_passed_on(changed: dict[str, Any]) -> None:
    stated = RuleRecord(kind="prefer", statement="words", condition="dropout >= 0.3", check="supported")
    assert passed_on(stated.model_copy(update=changed), TRIALS) is None
