"""Complete sessions on the command line, in real processes: tune, interrupt, resume, show, report, doctor."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.quick_home import environment, quick_home
from virtualmle.cli.app import main

BASE = [sys.executable, "-P", "-m", "virtualmle"]
OutputOf = Callable[..., str]


def virtualmle(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BASE, *arguments], env=environment(), capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A home with one finalized session, its result, and what tune wrote on stderr."""
    home = quick_home(tmp_path_factory.mktemp("tuned"))
    options = ["--threads", "1", "--keep-warm", "60"]  # so that the second trial does not load torch again
    done = virtualmle("tune", "demo", "--agent", "random", *options, "--home", str(home), "--json")
    assert done.returncode == 0, done.stderr
    return home, json.loads(done.stdout), done.stderr


@pytest.fixture
def output_of(capsys: pytest.CaptureFixture[str], tuned: tuple[Path, dict[str, Any], str]) -> OutputOf:
    """The standard output of a command over the tuned home, which must succeed."""

    def command(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--home", str(tuned[0])])
        captured = capsys.readouterr()
        assert left.value.code in (0, None), captured.err
        return captured.out

    return command


def test_tune_prints_validation_and_test_figures_and_writes_a_report(tuned: tuple[Path, dict[str, Any], str]) -> None:
    home, result, _ = tuned
    assert (result["session"], result["state"], result["look"]) == ("demo-sasrec-1", "revealed", 1)
    assert 0 < result["validation"]["ndcg@10"] < 1 and 0 < result["test"]["ndcg@10"] < 1
    assert result["selection_inflation"] > 0
    report = Path(result["report"])
    text = report.read_text(encoding="utf-8")
    assert report.is_relative_to(home) and "demo-sasrec-1" in text
    assert "item transitions alone" in text and "The most popular tenth of the items" in text


def test_progress_goes_to_stderr_as_plain_lines_without_a_terminal(
    tuned: tuple[Path, dict[str, Any], str],
) -> None:
    lines = tuned[2].splitlines()
    assert lines[0].startswith("registered demo: ") and lines[1].startswith("  5-core: ")
    assert lines[3].startswith("  split: leave-one-out")
    assert lines[4].startswith("opened demo-sasrec-1: sasrec on demo")
    assert lines[5].startswith("note: at its end, this run finalizes demo-sasrec-1")
    assert [line.split()[0] for line in lines if line.startswith("t0")] == ["t001/2", "t002/2"]
    assert all(" NDCG@10 0." in line for line in lines if line.startswith("t0"))
    assert lines[-1].startswith("finalized demo-sasrec-1") and "\x1b" not in tuned[2]


def test_sessions_are_listed_and_shown(output_of: OutputOf) -> None:
    assert "demo-sasrec-1" in output_of("sessions", "list")
    (listed,) = json.loads(output_of("sessions", "list", "--json"))["sessions"]
    assert (listed["state"], listed["trials"]) == ("revealed", 2)
    assert "NDCG@10" in output_of("sessions", "show", "demo-sasrec-1")
    shown = json.loads(output_of("sessions", "show", "demo-sasrec-1", "--json"))
    assert [trial["handle"] for trial in shown["trials"]] == ["t001", "t002"]
    assert shown["session"]["client"] == "virtualmle-random"
    measured = [trial["outcome"]["details"]["baselines"] for trial in shown["trials"]]
    assert set(measured[0]) == {"popularity", "transitions", "cooccurrence"} and not measured[1]  # once is enough


def test_memory_is_listed_searched_and_shown(output_of: OutputOf) -> None:
    assert "demo-sasrec-1" in output_of("memory", "list")
    assert json.loads(output_of("memory", "list", "--json"))["summaries"] == ["demo-sasrec-1"]
    found = json.loads(output_of("memory", "search", "plain", "default", "--json"))
    assert {row["source"] for row in found} == {"summary"}  # the random agent writes no reflections
    assert "[summary" in output_of("memory", "search", "sasrec")
    assert "nothing found" in output_of("memory", "search", "zebra")
    shown = json.loads(output_of("memory", "show", "demo-sasrec-1"))
    assert shown["summary"]["text"].startswith("sasrec on demo") and shown["reflections"] == []


def test_tools_can_be_called_without_a_server(output_of: OutputOf) -> None:
    assert json.loads(output_of("call", "list_sessions"))["sessions"][0]["session"] == "demo-sasrec-1"
    view = json.loads(output_of("call", "read_memory", '{"session": "demo-sasrec-1", "view": "trajectory"}'))
    assert len(view["content"]["trials"]) == 2
    text = output_of("call", "read_memory", '{"session": "demo-sasrec-1", "view": "trajectory"}', "--text")
    assert text.startswith("demo-sasrec-1: trial, changes over base") and "\nt002 " in text


def test_the_report_is_written_again_on_demand(output_of: OutputOf, tuned: tuple[Path, dict[str, Any], str]) -> None:
    Path(tuned[1]["report"]).unlink()
    assert Path(output_of("report", "demo-sasrec-1").strip()) == Path(tuned[1]["report"])
    assert Path(tuned[1]["report"]).exists()


def test_the_doctor_accepts_a_home_with_a_finalized_session(output_of: OutputOf) -> None:
    found = json.loads(output_of("doctor", "--quick", "--json"))
    findings = {finding["check"]: finding for finding in found["findings"]}
    assert {finding["status"] for finding in findings.values()} <= {"ok", "warn"}
    assert {"python", "torch", "cuda", "threads", "home", "memory", "protocol", "environment", "vault", "plain targets",
            "isolation"} <= set(findings)  # fmt: skip
    assert findings["memory"]["detail"].startswith("1 session,") and "L1" in findings["isolation"]["detail"]
    assert (found["level"], found["attacks"]) == ("L1", [])


@pytest.mark.parametrize("parallel", ["1", "2"])
def test_a_tune_whose_server_is_killed_says_how_to_resume(tmp_path: Path, parallel: str) -> None:
    home = quick_home(tmp_path / "home")
    options = ["--agent", "random", "--parallel", parallel, "--threads", "1", "--home", str(home)]
    command = [*BASE, "tune", "demo", *options]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as tuning:
        assert tuning.stderr is not None
        for line in tuning.stderr:
            if line.startswith("opened"):
                (server,) = [each for each in psutil.Process(tuning.pid).children() if "serve" in each.cmdline()]
                server.kill()
                break
        messages = tuning.stderr.read()
        assert tuning.wait(timeout=120) == 1, messages
    (line,) = [line for line in messages.splitlines() if "the server has ended" in line]
    assert f"virtualmle sessions resume demo-sasrec-1 --home {home}" in line
    assert "Traceback" not in messages and "please report" not in messages


def test_an_interrupted_tune_prints_how_to_resume_and_resuming_completes_it(tmp_path: Path) -> None:
    home = quick_home(tmp_path / "home")
    command = [*BASE, "tune", "demo", "--threads", "1", "--seed", "3", "--home", str(home)]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as tuning:
        assert tuning.stderr is not None
        for line in tuning.stderr:
            if line.startswith("t001/"):
                tuning.send_signal(signal.SIGINT)
                break
        messages = tuning.stderr.read()
        assert tuning.wait(timeout=120) == 130, messages
    assert f"virtualmle sessions resume demo-sasrec-1 --home {home}" in messages and "Traceback" not in messages

    resumed = virtualmle("sessions", "resume", "demo-sasrec-1", "--threads", "1", "--home", str(home))
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed demo-sasrec-1" in resumed.stderr and "t002/2" in resumed.stderr
    assert "look 1" in resumed.stdout and "report: " in resumed.stdout

    again = virtualmle("sessions", "resume", "demo-sasrec-1", "--home", str(home))
    assert again.returncode == 1 and "has been finalized" in again.stderr and "Traceback" not in again.stderr
    for command in ("sessions show demo-sasrec-1", "report demo-sasrec-1", "tune demo --backbone sasrec --new"):
        assert f"`virtualmle {command} --home {home}`" in again.stderr
