"""Fuzzed calls of all tools against a server over stdio; `fuzz_tools.py` says what is sent and what must hold."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz_tools import RANKS, check_answer, check_invariants, fuzz
from tests.quick_home import quick_home
from virtualmle.examiner.ledger import LEDGER
from virtualmle.tools.finalize import finalize
from virtualmle.tools.open_session import open_session
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.workspace import Settings, Workspace


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, tiny_dataset_dir: Path) -> Path:
    """A home after 300 fuzzed calls."""
    folder = tmp_path_factory.mktemp("fuzzed")
    counts = fuzz(folder, tiny_dataset_dir, num_calls=300, seed=16)
    assert counts["valid answered"] > 30 and counts["mutated"] > 60 and counts["raw"] > 10, counts
    return folder / "home"


def test_fuzzed_calls_get_answers_and_leave_a_valid_home(fuzzed: Path) -> None:
    check_invariants(fuzzed)
    with closing(sqlite3.connect(fuzzed / "memory.db")) as database:
        assert database.execute("SELECT count(*) FROM trials WHERE status = 'finished'").fetchone()[0] >= 5
        assert database.execute("SELECT count(*) FROM reflections").fetchone()[0] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_5000_fuzzed_calls_get_answers_and_leave_a_valid_home(
    tmp_path: Path, tiny_dataset_dir: Path, seed: int
) -> None:
    folder = tmp_path / "fuzzed"
    folder.mkdir()
    fuzz(folder, tiny_dataset_dir, num_calls=5000, seed=seed)


def ranks_of_another_trial(home: Path) -> None:
    path = sorted(home.glob(f".virtualmle/sessions/*/t*/{RANKS}"))[0]
    np.save(path, np.ones_like(np.load(path)))


def no_ranks(home: Path) -> None:
    sorted(home.glob(f".virtualmle/sessions/*/t*/{RANKS}"))[0].unlink()


def statement(sql: str, file: str = "memory.db") -> Callable[[Path], None]:
    """Run SQL without the triggers, checks and foreign keys of the database."""

    def change(home: Path) -> None:
        with closing(sqlite3.connect(home / file)) as database:
            for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                database.execute(f"DROP TRIGGER {trigger}")
            database.execute("PRAGMA ignore_check_constraints = ON")
            database.executescript(sql)
            database.commit()

    return change


def a_look(home: Path) -> None:
    folder = home / ".virtualmle" / "vault"
    folder.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(folder / LEDGER)) as ledger:
        ledger.execute(
            "CREATE TABLE look (id INTEGER PRIMARY KEY, session, dataset, dataset_id, fingerprint, look, at)"
        )
        ledger.execute("INSERT INTO look VALUES (1, 'tiny-sasrec-1', 'tiny', 'x', 'y', 1, 'now')")
        ledger.commit()


@pytest.mark.parametrize(
    "tamper",
    [
        pytest.param(ranks_of_another_trial, id="ranks that are not the metrics'"),
        pytest.param(no_ranks, id="a finished trial without ranks"),
        pytest.param(statement("UPDATE sessions SET max_trials = 0"), id="more trials than the budget"),
        pytest.param(statement("UPDATE sessions SET max_train_seconds = 0"), id="more seconds than the budget"),
        pytest.param(statement("UPDATE sessions SET state = 'revealed'"), id="a revealed session that was not frozen"),
        pytest.param(statement("DELETE FROM trials WHERE handle = 't001'"), id="a reflection without its trial"),
        pytest.param(statement("UPDATE trials SET number = number + 1000"), id="a trial that is missing"),
        pytest.param(statement("UPDATE trials SET status = 'running', place = number"), id="an ended trial that runs"),
        pytest.param(a_look, id="a look of a session that is open"),
        pytest.param(lambda home: (home / "link").symlink_to("/"), id="a link"),
        pytest.param(lambda home: (home / ".virtualmle/sessions/other").mkdir(), id="files of an unknown session"),
    ],
)
def test_a_state_that_no_calls_may_lead_to_is_found(
    tamper: Callable[[Path], None], fuzzed: Path, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(fuzzed, tmp_path / "home"))
    check_invariants(home)
    tamper(home)
    with pytest.raises((AssertionError, FileNotFoundError)):
        check_invariants(home)


@pytest.mark.parametrize(
    "text",
    ["Traceback (most recent call last)", 'File "/x/server/wire.py", line 3', "Error executing tool run_trial"],
)
def test_an_answer_from_inside_the_server_is_found(text: str) -> None:
    with pytest.raises(AssertionError):
        check_answer({"id": 1, "result": {"isError": True, "content": [{"type": "text", "text": text}]}})


@pytest.mark.slow
def test_a_session_that_was_trained_and_revealed_has_one_look(tmp_path: Path) -> None:
    ws = Workspace.open(quick_home(tmp_path / "home"), settings=Settings(threads=1, with_reflection=False))
    session = open_session(ws, "demo", "sasrec").session
    run_trial(ws, session, {})
    check_invariants(ws.home)
    finalize(ws, session, "done", confirm=True)
    check_invariants(ws.home)
    statement("DELETE FROM look", f".virtualmle/vault/{LEDGER}")(ws.home)
    with pytest.raises(AssertionError, match="has had 0 looks"):
        check_invariants(ws.home)
