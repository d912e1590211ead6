"""The end of a session is a person's choice: leave it open, extend its budget, finalize it."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.quick_home import environment, quick_home
from virtualmle.cli.app import main
from virtualmle.data.errors import SessionError
from virtualmle.examiner.request import looks
from virtualmle.memory.store import Memory
from virtualmle.report.html import write_report
from virtualmle.tools.open_session import open_session
from virtualmle.tools.workspace import Settings, Workspace

SESSION = "demo-sasrec-1"
TUNE = ["tune", "demo", "--agent", "random", "--threads", "1", "--keep-warm", "60", "--no-finalize"]


def virtualmle(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "virtualmle", *arguments, "--home", str(home)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str, home: Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command that runs in this process."""
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--home", str(home)])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


@pytest.fixture(scope="module")
def left_open(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A home with a session that `tune --no-finalize` left open, its JSON and its standard error."""
    home = quick_home(tmp_path_factory.mktemp("open") / "home")
    down = ["--track", "mlflow=http://127.0.0.1:1"]  # nothing listens there
    done = virtualmle(*TUNE, "--json", "--track", f"tensorboard={home}/logs", *down, home=home)
    assert done.returncode == 0, done.stderr
    return home, json.loads(done.stdout), done.stderr


@pytest.fixture
def home(left_open: tuple[Path, dict[str, Any], str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(left_open[0], tmp_path / "home"))


def test_tune_without_finalize_leaves_the_session_open_and_uses_no_look(
    left_open: tuple[Path, dict[str, Any], str],
) -> None:
    home, result, messages = left_open
    assert (result["session"], result["state"], result["trials"]) == (SESSION, "open", 2)
    assert result["validation"]["ndcg@10"] > 0 and Path(result["report"]).exists()
    assert result["commands"]["finalize"] == f"virtualmle sessions finalize {SESSION} --home {home}"
    assert looks(home) == [] and "stays open" in messages
    assert "look at the test set" not in messages  # nothing will be used, so there is nothing to announce


def test_a_tracker_that_is_down_neither_stops_the_session_nor_the_other_trackers(
    left_open: tuple[Path, dict[str, Any], str],
) -> None:
    home, _, messages = left_open
    assert messages.count("http://127.0.0.1:1 cannot be written") == 1 and "Traceback" not in messages
    complete = f"complete it with: virtualmle track {SESSION} --tensorboard {home}/logs --mlflow http://127.0.0.1:1"
    assert complete in messages
    folders = {path.parent.name for path in (home / "logs").rglob("events.out.tfevents.*")}
    assert {"t001", "t002"} < folders


def test_tuning_again_stops_at_once_and_prints_how_to_go_on(home: Path) -> None:
    done = virtualmle(*TUNE, home=home)
    assert done.returncode == 0, done.stderr
    for command in (f"sessions finalize {SESSION}", f"sessions extend {SESSION} --trials 6", f"export {SESSION}"):
        assert f"virtualmle {command}" in done.stdout
    assert looks(home) == []


def test_an_extended_session_runs_the_added_trials_and_announces_its_look(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, _ = outcome(capsys, "sessions", "extend", SESSION, "--trials", "1", home=home)
    assert code == 0 and "3 trials" in printed and "sessions resume" in printed
    resumed = virtualmle("sessions", "resume", SESSION, "--threads", "1", "--json", home=home)
    assert resumed.returncode == 0, resumed.stderr
    assert "uses the session's one look at the test set (0 looks at this data so far)" in resumed.stderr
    with Memory(home / "memory.db") as memory:
        assert len(memory.trials.all(SESSION)) == 3
    assert len(looks(home)) == 1
    page = write_report(home, SESSION).read_text(encoding="utf-8")
    assert "The budget was extended by 1 trial after 2 trials." in page

    code, _, error = outcome(capsys, "sessions", "extend", SESSION, "--trials", "1", home=home)
    assert code == 1 and "tune demo --backbone sasrec --new" in error and "one more look" in error
    code, _, error = outcome(capsys, "sessions", "finalize", SESSION, "--yes", home=home)
    assert code == 1 and "has been finalized" in error


def test_finalizing_asks_first_and_computes_the_summary(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def finalize(answer: str, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        return outcome(capsys, "sessions", "finalize", SESSION, *options, home=home)

    code, _, error = finalize("")
    assert code == 1 and "add --yes" in error
    code, _, error = finalize("n\n")
    assert code == 1 and "stays open" in error and looks(home) == []
    code, printed, error = finalize("y\n", "--threads", "1", "--json")
    assert code == 0, error
    result = json.loads(printed)
    assert (result["state"], result["look"]) == ("revealed", 1) and result["test"]["ndcg@10"] > 0
    _, shown, _ = outcome(capsys, "memory", "show", SESSION, home=home)
    assert json.loads(shown)["summary"]["text"].startswith("sasrec on demo")


def test_a_frozen_session_is_not_extended_by_the_store_either(tmp_path: Path) -> None:
    ws = Workspace.open(quick_home(tmp_path / "home"), settings=Settings(threads=1))
    session = open_session(ws, "demo", "sasrec").session
    ws.memory.sessions.set_state(session, "open", "frozen")
    with pytest.raises(SessionError, match="takes no more writes"):
        ws.memory.sessions.extend(session, 3, 0.0)
    ws.close()
