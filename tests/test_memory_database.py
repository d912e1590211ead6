"""memory.db as a file: schema, migrations, and error messages for files that cannot be used."""

import sqlite3
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
from sqlite_utils import Database

from virtualmle.data.errors import MemoryStoreError, SessionError
from virtualmle.memory.migrations import MIGRATIONS
from virtualmle.memory.records import (
    ReflectionRecord,
    RuleRecord,
    SessionRecord,
    SummaryRecord,
    TrialOutcome,
    TrialRecord,
)
from virtualmle.memory.store import Memory

SESSION = SessionRecord(
    id="", dataset="demo", dataset_id="d1", backbone="hstu", protocol_hash="p", protocol_text="rules", max_trials=9,
    max_train_seconds=60.0, profile={"users": 5},
)  # fmt: skip
TRIAL = TrialRecord(
    session="demo-hstu-1", handle="", number=0, base="default", changes={}, config={}, config_hash="c", train_hash="t"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
def memory(path: Path) -> Iterator[Memory]:
    with Memory(path, busy_seconds=0.05) as opened:
        yield opened


def old_database(path: Path, stop_before: str) -> Database:
    """A memory.db of the schema before a migration, with a session, a trial, a reflection, a rule and a summary."""
    database = Database(path)
    MIGRATIONS.apply(database, stop_before=stop_before)
    database.executescript("""
        INSERT INTO sessions VALUES (1, 'demo-hstu-1', 'demo', 'd1', 'hstu', 'open', 0, 'p', 'rules', 9, 60.0, 1, 1,
            '{"users": 5}', '', NULL, '2026-01-01T00:00:00+00:00', NULL);
        INSERT INTO trials (session, handle, number, base, changes, config, config_hash, train_hash, status, verdict,
            reason, metrics, curve, details, parameters, train_seconds, wall_seconds, created_at, finished_at)
            VALUES ('demo-hstu-1', 't001', 1, 'default', '{}', '{"lr": 0.1}', 'c', 't', 'finished', 'keep', '',
            '{"ndcg@10": 0.05}', '[]', '{}', 7, 1.0, 2.0, 'then', 'later');
        INSERT INTO reflections VALUES (1, 'demo-hstu-1', 't001', '', 'keep', 'yes', 'capacity', '[]',
            'wider layers helped', '', 'supported', '', 'then');
        INSERT INTO rules VALUES (1, 'prefer', 'wider layers', 'hidden_dim > 128', 'hstu', 'demo', 'd1', 'demo-hstu-1',
            '["t001"]', 'supported', 2, 1, '{"users": 5}', 'then');
        INSERT INTO summaries VALUES (1, 'demo-hstu-1', 'demo', 'd1', 'hstu', 'wide wins', '{}', '{}', 'then');
    """)
    if "rule_counts" in database.table_names():
        database.execute("INSERT INTO rule_counts VALUES (1, 'demo-hstu-1', 2, 1, '[\"t001\"]')")
    return database


OLDER = ["m002_full_text", "m003_rule_counts", "m004_guards", "m005_sessions_know_their_memory"]


@pytest.mark.parametrize("stop_before", OLDER)
def test_a_file_of_an_older_schema_is_migrated_with_its_contents(path: Path, stop_before: str) -> None:
    old_database(path, stop_before).close()
    with Memory(path) as memory:
        assert memory.trials.get("demo-hstu-1", "t001").config == {"lr": 0.1}
        found = memory.knowledge().search("wider wide", 9)
        assert {entry["source"] for entry in found} == {"rule", "reflection", "summary"}
        repeated = RuleRecord(
            kind="prefer", statement="wide!", condition="hidden_dim > 128", backbone="hstu", support=3
        )
        merged = memory.rules.add(repeated)
        assert (merged.id, merged.support, merged.contradiction) == (1, 5, 1)
        assert memory.sessions.set_state("demo-hstu-1", "open", "frozen", selected="t001")
        assert not MIGRATIONS.pending(memory.database.db)


def test_migrated_contents_are_found_by_newer_queries(path: Path) -> None:
    old = old_database(path, "m005_sessions_know_their_memory")
    old.executescript("""
        INSERT INTO trials SELECT session, 't002', 2, base, changes, '{"lr": 0.2}', 'd', train_hash, hypothesis,
            override_reason, status, 'discard', reason, cause, '{"ndcg@10": 0.06}', ndcg_se, incumbent_before, delta,
            delta_se, z, base_delta, base_delta_se, curve, details, parameters, train_seconds, wall_seconds,
            created_at, finished_at FROM trials;
        INSERT INTO reflections VALUES (2, 'demo-hstu-1', 't002', '', 'discard', 'unclear', 'capacity', '[]',
            'a deeper look', '', 'unverified', '', 'then');
        INSERT INTO rules VALUES (2, 'avoid', 'tiny steps', 'lr < 0.01', NULL, '', '', '', '[]', 'unverified', 0, 0,
            '{"users": 9}', 'then');
        UPDATE sessions SET state = 'frozen', frozen_at = 'then', selected = 't002';
    """)
    old.close()
    with Memory(path) as memory:
        session = memory.sessions.get("demo-hstu-1")
        assert (session.memory_from, session.placebo, session.llm_usd, session.max_llm_usd) == ([], False, 0.0, None)
        checks = {r.trial: (r.check, r.cause, r.times_said) for r in memory.reflections.all("demo-hstu-1")}
        assert checks == {"t001": ("supported", "", 1), "t002": ("unsupported", "", 1)}
        assert [found["trial"] for found in memory.knowledge().search("deeper", 9)] == ["t002"]
        assert [rule.id for rule in memory.rules.about("hstu", ["lr"])] == [2]
        assert memory.rules.add(RuleRecord(kind="avoid", statement="Tiny step.", backbone=None)).id == 2
        assert [entry["id"] for entry in memory.knowledge().prior({"users": 5}, "d1", "hstu", 9)] == [1, 2]
        portfolio = memory.knowledge().portfolio({"users": 5}, "", "hstu")
        assert [entry["config"] for entry in portfolio] == [{"lr": 0.2}, {"lr": 0.1}]
        counted = memory.knowledge(["demo"]).prior({"users": 5}, "d1", "hstu", 9)
        assert [(entry["id"], entry["support"]) for entry in counted] == [(1, 2)]


def test_a_failed_migration_leaves_the_file_unchanged(path: Path) -> None:
    old = old_database(path, "m003_rule_counts")
    old.execute("CREATE TABLE rule_counts (other INTEGER)")
    old.close()
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        Memory(path)
    with Database(path) as untouched:
        assert [m.name for m in MIGRATIONS.applied(untouched)] == ["m001_tables", "m002_full_text"]
        assert "sessions_one_way" not in [trigger.name for trigger in untouched.triggers]


def test_a_file_of_a_newer_version_is_refused(path: Path) -> None:
    Memory(path).close()
    with Database(path) as newer:
        row = {"migration_set": MIGRATIONS.name, "name": "m999_future", "applied_at": "2030-01-01"}
        newer.table(MIGRATIONS.migrations_table).insert(row)
    with pytest.raises(MemoryStoreError, match=r"memory.db was written by a newer VirtualMLE \(it has m999_future\)"):
        Memory(path)


def test_the_database_of_another_program_is_refused_and_unchanged(path: Path) -> None:
    with Database(path) as other:
        other.table("bookmarks").insert({"url": "x"})
    content = path.read_bytes()
    with pytest.raises(MemoryStoreError, match=r"belongs to another program \(it has the tables bookmarks\)"):
        Memory(path)
    assert path.read_bytes() == content


def test_no_column_and_no_field_concerns_the_test_set(memory: Memory) -> None:
    db = memory.database.db
    columns = {f"{table}.{column.name}" for table in db.table_names() for column in db.table(table).columns}
    assert {"sessions.id", "trials.metrics", "rule_counts.support"} <= columns
    records = (SessionRecord, TrialRecord, TrialOutcome, ReflectionRecord, RuleRecord, SummaryRecord)
    fields = {f"{record.__name__}.{name}" for record in records for name in record.model_fields}
    assert [name for name in columns | fields if "test" in name.casefold()] == []


def test_the_file_is_in_wal_mode_with_foreign_keys_and_the_busy_timeout_on(memory: Memory) -> None:
    values = [
        memory.database.db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "foreign_keys", "busy_timeout")
    ]
    assert values == ["wal", 1, 50]
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"), memory.database.writing() as db:
        db.execute("INSERT INTO rule_counts VALUES (7, '', 0, 0, '[]', '', '')")


