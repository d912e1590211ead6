"""Failures around a session: locale, working directory, machine faults, a second run, options without effect."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.quick_home import environment, quick_home
from virtualmle.cli.advice import SessionCommands, in_commands
from virtualmle.cli.call import TOOLS

BASE = [sys.executable, "-P", "-m", "virtualmle"]
OPEN = ("call", "open_session", '{"dataset": "demo", "backbone": "sasrec"}')
DEFAULT = '{"session": "demo-sasrec-1", "changes": {}, "wait_seconds": 200}'
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


def virtualmle(home: Path, *words: str, cwd: Path | None = None, **variables: str) -> Done:
    return subprocess.run(
        [*BASE, *words, "--home", str(home)], env={**environment(), **variables}, cwd=cwd,
        capture_output=True, encoding="utf-8", timeout=240, check=False,
    )  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return quick_home(tmp_path / "home")


def test_every_command_works_under_the_c_locale_in_a_home_with_a_non_ascii_name(tmp_path: Path) -> None:
    home = quick_home(tmp_path / "Empfehlungen-für-日本")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for words in (
        ("data", "prepare", "demo"),
        ("tune", "demo", "--agent", "random", "--threads", "1"),
        ("sessions", "list"),
        ("sessions", "show", "demo-sasrec-1"),
        ("report", "demo-sasrec-1"),
        ("memory", "list"),
        ("call", "list_sessions"),
        ("doctor", "--quick"),
    ):
        done = virtualmle(home, *words, **plain)
        assert done.returncode == 0, (words, done.stderr)
    named = virtualmle(home / "nothing-here", "sessions", "list", **plain)
    assert named.returncode == 1 and str(home) in named.stderr and "Traceback" not in named.stderr


def test_a_home_with_a_name_that_is_not_utf8_is_refused_with_advice(tmp_path: Path) -> None:
    home = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    done = virtualmle(home, "doctor", "--quick", PYTHONIOENCODING="utf-8")
    assert done.returncode == 1 and "is not UTF-8; rename the directory" in done.stderr, done.stderr


def test_trials_and_the_look_run_although_the_working_directory_was_deleted(home: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = "import os, sys; os.rmdir(os.getcwd()); from virtualmle.cli.app import main; main(sys.argv[1:])"
    tune = ["tune", "demo", "--agent", "random", "--threads", "1", "--json", "--home", str(home)]
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, *tune], env=environment(), cwd=gone, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "revealed" and "crash" not in done.stderr

    gone.mkdir()
    relative = [sys.executable, "-P", "-c", script, "sessions", "list"]
    refused = subprocess.run(relative, env=environment(), cwd=gone, capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "which was deleted" in refused.stderr and "Traceback" not in refused.stderr


def test_a_second_run_on_a_session_names_the_process_of_the_first_which_continues(home: Path) -> None:
    command = [*BASE, "tune", "demo", "--agent", "random", "--threads", "1", "--home", str(home)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as one:
        assert one.stderr is not None
        for line in one.stderr:
            if line.startswith("opened"):
                break
        one.send_signal(signal.SIGSTOP)  # otherwise it may end before the second run starts
        try:
            commands = (("tune", "demo"), ("sessions", "resume", "demo-sasrec-1"))
            refused = [virtualmle(home, *words) for words in commands]
        finally:
            one.send_signal(signal.SIGCONT)
        for second in refused:
            assert second.returncode == 1, second.stderr
            assert f"is in use by another run (process {one.pid})" in second.stderr
            assert "`virtualmle sessions show demo-sasrec-1" in second.stderr
        messages = one.stderr.read()
        assert one.wait(timeout=200) == 0, messages
    assert "finalized demo-sasrec-1" in messages


@pytest.mark.slow
def test_a_run_that_resumes_a_session_names_the_options_that_it_cannot_apply(home: Path) -> None:
    assert virtualmle(home, *OPEN).returncode == 0
    assert virtualmle(home, "call", "run_trial", DEFAULT, "--threads", "1").returncode == 0
    done = virtualmle(home, "tune", "demo", "--agent", "random", "--trials", "9", "--seed", "4", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "note: --trials 9, --seed 4 applies to new sessions only" in done.stderr
    assert "a budget of 2 trials and 600 training seconds" in done.stderr and "--new opens another" in done.stderr
    lines = done.stderr.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("     reflection"))
    assert lines[first - 1].startswith("t001/2 "), "a reflection is printed below its trial"
    unchanged = virtualmle(home, "tune", "demo", "--agent", "random", "--new", "--trials", "1", "--threads", "1")
    assert "applies to new sessions only" not in unchanged.stderr
    assert "Best of 1 configuration:" in " ".join(unchanged.stdout.split())


def test_a_missing_device_ends_the_run_before_a_session_is_opened(home: Path) -> None:
    done = virtualmle(home, "tune", "demo", "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "device='cuda' cannot be used here: torch finds no CUDA device" in done.stderr
    assert json.loads(virtualmle(home, "sessions", "list", "--json").stdout)["sessions"] == []


def test_machine_faults_use_no_budget(home: Path) -> None:
    assert virtualmle(home, *OPEN).returncode == 0
    for _ in range(3):
        failed = virtualmle(home, "call", "run_trial", DEFAULT, "--device", "cuda", CUDA_VISIBLE_DEVICES="")
        trial = json.loads(failed.stdout)
        assert (trial["status"], trial["machine_fault"], trial["train_seconds"]) == ("crashed", True, 0)
        assert "needs a CUDA device, and torch finds none" in trial["reason"]
        assert (trial["budget"]["trials_used"], trial["budget"]["train_seconds_used"]) == (0, 0)
        assert "not its configuration, and no budget was used" in trial["next"]
    done = virtualmle(home, "sessions", "resume", "demo-sasrec-1", "--agent", "engineer", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stderr.splitlines() if line.startswith("t0")] == ["t004/2", "t005/2"]
    assert done.stdout.count("machine fault") == 3
    assert "3 machine fault" in (home / ".virtualmle" / "reports" / "demo-sasrec-1.html").read_text(encoding="utf-8")


def test_a_worker_that_cannot_start_ends_the_run_immediately(home: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('libcudart.so is missing')\n")
    path = os.pathsep.join([str(tmp_path / "broken"), *sys.path])
    done = virtualmle(home, "tune", "demo", "--agent", "random", PYTHONPATH=path)
    assert done.returncode == 1 and "Traceback (most recent call last):\n" not in done.stderr
    assert done.stderr.count("t001/2 crash") == 1 and "t002" not in done.stderr
    assert "the worker ended before it could read its trial" in done.stderr
    assert "libcudart.so is missing" in done.stderr and "no budget was used" in done.stderr
    state = json.loads(virtualmle(home, "call", "read_memory", '{"session": "demo-sasrec-1", "view": "state"}').stdout)
    assert state["content"]["budget"]["trials_used"] == 0


@pytest.mark.parametrize(
    "text",
    [
        "session s is revealed: it has been finalized, t1 was selected; open_session(new=true) opens another session",
        "the session is frozen and takes no more trials; open_session(new=true) starts another",
        "the examiner of session s is still running; call finalize again in a minute",
        "no look at the test set was used: the key is gone; fix this and call finalize again",
        "no trial has finished, so there is nothing to select; run_trial with changes={} first",
        "session s is being finalized by another process; see list_sessions",
        "trial t002 is running; wait_trial or cancel_trial first",
        "30 trials in a row were refused; the last one: all 2 trials of the budget are used; call finalize",
        "one trial at a time: t002 is running; call wait_trial or cancel_trial for it first",
    ],
)
def test_advice_at_the_terminal_names_commands_instead_of_tools(text: str) -> None:
    advice = in_commands(text, SessionCommands(Path("/home dir"), "demo", "hstu", "demo-hstu-1"))
    tools = {*TOOLS, "call finalize"} - {"finalize"}  # "has been finalized" is allowed
    assert "`virtualmle " in advice and not [tool for tool in tools if tool in advice], advice
