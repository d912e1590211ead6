"""Comparisons as a user runs them: real sessions on the demo, kills at random moments, Ctrl-C, and every exhibit."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.language_models import engineer_answer
from tests.quick_home import QUICK_SANDBOX, environment
from tests.scripted_endpoint import Answer, Call, Received, ScriptedEndpoint
from virtualmle.compare.outcome import RESULT, SessionResult
from virtualmle.examiner.request import looks

COMMAND = [sys.executable, "-P", "-m", "virtualmle"]
ARMS = "engineer,random"


def words(home: Path, out: str, *further: str) -> list[str]:
    """A comparison of two arms over two trials under the quick protocol."""
    return [
        "compare", "--agents", ARMS, "--backbones", "sasrec", "--seeds", "1", "--trials", "2", "--jobs", "2",
        "--home", str(home), "--out", str(home / out), *further,
    ]  # fmt: skip


def run(*command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *command], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done


def results(out: Path) -> dict[str, SessionResult]:
    """The results of all sessions below `out`, by key."""
    read = [SessionResult.model_validate_json(path.read_bytes()) for path in sorted(out.glob(f"sessions/*/{RESULT}"))]
    return {result.key: result for result in read}


def course_of(result: SessionResult) -> list[dict[str, Any]]:
    """What a session did, without what the clock decides."""
    return [trial.model_dump(exclude={"train_seconds", "wall_seconds"}) for trial in result.trials]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the quick protocol; all tests share it, so that the demo has the same ids in all of them."""
    folder = tmp_path_factory.mktemp("compare") / "home"
    folder.mkdir()
    (folder / "SANDBOX.md").write_text(QUICK_SANDBOX, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def compared(home: Path) -> Path:
    """The directory of a comparison that ran without disturbance."""
    done = run(*words(home, "calm"))
    assert "## Two clocks" in done.stdout and "compare.html" in done.stdout
    return home / "calm"


def test_a_comparison_runs_each_session_once_with_one_look_and_writes_its_report(compared: Path, home: Path) -> None:
    found = results(compared)
    assert set(found) == {"engineer.sasrec.demo.0", "random.sasrec.demo.0"}
    for result in found.values():
        assert result.state == "revealed" and len(result.trials) == 2 and result.final > 0
        assert result.test is not None and result.look == 1 and result.wall_seconds > 0
    names = {path.name for path in compared.iterdir()}
    assert {"compare.html", "compare.md", "compare.json", "compare-curves.svg", "compare-curves.png"} <= names
    before = {path: path.stat().st_mtime_ns for path in compared.glob(f"sessions/*/{RESULT}")}
    again = run(*words(home, "calm", "--json"))
    assert {path: path.stat().st_mtime_ns for path in before} == before and again.stderr == ""
    summary = json.loads(again.stdout)["summary"]
    assert [row["arm"] for row in summary["rows"]] == ["engineer", "random"]


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing_and_nothing_runs_twice(compared: Path, home: Path) -> None:
    moments, kills = random.Random(13), 0
    for _ in range(30):
        process = subprocess.Popen(
            [*COMMAND, *words(home, "killed")], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            code = process.wait(2.5 + 4 * moments.random() if kills < 3 else 120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert code == 0
        break
    assert kills >= 2
    calm, killed = results(compared), results(home / "killed")
    assert {key: course_of(result) for key, result in calm.items()} == {
        key: course_of(result) for key, result in killed.items()
    }
    for key, result in killed.items():
        assert (result.test, result.look, result.state) == (calm[key].test, 1, "revealed")
        folder = next((home / "killed" / "sessions").glob(f"{key}.*"))
        assert len(looks(folder)) == 1
        assert len(list((folder / ".virtualmle" / "sessions" / result.session).glob("t0*"))) == 2


@pytest.mark.slow
def test_kills_of_a_comparison_with_a_language_model_pay_for_no_reply_twice(home: Path) -> None:
    moments = random.Random(5)
    with ScriptedEndpoint(lambda received: engineer_answer(received.prompt)) as endpoint:
        command = [*words(home, "talking", "--no-look"), "--agents", "llm@rules-1", "--base-url", endpoint.openai_url]
        for _ in range(3):
            process = subprocess.Popen([*COMMAND, *command], env=environment(), stderr=subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3.0 + 3 * moments.random())
            process.kill()
            process.wait()
        run(*command)
        answered, tokens = endpoint.answered, dict(endpoint.tokens)
    (result,) = results(home / "talking").values()
    (use,) = result.models
    assert use.calls <= answered <= use.calls + use.lost  # of a killed process the reply may have been on its way
    if not use.lost:
        assert use.input_tokens == sum(tokens.get(kind, 0) for kind in ("input", "cached", "cache_write"))
    assert len(result.trials) == 2 and [trial.trial for trial in result.trials] == ["t001", "t002"]


def test_a_language_model_corrects_a_refused_call_although_no_test_set_is_looked_at(home: Path) -> None:
    def answer(received: Received) -> Answer:
        unknown_trial = Answer(calls=[Call("read_memory", {"view": "trial", "trial": "t099"})])
        return unknown_trial if received.number == 1 else engineer_answer(received.prompt)

    with ScriptedEndpoint(answer) as endpoint:
        options = ["--agents", "llm@rules-2", "--base-url", endpoint.openai_url]
        run(*words(home, "corrected", "--no-look"), *options)
        assert "t099" in endpoint.requests[1].prompt
    (result,) = results(home / "corrected").values()
    assert result.state == "frozen" and len(result.trials) == 2


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
def test_ctrl_c_ends_the_sessions_and_says_how_to_go_on(home: Path) -> None:
    command = [*COMMAND, *words(home, "interrupted", "--no-look")]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    sessions = home / "interrupted" / "sessions"
    while len(list(sessions.glob("*/session.log"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on where it was" in errors
    assert not list(sessions.glob(f"*/{RESULT}"))
    run(*words(home, "interrupted", "--no-look"))
    found = results(home / "interrupted")
    assert len(found) == 2
    assert all(result.state == "frozen" and result.test is None and result.look is None for result in found.values())


def test_a_second_comparison_in_the_same_directory_is_refused(home: Path) -> None:
    from virtualmle.compare.lock import locked  # noqa: PLC0415

    with locked(home / "busy" / "compare.lock"):
        done = run(*words(home, "busy"), code=1)
    assert f"is in use by process {os.getpid()}" in done.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--agents", "nobody"], "names the agent 'nobody'"), (["--backbones", "gru"], "backbone='gru' is not known"),
        (["--set", "epochs=1"], "is not KNOB.low="), (["--sandbox", "nothing"], "no page is named 'nothing'"),
        (["--agents", "llm"], "name it, as in llm@MODEL"), (["--agents", "engineer@gpt"], "but engineer asks none"),
        (["--memory-from", "demo"], "no arm starts with a memory"),
    ],
)  # fmt: skip
def test_a_comparison_that_cannot_be_run_is_refused_in_one_line(home: Path, options: list[str], text: str) -> None:
    done = run(*words(home, "refused"), *options, code=1)
    assert text in done.stderr and done.stderr.count("\n") == 1


def test_a_failed_session_is_reported_and_the_others_are_kept(compared: Path, home: Path) -> None:
    shutil.copytree(compared / "sessions", home / "failed" / "sessions")
    folder = next((home / "failed" / "sessions").glob("engineer.*"))
    (folder / RESULT).unlink()
    (folder / "memory.db").write_bytes(b"not a database, but long enough to be one" * 100)
    done = run(*words(home, "failed"), code=1)
    assert "session engineer.sasrec.demo.0 failed" in done.stderr and "memory.db" in done.stderr
    assert "1 session failed and are missing: engineer.sasrec.demo.0" in done.stdout
    assert set(results(home / "failed")) == {"random.sasrec.demo.0"}


GRID = QUICK_SANDBOX.replace("256 … 512", "512").replace("8 … 32", "8, 16").replace("0 … 20", "0, 4, 16")


@pytest.fixture(scope="module")
def table(home: Path) -> Path:
    """A replay table of the demo with six cells of one backbone."""
    (home / "grid.md").write_text(GRID.replace("1 … 1", "1"), encoding="utf-8")
    file = home / "demo.parquet"
    build = ("--page", str(home / "grid.md"), "--backbones", "hstu", "--out", str(file), "--home", str(home))
    run("replay", "build", "demo", *build)
    return file


def test_a_replayed_comparison_needs_no_data_and_has_the_recorded_seconds(home: Path, table: Path) -> None:
    folders = []
    for number in (1, 2):
        other = home / f"elsewhere{number}"
        done = run(
            "compare", "--replay", str(table), "--agents", "random", "--backbones", "hstu", "--seeds", "1",
            "--trials", "6", "--home", str(other), "--out", str(other / "out"),
        )  # fmt: skip
        assert "replayed from demo.parquet" in done.stdout and "A table has no test set" in done.stdout
        assert not (other / ".virtualmle" / "data").exists()
        folders.append(results(other / "out")["random.hstu.demo.0"])
    first, second = folders
    assert first.state == "frozen" and first.test is None
    assert len(first.trials) == 6 and first.trials == second.trials  # all six cells, with equal seconds
    refused = run("compare", "--replay", str(table), "--datasets", "office", "--home", str(home), code=1)
    assert "replays dataset 'demo'" in refused.stderr


def exhibit(
    home: Path, name: str, *options: str, out: str = "exhibits", backbone: str = "sasrec"
) -> tuple[str, dict[str, SessionResult]]:
    """Run an exhibit at demo scale with the smallest budget; returns its Markdown and all sessions of the directory."""
    folder = home / out
    run(
        "exhibit", name, "--backbones", backbone, "--seeds", "1", "--trials", "2", "--jobs", "2", "--home", str(home),
        "--out", str(folder), *options,
    )  # fmt: skip
    assert (folder / f"{name}.html").exists() and (folder / f"{name}-curves.png").exists()
    return (folder / f"{name}.md").read_text(encoding="utf-8"), results(folder)


NO_CAP = ("--set", "transition_weight.high=20")  # the quick protocol is capped already


@pytest.mark.slow
def test_table_1_shows_the_plain_default_the_arms_and_what_others_published(home: Path) -> None:
    text, _ = exhibit(home, "table1", "--agents", "engineer", *NO_CAP)
    for row in ("| demo sasrec | plain default | 1 |", "| demo sasrec | engineer | 1 |", "| Beauty | TIGER | [2] |"):
        assert row in text
    assert "arXiv 2512.24762" in text and "none is quoted" in text
    assert len(list((home / "exhibits" / "sessions").glob(f"*/{RESULT}"))) == 2


def test_table_3_shows_every_ablation(home: Path, table: Path) -> None:
    text, found = exhibit(home, "table3", "--replay", str(table), out="replayed", backbone="hstu")
    arms = ("engineer", "engineer+without-reflection", "engineer+without-memory")
    for arm in (*arms, "engineer+without-reflection+without-memory"):
        assert f"demo hstu | {arm} |" in text.replace("**", "") and len(found[f"{arm}.hstu.demo.0"].trials) == 2


def test_figure_2_carries_the_cognition_of_another_dataset(home: Path) -> None:
    text, found = exhibit(home, "figure2", "--agents", "engineer+carried,engineer", *NO_CAP)
    assert "engineer+carried" in text and "demo-source" in text
    assert found["source.sasrec.demo-source.0"].look is None
    folder = next((home / "exhibits" / "sessions").glob("engineer_carried.*"))
    from virtualmle.memory.store import Memory  # noqa: PLC0415

    with Memory(folder / "memory.db") as memory:
        assert any("demo-source" in summary.dataset for summary in memory.summaries.all())


def test_table_2_is_run_in_the_papers_space(home: Path) -> None:
    text, found = exhibit(home, "table2", "--agents", ARMS, "--no-look")
    assert text.index("## Two clocks") < text.index("## Results")
    knobs = {"lr", "weight_decay", "dropout", "hidden_dim", "num_blocks", "num_heads"}
    tried = {knob for result in found.values() for trial in result.trials for knob in trial.changes}
    assert tried & knobs


def test_table_4_counts_every_token_that_the_endpoint_counts(home: Path) -> None:
    with ScriptedEndpoint(lambda received: engineer_answer(received.prompt)) as endpoint:
        options = ("--models", "rules-1", "--base-url", endpoint.openai_url, "--no-look", *NO_CAP)
        text, found = exhibit(home, "table4", *options, out="talked")
        tokens, asked = dict(endpoint.tokens), len(endpoint.requests)
        exhibit(home, "table4", *options, out="talked")
        assert len(endpoint.requests) == asked  # a session that is over asks no model again
    (use,) = found["llm@rules-1.sasrec.demo.0"].models
    sent = sum(tokens.get(kind, 0) for kind in ("input", "cached", "cache_write"))
    assert use.input_tokens == sent > 1000 and use.output == tokens["output"]
    assert use.calls == asked and use.model == "rules-1"
    assert text.index("## Language models") < text.index("## Results")
    assert f"| demo sasrec | llm@rules-1 | {asked} | {use.input_tokens:,} |" in text


def test_table_4_needs_a_language_model(home: Path) -> None:
    done = run("exhibit", "table4", "--home", str(home), code=1)
    assert "--models" in done.stderr
    assert "table9" in run("exhibit", "table9", "--home", str(home), code=1).stderr
