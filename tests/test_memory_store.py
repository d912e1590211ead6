"""Sessions, trials and reflections in memory.db: round trips, one-way states, unique endings, concurrency."""

import json
import sqlite3
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest
from pydantic import BaseModel

from virtualmle.data.errors import MemoryStoreError, SessionError
from virtualmle.memory.records import (
    Hypothesis,
    ReflectionRecord,
    RuleRecord,
    SessionRecord,
    SummaryRecord,
    TrialOutcome,
    TrialRecord,
)
from virtualmle.memory.store import Memory

PROCESSES = 8


def a_session(**fields: Any) -> SessionRecord:
    return SessionRecord(
        **{
            "id": "",
            "dataset": "demo",
            "dataset_id": "d1",
            "backbone": "hstu",
            "protocol_hash": "p",
            "protocol_text": "the rules",
            "max_trials": 40,
            "max_train_seconds": 60.0,
            "profile": {"users": 1200, "density": 0.02},
            **fields,
        }
    )


def a_trial(session: str, **fields: Any) -> TrialRecord:
    values = {"handle": "", "number": 0, "base": "default", "changes": {"lr": 0.001}, "config": {"lr": 0.001}}
    return TrialRecord(**{"session": session, "config_hash": "c", "train_hash": "t", **values, **fields})


def an_outcome(**fields: Any) -> TrialOutcome:
    return TrialOutcome(**{"status": "finished", "verdict": "keep", "metrics": {"ndcg@10": 0.05}, **fields})


def a_reflection(session: str, trial: str, **fields: Any) -> ReflectionRecord:
    values = {"what_changed": "lr", "verdict": "keep", "helped": "yes", "dimension": "optimisation", "lesson": "ok"}
    return ReflectionRecord(**{"session": session, "trial": trial, **values, **fields})


def a_summary(session: str, text: str) -> SummaryRecord:
    return SummaryRecord(session=session, dataset="demo", dataset_id="d1", backbone="hstu", text=text)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory(tmp_path / "memory.db") as opened:
        yield opened


def freeze(memory: Memory, session: str) -> None:
    assert memory.sessions.set_state(session, "open", "frozen")


def test_an_id_is_spelt_as_the_only_session_that_differs_in_case(memory: Memory) -> None:
    for name in ("shop-hstu-1", "Shop-hstu-2", "shop-hstu-2"):
        memory.sessions.open(a_session(id=name))
    assert memory.sessions.spelt(" SHOP-hstu-1 ") == "shop-hstu-1"
    for name in ("Shop-hstu-2", "shop-hstu-2", "SHOP-HSTU-2", "shop-hstu-3"):  # exact, ambiguous, or unknown
        assert memory.sessions.spelt(name) == name


def test_a_session_is_read_as_stored_also_after_reopening(memory: Memory, tmp_path: Path) -> None:
    stored = memory.sessions.open(a_session(seed=7, with_reflection=False, profile={"users": 3, "nested": {"p": [1]}}))
    assert stored.id == "demo-hstu-1"
    assert stored.opened_at.endswith("+00:00")
    assert memory.sessions.get(stored.id) == stored
    with Memory(tmp_path / "memory.db") as reopened:
        assert reopened.sessions.all() == [stored]


def test_session_ids_count_up_per_dataset_and_backbone_and_skip_taken_ids() -> None:
    with Memory(None) as memory:
        ids = [memory.sessions.open(a_session()).id for _ in range(2)]
        ids += [memory.sessions.open(a_session(backbone="sasrec")).id]
        ids += [memory.sessions.open(a_session(), taken=["demo-hstu-11", "demo-sasrec-50", "unrelated"]).id]
        assert ids == ["demo-hstu-1", "demo-hstu-2", "demo-sasrec-1", "demo-hstu-12"]
        with pytest.raises(SessionError, match="'demo-hstu-2' exists already"):
            memory.sessions.open(a_session(id="demo-hstu-2"))


