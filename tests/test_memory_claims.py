"""Amended reflections, like rules, and followed proposals in memory.db: what is corrected or merged stays on record."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from virtualmle.data.errors import SessionError
from virtualmle.memory.like_conditions import half_line, normalised_condition, not_told_apart
from virtualmle.memory.records import (
    FollowedProposal,
    ReflectionRecord,
    RuleRecord,
    SessionRecord,
    TrialOutcome,
    TrialRecord,
)
from virtualmle.memory.store import Memory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
def memory(path: Path) -> Iterator[Memory]:
    with Memory(path) as opened:
        yield opened


def a_session(memory: Memory, *configs: dict[str, Any]) -> str:
    """An open session with one finished trial per configuration."""
    session = memory.sessions.open(SessionRecord(
        id="", dataset="demo", dataset_id="d1", backbone="hstu", protocol_hash="p", protocol_text="r", max_trials=40,
        max_train_seconds=60.0, profile={"users": 1200},
    )).id  # fmt: skip
    for config in configs:
        add_trial(memory, session, config=config)
    return session


def add_trial(memory: Memory, session: str, **fields: Any) -> str:
    values = {"handle": "", "number": 0, "base": "default", "changes": {}, "config_hash": "c", "train_hash": "t"}
    handle = memory.trials.start(TrialRecord(**{"session": session, "config": {}, **values, **fields})).handle
    memory.trials.finish(session, handle, TrialOutcome(status="finished", metrics={"ndcg@10": 0.05}))
    return handle


def a_reflection(session: str, trial: str, lesson: str, **fields: Any) -> ReflectionRecord:
    values = {"what_changed": "lr", "verdict": "keep", "helped": "yes", "dimension": "capacity", "check": "supported"}
    return ReflectionRecord(**{"session": session, "trial": trial, "lesson": lesson, **values, **fields})


def test_an_amended_reflection_is_shown_and_every_earlier_version_stays_on_record(path: Path) -> None:
    with Memory(path) as memory:
        session = a_session(memory, {})
        first = memory.reflections.add(a_reflection(session, "t001", "wide helps", effect=0.2, check="contradicted"))
        assert first.amended_from is None
        for lesson in ("wide hurts", "wide has no effect"):
            amended = memory.reflections.amend(a_reflection(session, "t001", lesson, helped="no", evidence=["t001"]))
            assert (amended.lesson, amended.helped, amended.effect) == (lesson, "no", None)
    with Memory(path) as memory:  # a later process sees the same
        (shown,) = memory.reflections.all(session)
        assert (shown.lesson, shown.evidence) == ("wide has no effect", ["t001"])
        assert shown.amended_from and shown.amended_from.version == 1
        assert (shown.amended_from.lesson, shown.amended_from.effect) == ("wide helps", 0.2)
        assert (shown.amended_from.check, shown.amended_from.created_at) == ("contradicted", first.created_at)
        earlier = memory.reflections.earlier(session, "t001")
        assert [(row.version, row.lesson) for row in earlier] == [(1, "wide helps"), (2, "wide hurts")]
        assert [row["text"] for row in memory.knowledge().search("wide effect", 9)] == ["“wide has no effect”"]


def test_only_a_written_reflection_of_an_open_session_can_be_amended(memory: Memory) -> None:
    session = a_session(memory, {})
    with pytest.raises(SessionError, match=r"trial 't001' of .* has no reflection yet; leave out amend=true"):
        memory.reflections.amend(a_reflection(session, "t001", "wide helps"))
    memory.reflections.add(a_reflection(session, "t001", "wide helps"))
    with pytest.raises(SessionError, match="already has a reflection; amend=true corrects it"):
        memory.reflections.add(a_reflection(session, "t001", "wide hurts"))
    memory.sessions.set_state(session, "open", "frozen")
    with pytest.raises(SessionError, match="frozen"):
        memory.reflections.amend(a_reflection(session, "t001", "wide hurts"))
    assert [r.lesson for r in memory.reflections.all(session)] == ["wide helps"]
    with pytest.raises(sqlite3.IntegrityError, match="takes no reflections"):
        memory.database.db.execute("UPDATE reflections SET lesson = 'another'")


@pytest.mark.parametrize("statement", ["UPDATE earlier_reflections SET lesson = ''", "DELETE FROM earlier_reflections"])
def test_the_database_keeps_earlier_reflections_whatever_a_program_does(memory: Memory, statement: str) -> None:
    session = a_session(memory, {})
    memory.reflections.add(a_reflection(session, "t001", "wide helps"))
    memory.reflections.amend(a_reflection(session, "t001", "wide hurts"))
    with pytest.raises(sqlite3.IntegrityError, match="stay on record"):
        memory.database.db.execute(statement)


def test_an_amendment_counts_the_repeated_lessons_of_the_session_again(memory: Memory) -> None:
    session = a_session(memory, {}, {}, {})
    for trial in ("t001", "t002", "t003"):
        memory.reflections.add(a_reflection(session, trial, "wide layers help"))

    def counts() -> list[tuple[str | None, int]]:
        return [(r.merged_into, r.times_said) for r in memory.reflections.all(session)]

    assert counts() == [(None, 3), ("t001", 2), ("t001", 3)]
    memory.reflections.amend(a_reflection(session, "t001", "dropout is what matters"))
    assert counts() == [(None, 1), (None, 2), ("t002", 2)]  # the second is now the first to say it
    memory.reflections.amend(a_reflection(session, "t001", "wide layers help"))
    assert counts() == [(None, 3), ("t001", 2), ("t001", 3)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("lr >= 0.001", "lr >= 1e-3", True),
        ("lr >= 0.001", "lr > 0.001", False),
        ("lr >= 0.001", "lr <= 0.001", False),
        ("hidden_dim > 128", "hidden_dim >= 129", True),
        ("hidden_dim > 128.5", "hidden_dim >= 129", True),
        ("hidden_dim < 64", "hidden_dim <= 63", True),
        ("hidden_dim >= 128", "hidden_dim > 128", False),
        ("position in {both, absolute}", "position in {absolute, both}", True),
        ("position in {both}", "position == both", True),
        ("position != none", "position in {absolute, relative, both, rotary}", True),
        ("causal == false", "causal != true", True),
        ("causal == false", "causal == true", False),
        ("num_blocks == 2", "num_blocks in {2}", True),
        ("dropout != 0.2", "dropout == 0.2", False),
        ("dropout >= 0.5", "embedding_dropout >= 0.5", False),
        ("unknown_knob > 1", "unknown_knob  >  1", True),
        ("unknown_knob > 1", "unknown_knob > 1.0", False),
    ],
)
def test_conditions_are_equal_if_they_hold_for_the_same_values(one: str, other: str, same: bool) -> None:
    assert (normalised_condition(one) == normalised_condition(other)) is same


def test_half_lines_are_told_apart_by_a_value_that_only_one_of_them_holds_for() -> None:
    near, far, below = half_line("lr >= 0.001"), half_line("lr > 0.0009"), half_line("lr <= 0.001")
    assert near and far and below
    assert not_told_apart(near, far, [0.0003, 0.001, 0.003])
    assert not not_told_apart(near, far, [0.0003, 0.00095, 0.001])
    assert not not_told_apart(near, far, [0.0003])  # no value tried says anything about them
    assert not not_told_apart(near, below, [0.001])  # opposite directions
    assert half_line("position == both") is half_line("lr == 0.001") is half_line("nonsense") is None


def a_rule(session: str, condition: str, statement: str, **fields: Any) -> RuleRecord:
    values = {"kind": "prefer", "backbone": "hstu", "support": 1, "evidence": ["t002"], "check": "supported"}
    return RuleRecord(**{"session": session, "condition": condition, "statement": statement, **values, **fields})


def test_rules_that_no_trial_tells_apart_are_one_rule_and_keep_both_statements(memory: Memory) -> None:
    session = a_session(memory, {"lr": 0.0003}, {"lr": 0.001})
    first = memory.rules.add(a_rule(session, "lr >= 0.001", "larger steps learn faster"))
    again = memory.rules.add(a_rule(session, "lr > 0.0009", "small learning rates do not get there"))
    assert (again.id, again.condition, again.times_said) == (first.id, "lr >= 0.001", 2)
    assert (again.support, again.contradiction, again.check) == (1, 0, "supported")  # the same trial, counted once
    (kept,) = memory.rules.statements(first.id)
    assert (kept.statement, kept.condition) == ("small learning rates do not get there", "lr > 0.0009")
    assert kept.session == session and kept.created_at
    memory.rules.add(a_rule(session, "lr > 0.0009", "small learning rates do not get there"))
    assert len(memory.rules.statements(first.id)) == 1 and memory.rules.get(first.id).times_said == 3


@pytest.mark.parametrize(
    ("configs", "fields"),
    [
        pytest.param([{"lr": 0.00095}], {}, id="a trial between the thresholds"),
        pytest.param([], {"kind": "avoid"}, id="another kind"),
        pytest.param([], {"backbone": None}, id="another scope"),
    ],
)
def test_rules_that_may_differ_stay_apart(
    memory: Memory, configs: list[dict[str, Any]], fields: dict[str, Any]
) -> None:
    session = a_session(memory, {"lr": 0.0003}, {"lr": 0.001}, *configs)
    memory.rules.add(a_rule(session, "lr >= 0.001", "larger steps learn faster"))
    memory.rules.add(a_rule(session, "lr > 0.0009", "small learning rates do not get there", **fields))
    assert [rule.times_said for rule in memory.rules.all()] == [1, 1]


def test_a_rule_from_another_home_is_merged_only_with_an_equal_condition(memory: Memory) -> None:
    session = a_session(memory, {"lr": 0.0003}, {"lr": 0.001})
    foreign, _ = memory.rules.find_or_store(a_rule("0123456789ab:x-1", "lr > 0.0009", "from elsewhere"))
    mine = memory.rules.add(a_rule(session, "lr >= 0.001", "larger steps learn faster"))
    assert mine.id != foreign  # the values that were tried there are not known
    assert memory.rules.add(a_rule(session, "lr > 9e-4", "larger still")).id == foreign


def test_the_proposal_that_a_trial_follows_is_read_as_stored(memory: Memory) -> None:
    session = a_session(memory, {})
    proposal = FollowedProposal(
        source="memorising", evidence="declared", changes={"dropout": 0.5}, whole=True, expected_delta=0.002, sd=0.001
    )
    handle = add_trial(memory, session, proposal=proposal)
    assert memory.trials.get(session, handle).proposal == proposal
    assert memory.trials.get(session, "t001").proposal is None