def another_trial(db: Database, handle: str, status: str = "running") -> None:
    """Insert a copy of trial t001 past the checks of the store."""
    columns = [column.name for column in db.table("trials").columns]
    number = str(int(handle[1:]))
    values = {"handle": f"'{handle}'", "number": number, "place": number, "status": f"'{status}'"}
    selected = ", ".join(values.get(name, name) for name in columns)
    db.execute(f"INSERT INTO trials SELECT {selected} FROM trials WHERE handle = 't001'")


@pytest.mark.parametrize("parallel", [1, 3])
def test_the_schema_allows_as_many_running_trials_per_session_as_its_parallel(memory: Memory, parallel: int) -> None:
    memory.sessions.open(SESSION.model_copy(update={"parallel": parallel}))
    memory.sessions.open(SESSION.model_copy(update={"parallel": 9}))
    memory.trials.start(TRIAL)
    with memory.database.writing() as db:
        for number in range(2, parallel + 1):
            another_trial(db, f"t{number:03d}")
    for handle in ("t008", "t009"):
        with pytest.raises(sqlite3.IntegrityError, match="already runs as many"), memory.database.writing() as db:
            another_trial(db, handle)
    with pytest.raises(sqlite3.IntegrityError, match="stays in its session"), memory.database.writing() as db:
        db.execute("UPDATE trials SET session = 'demo-hstu-2'")
    assert memory.trials.finish("demo-hstu-1", "t001", TrialOutcome(status="cancelled"))
    assert memory.trials.all("demo-hstu-1")[-1].number == parallel
    with memory.database.writing() as db:
        db.execute("UPDATE trials SET status = 'cancelled', finished_at = '', metrics = '{}' WHERE status = 'running'")
    assert memory.trials.start(TRIAL).number == parallel + 1