def test_a_trial_is_read_as_stored_before_and_after_it_ends(memory: Memory) -> None:
    session = memory.sessions.open(a_session()).id
    hypothesis = Hypothesis(dimension="optimisation", direction="better", size=0.002, reason="a larger step")
    started = memory.trials.start(a_trial(session, hypothesis=hypothesis, override_reason="small data"))
    assert (started.number, started.handle, started.status, started.outcome) == (1, "t001", "running", None)
    assert memory.trials.get(session, "t001") == started
    outcome = an_outcome(
        reason="z 2.1 >= 1", ndcg_se=0.001, delta=0.01, delta_se=0.002, z=2.1, base_delta=-0.5, base_delta_se=0.1,
        incumbent_before="t000", curve=[{"epoch": 1, "loss": 2.5}], details={"device": "cpu", "ties": 3},
        parameters=1234, train_seconds=1.5, wall_seconds=2.5,
    )  # fmt: skip
    assert memory.trials.finish(session, "t001", outcome)
    ended = memory.trials.get(session, "t001")
    assert ended.outcome == outcome
    assert ended == started.model_copy(
        update={"status": "finished", "outcome": outcome, "finished_at": ended.finished_at, "ended": 1}
    )
    assert memory.trials.all(session) == [ended]


def test_a_session_runs_one_trial_at_a_time_and_handles_count_up(memory: Memory) -> None:
    session = memory.sessions.open(a_session()).id
    other = memory.sessions.open(a_session()).id
    memory.trials.start(a_trial(session))
    with pytest.raises(SessionError, match="trial t001 of session 'demo-hstu-1' is still running"):
        memory.trials.start(a_trial(session))
    assert memory.trials.start(a_trial(other)).handle == "t001"
    memory.trials.finish(session, "t001", an_outcome(status="cancelled", verdict=None, metrics={}))
    assert memory.trials.start(a_trial(session)).handle == "t002"


def test_a_trial_ends_once_and_keeps_its_first_outcome(memory: Memory) -> None:
    session = memory.sessions.open(a_session()).id
    memory.trials.start(a_trial(session))
    assert memory.trials.finish(session, "t001", an_outcome(reason="first"))
    assert not memory.trials.finish(session, "t001", an_outcome(reason="second", verdict="discard"))
    outcome = memory.trials.get(session, "t001").outcome
    assert outcome is not None and outcome.reason == "first"


def test_nonfinite_metrics_are_refused_and_other_nonfinite_numbers_become_null(memory: Memory) -> None:
    session = memory.sessions.open(a_session()).id
    memory.trials.start(a_trial(session))
    with pytest.raises(MemoryStoreError, match="metrics must be finite"):
        memory.trials.finish(session, "t001", an_outcome(metrics={"ndcg@10": float("nan")}))
    curve = [{"epoch": 1, "loss": float("inf")}]
    assert memory.trials.finish(session, "t001", an_outcome(z=float("nan"), curve=curve))
    outcome = memory.trials.get(session, "t001").outcome
    assert outcome is not None and outcome.z is None and outcome.curve == [{"epoch": 1, "loss": None}]


def test_the_incumbent_is_the_latest_kept_trial(memory: Memory) -> None:
    session = memory.sessions.open(a_session()).id
    assert memory.trials.incumbent(session) is None
    for verdict in ("keep", "keep", "discard", "crash"):
        handle = memory.trials.start(a_trial(session)).handle
        memory.trials.finish(session, handle, an_outcome(verdict=verdict))
    incumbent = memory.trials.incumbent(session)
    assert incumbent is not None and incumbent.handle == "t002"


def test_a_trial_gets_one_reflection_after_it_has_ended(memory: Memory) -> None:
    session = memory.sessions.open(a_session()).id
    memory.trials.start(a_trial(session))
    with pytest.raises(SessionError, match="still running"):
        memory.reflections.add(a_reflection(session, "t001"))
    memory.trials.finish(session, "t001", an_outcome())
    assert not memory.trials.get(session, "t001").reflected
    stored = memory.reflections.add(a_reflection(session, "t001", evidence=["t001"], lesson="bid\u202ei\x00rectional"))
    assert stored.lesson == "bidirectional"
    assert memory.reflections.all(session) == [stored]
    assert memory.trials.get(session, "t001").reflected
    with pytest.raises(SessionError, match="already has a reflection"):
        memory.reflections.add(a_reflection(session, "t001"))


