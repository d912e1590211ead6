"""Rules that speak against each other on a common value are read from the other end of their trials."""

from pathlib import Path
from typing import Any

import pytest

from tests.effects_world import DEFAULT, FIRST, NDCG, trial
from virtualmle.memory.records import SessionRecord, TrialRecord
from virtualmle.sandbox.conditions import parse_condition
from virtualmle.sandbox.protocol import load_protocol
from virtualmle.sandbox.reconciling import Claimed, reconciled
from virtualmle.sandbox.rule_evidence import check_rule, moves_of
from virtualmle.tools.workspace import Workspace
from virtualmle.tools.write_reflection import RuleInput, prepare_rule

KNOB = "transition_weight"


def claim(text: str) -> Claimed:
    kind, condition = text.split(" ", 1)
    return Claimed(kind, parse_condition(condition))  # type: ignore[arg-type]


def weights(*steps: tuple[float, float, float]) -> list[TrialRecord]:
    """The default, and for each step a trial at the weight `before` and one that changes it to `after`."""
    trials = [FIRST]
    for before, after, delta in steps:
        base = None if before == 0 else trial(len(trials) + 1, {KNOB: before})
        trials += [base] if base else []
        trials.append(trial(len(trials) + 1, {KNOB: after}, NDCG + delta, 0.001, base=base))
    return trials


def result(rule: str, supported: list[str], trials: list[TrialRecord]) -> str:
    return str(reconciled(claim(rule), [claim(text) for text in supported], moves_of(trials, DEFAULT)))


@pytest.mark.parametrize(
    ("rule", "supported", "steps", "expected"),
    [
        pytest.param("avoid {} <= 8", "prefer {} >= 8", [(0, 8, 0.01), (16, 8, -0.01)], "prefer {} >= 16", id="down"),
        pytest.param("prefer {} >= 8", "avoid {} <= 8", [(16, 8, -0.01), (0, 8, 0.01)], "avoid {} <= 0", id="up"),
        pytest.param("avoid {} <= 8", "prefer {} >= 2", [(16, 8, -0.01), (12, 6, -0.01)], "prefer {} >= 12",
                     id="the nearest of several bases"),
        pytest.param("avoid {} <= 8", "prefer {} >= 4", [(0, 8, 0.01)], "avoid {} < 4", id="no trial supports it"),
        pytest.param("avoid {} <= 8", "prefer {} >= 16", [(16, 8, -0.01)], "avoid {} <= 8", id="no common value"),
        pytest.param("avoid {} >= 64", "prefer {} >= 8", [(8, 64, -0.01)], "avoid {} >= 64", id="same direction"),
        pytest.param("avoid {} < 8", "prefer {} >= 8", [(16, 4, -0.01)], "avoid {} < 8", id="an open end"),
    ],
)  # fmt: skip
def test_no_value_is_preferred_and_avoided(
    rule: str, supported: str, steps: list[tuple[float, float, float]], expected: str
) -> None:
    found = result(rule.format(KNOB), [supported.format(KNOB)], weights(*steps))
    assert found == str(claim(expected.format(KNOB)))


def test_choices_and_other_knobs_never_conflict() -> None:
    trials = weights((0, 8, 0.01))
    assert result("avoid position == none", ["prefer position == none"], trials) == "avoid position == none"
    assert result(f"avoid {KNOB} <= 8", ["prefer lr >= 0.001"], trials) == f"avoid {KNOB} <= 8.0"


def test_a_trial_that_leaves_the_condition_counts_the_other_way_round() -> None:
    trials = weights((16, 8, -0.01), (0, 8, 0.01))
    assert check_rule("prefer", f"{KNOB} >= 16", trials, DEFAULT)[:3] == ("supported", 1, 0)
    assert check_rule("avoid", f"{KNOB} >= 16", trials, DEFAULT)[:3] == ("contradicted", 0, 1)
    assert check_rule("prefer", f"{KNOB} >= 8", trials, DEFAULT)[:3] == ("supported", 1, 0)


def test_a_contradicting_rule_is_stored_from_its_other_end_and_keeps_its_words(tmp_path: Path) -> None:
    ws = Workspace.open(tmp_path)
    page = load_protocol()
    fields: dict[str, Any] = {"dataset": "shop", "dataset_id": "1", "backbone": "sasrec", "profile": {}}
    limits: dict[str, Any] = {"max_trials": 9, "max_train_seconds": 9}
    record = SessionRecord(id="", protocol_hash=page.sha256, protocol_text=page.text, **limits, **fields)
    session = ws.memory.sessions.open(record)
    trials = weights((0, 8, 0.01), (16, 8, -0.01))
    first = prepare_rule(
        ws, session, RuleInput(kind="prefer", statement="0 → 8 gains", condition=f"{KNOB} >= 8"), trials
    )
    ws.memory.rules.add(first.rule)
    second = RuleInput(kind="avoid", statement="16 → 8 loses", condition=f"{KNOB} <= 8")
    checked = prepare_rule(ws, session, second, trials)
    stored = checked.rule
    assert (stored.kind, stored.condition, stored.check) == ("prefer", f"{KNOB} >= 16.0", "supported")
    assert stored.statement == f"16 → 8 loses (Stated as: avoid {KNOB} <= 8.0.)"
    assert f"stored as 'prefer {KNOB} >= 16.0'" in checked.note
    ws.close()