def test_the_schema_gives_a_stopped_trial_no_metrics_and_no_keep(memory: Memory) -> None:
    memory.sessions.open(SESSION)
    memory.trials.start(TRIAL)
    for change in ({"metrics": {"ndcg@10": 0.1}}, {"verdict": "keep"}, {"verdict": None}):
        outcome = TrialOutcome(status="stopped", verdict="discard").model_copy(update=change)
        with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            memory.trials.finish("demo-hstu-1", "t001", outcome)
    assert memory.trials.finish("demo-hstu-1", "t001", TrialOutcome(status="stopped", verdict="discard"))


def test_only_a_repetition_names_the_trial_that_it_repeats(memory: Memory) -> None:
    memory.sessions.open(SESSION)
    memory.trials.start(TRIAL)
    memory.trials.finish("demo-hstu-1", "t001", TrialOutcome(status="cancelled"))
    for update in ({"repetition": 1}, {"repeats": "t001"}, {"repetition": 1, "repeats": "t009"}):
        with pytest.raises(sqlite3.IntegrityError):
            memory.trials.start(TRIAL.model_copy(update=update))
    again = memory.trials.start(TRIAL.model_copy(update={"repetition": 1, "repeats": "t001"}))
    assert memory.trials.get("demo-hstu-1", again.handle).repeats == "t001"