def test_a_summary_can_be_replaced_until_the_freeze(memory: Memory) -> None:
    session = memory.sessions.open(a_session()).id
    memory.summaries.add(a_summary(session, "first"))
    memory.summaries.add(a_summary(session, "second"))
    assert [summary.text for summary in memory.summaries.all()] == ["second"]
    freeze(memory, session)
    with pytest.raises(SessionError, match="is frozen and takes no more writes"):
        memory.summaries.add(a_summary(session, "third"))


STATES = ["open", "frozen", "attempted", "revealed", "void"]
ALLOWED = {
    ("open", "frozen"), ("frozen", "attempted"), ("frozen", "void"), ("attempted", "revealed"), ("attempted", "void"),
}  # fmt: skip
WAY_TO = {
    "open": [], "frozen": ["frozen"], "attempted": ["frozen", "attempted"],
    "revealed": ["frozen", "attempted", "revealed"], "void": ["frozen", "void"],
}  # fmt: skip


@pytest.mark.parametrize("new", STATES)
@pytest.mark.parametrize("old", STATES)
def test_states_change_in_one_direction_also_in_plain_sql(old: str, new: str) -> None:
    with Memory(None) as memory:
        session = memory.sessions.open(a_session()).id
        for state in WAY_TO[old]:
            assert memory.sessions.set_state(session, memory.sessions.get(session).state, state)  # type: ignore[arg-type]
        if (old, new) in ALLOWED:
            assert memory.sessions.set_state(session, old, new)  # type: ignore[arg-type]
            assert memory.sessions.get(session).state == new
            return
        with pytest.raises(SessionError, match="a session cannot go from"):
            memory.sessions.set_state(session, old, new)  # type: ignore[arg-type]
        with pytest.raises(sqlite3.IntegrityError), memory.database.writing() as db:
            db.execute("UPDATE sessions SET state = ?, frozen_at = 'x' WHERE id = ?", [new, session])
        assert memory.sessions.get(session).state == old


def test_a_state_changes_only_from_the_expected_one(memory: Memory) -> None:
    session = memory.sessions.open(a_session()).id
    assert not memory.sessions.set_state(session, "frozen", "attempted")
    assert memory.sessions.set_state(session, "open", "frozen")
    assert not memory.sessions.set_state(session, "open", "frozen")
    assert memory.sessions.get(session).frozen_at


def test_the_freeze_needs_a_finished_trial_and_no_running_one(memory: Memory) -> None:
    session = memory.sessions.open(a_session()).id
    memory.trials.start(a_trial(session))
    with pytest.raises(SessionError, match="trial t001 of session 'demo-hstu-1' is running"):
        memory.sessions.set_state(session, "open", "frozen")
    memory.trials.finish(session, "t001", an_outcome())
    with pytest.raises(SessionError, match="selected='t009' is not a finished trial"):
        memory.sessions.set_state(session, "open", "frozen", selected="t009")
    assert memory.sessions.set_state(session, "open", "frozen", selected="t001")
    assert memory.sessions.get(session).selected == "t001"
    with pytest.raises(SessionError, match="selected at the freeze"):
        memory.sessions.set_state(session, "frozen", "attempted", selected="t001")


