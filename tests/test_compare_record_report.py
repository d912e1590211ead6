"""What a record states of its results: where they come from, the two orders of ties, the default, and the looks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from virtualmle.agents.events import Noted
from virtualmle.compare import record_report
from virtualmle.compare.outcome import TrialResult, stored_progress
from virtualmle.compare.record import Recorded, RecordRequest, record, tasks_of
from virtualmle.compare.record_outcome import PartResult, RecordResult, provenance_of
from virtualmle.compare.record_report import as_markdown, notes, provenance_lines, ties_table, write_record
from virtualmle.compare.record_session import SAVE_SECONDS, Watch
from virtualmle.data.errors import ConfigError, SessionError
from virtualmle.examiner.request import TestResult

STORED = {"date": "2026-01-02", "commit": "abc1234", "parallel": 2}


def look(session: str, ndcg: float = 0.06, **fields: Any) -> TestResult:
    return TestResult(
        session=session, trial="t001", dataset="demo", dataset_id="id", metrics={"ndcg@10": ndcg, "recall@10": 0.1},
        ndcg10_se=0.001, ties=0, num_users=9, look=1, fingerprint_short="f" * 12, at="2026-01-02T00:00:00+00:00",
        **fields,
    )  # fmt: skip


def part(session: str = "demo-sasrec-1", name: str = "sasrec", **fields: Any) -> PartResult:
    given: dict[str, Any] = {
        "name": name, "backbone": "sasrec", "session": session, "state": "revealed", "seed": 1, "trials": (),
        "selected": "t001", "members": (), "settings": {"lr": 0.002}, "validation": {"ndcg@10": 0.08}, "inflation": 0.0,
        "confirmation": None, "repetitions": (), "device": "cpu", "test": look(session), "receipt": "",
    }  # fmt: skip
    return PartResult(**given | fields)


def result(dataset: str = "demo", *parts: PartResult, **fields: Any) -> RecordResult:
    given: dict[str, Any] = {
        "dataset": dataset, "dataset_id": f"id of {dataset}", "listed_as": dataset, "profile": {}, "wall_seconds": 1.0,
        "parts": parts or (part(f"{dataset}-sasrec-1"),), "provenance": STORED,
    }  # fmt: skip
    return RecordResult(**given | fields)


def test_the_machine_and_the_commit_are_those_under_which_the_sessions_ended(tmp_path: Path) -> None:
    request = RecordRequest(tmp_path / "home", tmp_path / "out", parallel=1)
    recorded = Recorded(request, tasks_of(request), [result()], {}, {})
    text = as_markdown(recorded)
    assert "- commit: abc1234" in text and "- parallel: 2" in text and "- date: 2026-01-02" in text


def test_datasets_that_were_recorded_on_other_days_have_a_line_each() -> None:
    later = {**STORED, "date": "2026-01-03"}
    lines = provenance_lines([result(), result("shop", provenance=later), result("old", provenance={})])
    assert lines == [
        "- demo: date 2026-01-02; commit abc1234; parallel 2", "- shop: date 2026-01-03; commit abc1234; parallel 2",
        "- old: not stored by an earlier version",
    ]  # fmt: skip
    assert provenance_lines([result(), result("shop")]) == [f"- {name}: {value}" for name, value in STORED.items()]


def test_the_process_of_the_sessions_stores_how_they_were_run(tmp_path: Path) -> None:
    request = RecordRequest(tmp_path / "home", tmp_path / "out", parallel=3, jobs=2)
    (task,) = tasks_of(request)
    assert task.digest == task.model_copy(update={"parallel": 1, "jobs": 1}).digest  # no figure depends on them
    assert {"date", "commit", "processor", "torch"} <= provenance_of(task, []).keys()
    assert {name: provenance_of(task, [part()])[name] for name in ("threads", "parallel", "jobs", "device")} == {
        "threads": 1, "parallel": 3, "jobs": 2, "device": "cpu",
    }  # fmt: skip


def test_the_time_before_a_kill_is_on_disk_at_once_and_the_next_process_adds_to_it(tmp_path: Path) -> None:
    now = [100.0]
    for expected in (3 * SAVE_SECONDS, 6 * SAVE_SECONDS):  # neither process comes to its end
        watch = Watch(tmp_path, clock=lambda: now[0])
        now[0] += 3 * SAVE_SECONDS
        watch(Noted("an epoch is over"))
        assert stored_progress(tmp_path).wall_seconds == expected
        now[0] += SAVE_SECONDS / 2
        watch(Noted("another one"))  # too soon for another write
        assert stored_progress(tmp_path).wall_seconds == expected


def trial(handle: str, base: str = "default", **changes: Any) -> TrialResult:
    return TrialResult(
        trial=handle, status="finished", verdict="keep", ndcg10=0.08, ndcg10_se=0.001, train_seconds=1.0,
        wall_seconds=1.0, rescored=False, base=base, changes=changes,
    )  # fmt: skip


def both_orders(control: dict[str, Any], weight: float) -> list[RecordResult]:
    """A dataset with both orders of ties; the control has selected `control`, and its sweep has found `weight`."""

    def parts(dataset: str, settings: dict[str, Any], weight: float) -> tuple[PartResult, ...]:
        trials = (trial("t001"), trial("t002", lr=0.002), trial("t003", "t002", transition_weight=weight))
        one = part(f"{dataset}-sasrec-1", trials=trials, settings=settings)
        members = (f"{dataset}-sasrec-1/t003", f"{dataset}-sasrec-1/t002")
        return one, part(f"{dataset}-sasrec-2", "ensemble", members=members, settings={})

    plain, name = {"lr": 0.002, "transition_weight": 4.0}, "demo-ties-random"
    drawn = result(name, *parts(name, control, weight), listed_as="demo")
    return [result("demo", *parts("demo", plain, 4.0)), drawn]


def test_the_ties_table_says_whether_both_orders_have_the_same_configuration() -> None:
    same, default = {"lr": 0.002, "transition_weight": 4.0}, dict[str, Any]()
    for control, weight, expected in ((same, 4.0, ["yes", "yes"]), (default, 4.0, ["no", "yes"]),
                                      (same, 8.0, ["yes", "no"])):  # fmt: skip
        table = ties_table(both_orders(control, weight))
        assert [row[table.columns.index("same configuration")] for row in table.rows] == expected
    assert "the change contains the other choice, too" in table.note


def test_the_notes_say_that_a_dataset_and_its_control_are_one_content(tmp_path: Path) -> None:
    request = RecordRequest(tmp_path / "home", tmp_path / "out")
    results = both_orders({}, 4.0)
    said = "demo and demo-ties-random have the content of one log: the looks of both are looks at one content"
    assert any(note.startswith(said) for note in notes(Recorded(request, [], results, {}, {})))
    assert not any("one content" in note for note in notes(Recorded(request, [], results[:1], {}, {})))


def test_a_record_may_gain_datasets_but_not_lose_any(tmp_path: Path) -> None:
    alone = RecordRequest(tmp_path / "home", tmp_path / "out", ("demo",))
    both = replace(alone, ties="both")
    write_record(Recorded(alone, tasks_of(alone), [result("demo", part(receipt=""))], {}, {}))
    reached: list[int] = []

    def begin(sessions: int, _: int) -> None:
        reached.append(sessions)
        raise SessionError("nothing is to be run")

    for request in (alone, both, replace(both, parallel=2)):
        with pytest.raises(SessionError):
            record(request, lambda _: None, begin)
    assert reached == [1, 2, 2]
    file = tmp_path / "out" / "record.json"
    for changed in (replace(alone, threads=2), replace(alone, ties="random"), replace(alone, repetitions=3)):
        with pytest.raises(ConfigError, match="holds a record of demo that this request would not write again"):
            record(changed, lambda _: None, begin)
    for text in ("{", "[]", '{"records": [{"dataset": "demo"}]}'):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match="is no record of this version"):
            record(alone, lambda _: None, begin)
    assert len(reached) == 3


def test_the_notes_say_that_another_record_draws_the_same_seeds(tmp_path: Path) -> None:
    request = RecordRequest(tmp_path / "home", tmp_path / "out")
    said = "all records of a dataset draw the same ones"
    assert any(said in note for note in notes(Recorded(request, [], [result()], {}, {})))


def test_the_column_of_the_default_says_if_the_default_itself_was_selected() -> None:
    rows = [part(settings={}), part(), part(settings={}, members=("demo-sasrec-1/t001",)), part(settings={}, test=None)]
    table = record_report.test_table([(result(), one) for one in rows])
    column = table.columns.index("default: test NDCG@10")
    assert [row[column] for row in table.rows] == ["selected", "", "", ""]