def full_database(path: Path) -> dict[str, list[dict[str, Any]]]:
    """A memory.db at m014 with rows in every table that refers to trials, and a running trial; returns its rows."""
    database = Database(path)
    MIGRATIONS.apply(database, stop_before="m015_trials_may_be_stopped_and_run_side_by_side")
    database.execute("PRAGMA foreign_keys = ON")
    database.executescript("""
        INSERT INTO sessions (id, dataset, dataset_id, backbone, state, seed, protocol_hash, protocol_text, max_trials,
            max_train_seconds, with_reflection, with_memory, profile, client, opened_at) VALUES
            ('demo-hstu-1', 'demo', 'd1', 'hstu', 'open', 7, 'p', 'rules', 9, 60.0, 1, 1, '{}', 'me', 'then'),
            ('demo-hstu-2', 'demo', 'd1', 'hstu', 'open', 7, 'p', 'rules', 9, 60.0, 1, 1, '{}', 'me', 'then');
        INSERT INTO trials (session, handle, number, base, changes, config, config_hash, train_hash, hypothesis,
            override_reason, status, verdict, reason, cause, metrics, ndcg_se, incumbent_before, delta, delta_se, z,
            base_delta, base_delta_se, curve, details, parameters, train_seconds, wall_seconds, created_at, finished_at,
            proposal, sweep) VALUES
            ('demo-hstu-2', 't001', 1, 'default', '{}', '{"lr": 0.1}', 'c', 't', '{"dimension": "capacity"}', 'why',
            'finished', 'keep', 'first', NULL, '{"ndcg@10": 0.0512345678901234}', 0.001, NULL, NULL, NULL, NULL, NULL,
            NULL, '[{"epoch": 1}]', '{"ties": 3}', 7, 1.5, 2.5, 'then', 'later',
            '{"source": "pair", "evidence": "none", "changes": {}, "whole": true, "expected_delta": 0, "sd": 1}',
            '{"settings": [{}]}'),
            ('demo-hstu-1', 't001', 1, 'default', '{}', '{}', 'c', 't', NULL, NULL, 'crashed', 'crash', 'lost', 'out of
memory', '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '[]', '{}', 0, 0.0, 0.0, 'then', 'later', NULL, NULL),
            ('demo-hstu-1', 't002', 2, 't001', '{}', '{}', 'd', 't', NULL, NULL, 'running', NULL, NULL, NULL, NULL,
            NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'then', NULL, NULL, NULL);
        INSERT INTO reflections (session, trial, what_changed, verdict, helped, dimension, evidence, cause, lesson,
            next_step, "check", check_note, created_at) VALUES ('demo-hstu-2', 't001', '', 'keep', 'yes', 'capacity',
            '[]', '', 'wider layers helped', '', 'supported', '', 'then');
        INSERT INTO earlier_reflections VALUES ('demo-hstu-2', 't001', 1, 'no', 'capacity', NULL, '[]', '', 'no', '',
            'contradicted', '', 'then');
        UPDATE sessions SET state = 'frozen', frozen_at = 'then', selected = 't001' WHERE id = 'demo-hstu-2';
    """)
    rows = {name: list(database.table(name).rows) for name in TABLES_WITH_TRIALS}
    database.close()
    return rows


TABLES_WITH_TRIALS = ("sessions", "trials", "reflections", "earlier_reflections")
GUARDS_OF_TRIALS = {"trials_while_open", "trials_end_once", "trials_stay_in_their_session", "trials_running_at_most"}


def test_the_table_of_trials_is_replaced_without_losing_a_row_a_guard_or_a_reference(path: Path) -> None:
    before = full_database(path)
    with Memory(path) as memory:
        db = memory.database.db
        for name in TABLES_WITH_TRIALS:
            kept = [{column: row[column] for column in before[name][0]} for row in db.table(name).rows]
            assert kept == before[name]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert {trigger.name for trigger in db.triggers if trigger.table == "trials"} == GUARDS_OF_TRIALS
        assert {index.name for index in db.table("trials").indexes} >= {"trials_by_config", "trials_by_configuration"}
        finished = memory.trials.get("demo-hstu-2", "t001")
        assert (finished.status, finished.repetition, finished.repeats) == ("finished", 0, None)
        assert memory.sessions.get("demo-hstu-1").parallel == 1
        assert [r.after_reveal for r in memory.reflections.all("demo-hstu-2")] == [False]
        for refused in (
            "DELETE FROM trials WHERE session = 'demo-hstu-2'",
            "INSERT INTO reflections SELECT NULL, session, 't009', what_changed, verdict, helped, dimension, effect, "
            "evidence, cause, lesson, next_step, \"check\", check_note, NULL, 1, created_at, 0 FROM reflections",
            "UPDATE trials SET reason = 'better' WHERE session = 'demo-hstu-2'",
            "INSERT INTO trials SELECT session, 't002', 2, base, " + ", ".join(list(before["trials"][0])[4:])
            + ", 0, NULL, 0, NULL, NULL FROM trials WHERE session = 'demo-hstu-2'",
        ):  # fmt: skip
            with pytest.raises(sqlite3.IntegrityError), memory.database.writing() as writing:
                writing.execute(refused)
        with pytest.raises(SessionError, match="still running"):
            memory.trials.start(TRIAL)
        assert memory.trials.finish("demo-hstu-1", "t002", TrialOutcome(status="stopped", verdict="discard"))