def test_a_session_that_is_not_open_refuses_writes(memory: Memory) -> None:
    session = memory.sessions.open(a_session()).id
    memory.trials.start(a_trial(session))
    memory.trials.finish(session, "t001", an_outcome())
    freeze(memory, session)
    refused = [
        lambda: memory.trials.start(a_trial(session)),
        lambda: memory.reflections.add(a_reflection(session, "t001")),
        lambda: memory.summaries.add(a_summary(session, "late")),
        lambda: memory.rules.add(RuleRecord(kind="prefer", statement="late", session=session)),
    ]
    for write in refused:
        with pytest.raises(SessionError, match="is frozen and takes no more writes"):
            write()
    for statement in (
        "INSERT INTO trials SELECT * FROM trials",
        "UPDATE trials SET reason = 'other'",
        "INSERT INTO reflections VALUES (1, 'demo-hstu-1', 't001', '', 'keep', 'yes', '', NULL, '[]', '', '', '', "
        "'unsupported', '', NULL, 1, '', 0)",
    ):
        with pytest.raises(sqlite3.IntegrityError), memory.database.writing() as db:
            db.execute(statement)


def test_errors_about_unknown_names_suggest_the_most_similar_ones(memory: Memory) -> None:
    with pytest.raises(SessionError, match="there are none yet; open_session or `virtualmle tune` opens one"):
        memory.sessions.get("demo-hstu-1")
    session = memory.sessions.open(a_session()).id
    memory.sessions.open(a_session(dataset="beauty"))
    with pytest.raises(SessionError, match="unknown session 'demo-hstu'; sessions here: demo-hstu-1, beauty-hstu-1"):
        memory.sessions.get("demo-hstu")
    with pytest.raises(SessionError, match=r"unknown trial 't004' of session 'demo-hstu-1'; it has none yet"):
        memory.trials.get(session, "t004")
    memory.trials.start(a_trial(session))
    for handle in ("t004", "", "\udcff"):
        with pytest.raises(SessionError, match="its trials: t001"):
            memory.trials.finish(session, handle, an_outcome())
    for name in ("", "\udcff", "demo-hstu-1\u200b", "' OR 1=1 --"):
        with pytest.raises(SessionError, match="unknown session"):
            memory.sessions.set_state(name, "open", "frozen")


def test_errors_name_only_the_most_similar_of_many_sessions() -> None:
    with Memory(None) as memory:
        for _ in range(30):
            memory.sessions.open(a_session())
        with pytest.raises(SessionError, match=r"demo-hstu-1\d, .* … \(30 in total\)") as raised:
            memory.sessions.get("demo-hstu-1x")
        assert len(str(raised.value)) < 200


def test_threads_share_one_memory_without_lost_writes(memory: Memory) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: memory.sessions.open(a_session()).id, range(40)))
    assert sorted(ids) == sorted(f"demo-hstu-{number}" for number in range(1, 41))
    memory.trials.start(a_trial("demo-hstu-1"))
    with ThreadPoolExecutor(8) as pool:
        wins = list(pool.map(lambda _: memory.trials.finish("demo-hstu-1", "t001", an_outcome()), range(40)))
    assert wins.count(True) == 1


CHILD = """
import json, sys
from pathlib import Path
from virtualmle.data.errors import SessionError
from virtualmle.memory.records import EffectRecord, RuleRecord, SessionRecord, TrialOutcome, TrialRecord
from virtualmle.memory.store import Memory

path, process = Path(sys.argv[1]), sys.argv[2]
ended = TrialOutcome(status="finished", reason=process)
print("ready", flush=True)
session = SessionRecord.model_validate_json(sys.stdin.readline())
memory = Memory(path, busy_seconds=60)
ids = [memory.sessions.open(session).id for _ in range(5)]
print(json.dumps(ids), flush=True)

trial = TrialRecord.model_validate_json(sys.stdin.readline())
print(json.dumps(memory.trials.finish(trial.session, "t001", ended)), flush=True)

trial, handles = TrialRecord.model_validate_json(sys.stdin.readline()), []
while len(handles) < 5:
    try:
        handles.append(memory.trials.start(trial).handle)
    except SessionError:
        continue  # another process's trial is running
    assert memory.trials.finish(trial.session, handles[-1], ended)
print(json.dumps(handles), flush=True)

knowledge = memory.knowledge()
rule, seen = RuleRecord.model_validate_json(sys.stdin.readline()), []
for own in ids:
    memory.rules.add(rule.model_copy(update={"session": own}))
    memory.rules.count(own, {1: (2, 1, ["t001"])})
    effect = EffectRecord(session=own, dataset="demo", dataset_id="d1", backbone="hstu", knob="lr", value=0.1,
                          n=1, weight=1.0, weighted=0.5)
    memory.measurements.add([], [effect])
    effects = knowledge.pooled_effects("hstu")
    seen.append([len(knowledge.prior({}, "d1", "hstu")), effects["lr"]["n"], len(memory.rules.all())])
print(json.dumps(seen), flush=True)
"""
"""Code of each of several processes on one memory.db; a line on standard input starts each of the four steps."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The answers of eight processes, by step, and the memory that they have written."""
    path = tmp_path_factory.mktemp("processes") / "memory.db"
    arguments = [sys.executable, "-P", "-c", CHILD, str(path)]
    with ExitStack() as stack:
        children = [
            stack.enter_context(Popen([*arguments, str(number)], stdin=PIPE, stdout=PIPE, text=True))
            for number in range(PROCESSES)
        ]
        assert [child.stdout.readline() for child in children if child.stdout] == ["ready\n"] * PROCESSES
        ids = send_to_all(children, a_session())
        memory = stack.enter_context(Memory(path))
        memory.trials.start(a_trial("demo-hstu-1"))
        wins = send_to_all(children, a_trial("demo-hstu-1"))
        handles = send_to_all(children, a_trial("demo-hstu-2"))
        rule = RuleRecord(kind="prefer", statement="s", condition="lr > 1", backbone="hstu", support=1)
        seen = send_to_all(children, rule)
        assert [child.wait() for child in children] == [0] * PROCESSES
        yield {"ids": ids, "wins": wins, "handles": handles, "seen": seen, "memory": memory}


def send_to_all(children: list[Popen[str]], record: BaseModel) -> list[Any]:
    """Send the same record to every process at once; returns their answers."""
    for child in children:
        assert child.stdin is not None
        child.stdin.write(record.model_dump_json() + "\n")
        child.stdin.flush()
    return [json.loads(child.stdout.readline()) for child in children if child.stdout]


def test_processes_that_open_a_new_file_at_once_create_one_schema_and_unique_ids(answers: dict[str, Any]) -> None:
    ids = [name for names in answers["ids"] for name in names]
    assert sorted(ids) == sorted(f"demo-hstu-{number}" for number in range(1, 5 * PROCESSES + 1))
    assert {session.id for session in answers["memory"].sessions.all()} == set(ids)


def test_only_one_of_many_processes_ends_a_trial(answers: dict[str, Any]) -> None:
    assert sorted(answers["wins"]) == [False] * (PROCESSES - 1) + [True]
    assert answers["memory"].trials.get("demo-hstu-1", "t001").outcome.reason == str(answers["wins"].index(True))


def test_trials_added_by_many_processes_are_neither_lost_nor_duplicated(answers: dict[str, Any]) -> None:
    trials = answers["memory"].trials.all("demo-hstu-2")
    assert [trial.number for trial in trials] == list(range(1, 5 * PROCESSES + 1))
    owners = {trial.handle: trial.outcome.reason for trial in trials}
    assert owners == {handle: str(number) for number, handles in enumerate(answers["handles"]) for handle in handles}


def test_knowledge_added_by_many_processes_is_neither_lost_nor_duplicated(answers: dict[str, Any]) -> None:
    (rule,) = answers["memory"].rules.all()
    assert (rule.support, rule.contradiction) == (2 * 5 * PROCESSES, 5 * PROCESSES)  # each is set twice
    assert answers["memory"].knowledge().pooled_effects("hstu")["lr"]["n"] == 5 * PROCESSES
    for seen in answers["seen"]:  # concurrent readers see a growing, consistent state
        assert [rules for _, _, rules in seen] == [1] * 5
        assert [n for _, n, _ in seen] == sorted(n for _, n, _ in seen) and seen[0][1] >= 1