@pytest.mark.parametrize(
    ("column", "value"),
    [("state", "finished"), ("state", None), ("profile", "{not json"), ("profile", None), ("selected", "t009")],
)
def test_invalid_values_are_refused_by_the_schema(memory: Memory, column: str, value: Any) -> None:
    memory.sessions.open(SESSION)
    with pytest.raises(sqlite3.IntegrityError), memory.database.writing() as db:
        db.execute(f"UPDATE sessions SET {column} = ?", [value])


def test_a_locked_file_is_reported_and_can_still_be_read(memory: Memory, path: Path) -> None:
    memory.sessions.open(SESSION)
    with Database(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(
            MemoryStoreError, match="memory.db: database is locked: .*; wait for that process to finish"
        ):
            memory.trials.start(TRIAL)
        assert memory.trials.all("demo-hstu-1") == []
        other.execute("ROLLBACK")
    assert memory.trials.start(TRIAL).handle == "t001"


def test_a_file_that_is_locked_when_first_opened_is_reported(path: Path) -> None:
    with Database(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(MemoryStoreError, match="database is locked"):
            Memory(path, busy_seconds=0.05)


def test_a_full_disk_is_reported_and_the_call_stores_nothing(memory: Memory) -> None:
    memory.sessions.open(SESSION)
    db = memory.database.db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(MemoryStoreError, match="full: the disk is full; free some space"):
        memory.sessions.open(SESSION.model_copy(update={"protocol_text": "x" * 100_000}))
    db.execute("PRAGMA max_page_count = 1000000")
    assert memory.sessions.open(SESSION).id == "demo-hstu-2"


def test_a_read_only_file_is_reported_and_can_still_be_read(memory: Memory) -> None:
    memory.sessions.open(SESSION)
    memory.database.db.execute("PRAGMA query_only = ON")  # fails like a read-only file, also for root
    with pytest.raises(MemoryStoreError, match="it is read-only; give this user write access"):
        memory.trials.start(TRIAL)
    assert len(memory.sessions.all()) == 1


def test_a_file_that_is_not_a_database_is_reported_and_unchanged(path: Path) -> None:
    path.write_bytes(b"this is not a database, " * 100)
    with pytest.raises(MemoryStoreError, match="file is not a database: .*; move it away, or restore it"):
        Memory(path)
    assert path.read_bytes() == b"this is not a database, " * 100


def test_a_damaged_file_is_reported(path: Path) -> None:
    with Memory(path) as memory:
        memory.sessions.open(SESSION)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(MemoryStoreError, match="malformed: it is damaged; move it away"), Memory(path) as memory:
        memory.sessions.open(SESSION)


def test_a_missing_directory_and_a_directory_instead_of_the_file_are_reported(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "memory.db", tmp_path):
        with pytest.raises(MemoryStoreError, match="its directory must exist and be writable"):
            Memory(path)


def test_failed_calls_leave_no_open_transaction_and_close_closes_the_connection(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        with Memory(path) as memory:
            with pytest.raises(sqlite3.IntegrityError), memory.database.writing() as db:
                db.execute("INSERT INTO sessions DEFAULT VALUES")
            assert not memory.database.db.conn.in_transaction
            memory.sessions.open(SESSION)
    assert not path.with_name("memory.db-wal").exists()


def test_the_memory_does_not_import_torch_or_polars() -> None:
    program = "import sys, virtualmle.memory.store; sys.exit('torch' in sys.modules or 'polars' in sys.modules)"
    assert run([sys.executable, "-P", "-c", program], check=False).returncode == 0


def test_writes_to_a_removed_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with Memory(path) as memory:
        path.unlink()
        with pytest.raises(MemoryStoreError, match="removed or replaced"), memory.database.writing():
            pass
