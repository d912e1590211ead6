"""The command line: help texts, wrong input, exit codes."""

import gzip
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError
from typer.main import get_command

from tests.quick_home import QUICK_SANDBOX, environment
from virtualmle import __version__
from virtualmle.cli import call
from virtualmle.cli.app import app, main
from virtualmle.cli.call import _invoke
from virtualmle.cli.sessions import agent_of
from virtualmle.data.errors import ArgumentError
from virtualmle.memory.records import SessionRecord
from virtualmle.memory.store import Memory
from virtualmle.server.app import TOOLS

Run = Callable[..., tuple[int, str, str]]


class Row(BaseModel):
    """A value that a tool constructs."""

    value: int


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command in this process, in a fresh home; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return command


def commands(command: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The names of every command and group of the command line, as tuples of words."""
    inner = getattr(command, "commands", {})
    return [path, *(words for name, child in inner.items() for words in commands(child, (*path, name)))]


def test_the_documented_commands_exist() -> None:
    expected = (
        "tune; serve; call; data add; data list; data prepare; data show; sessions list; sessions show; "
        "sessions resume; memory list; memory search; memory show; report; doctor"
    )
    assert set(expected.split("; ")) <= {" ".join(words) for words in commands(get_command(app))}


@pytest.mark.parametrize("words", commands(get_command(app)), ids=" ".join)
def test_the_help_of_every_command_has_an_example(run: Run, words: tuple[str, ...]) -> None:
    code, out, _ = run(*words, "--help")
    assert code == 0
    assert "Example: virtualmle" in " ".join(out.split())


def test_the_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version")[:2] == (0, f"{__version__}\n")


def test_help_imports_no_heavy_library() -> None:
    probe = (
        "import sys, virtualmle.cli.app; virtualmle.cli.app.build(); "
        "heavy = ('torch', 'polars', 'mcp', 'matplotlib', 'sqlite_utils', 'cryptography'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", probe], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_serve_loads_no_other_command_and_neither_polars_nor_pandas(tmp_path: Path) -> None:
    (tmp_path / "SANDBOX.md").write_text("no protocol")  # so that it ends before it serves
    probe = (
        "import sys, virtualmle.cli.app as app\n"
        "try: app.main(['serve', '--home', sys.argv[1]])\n"
        "finally: print(*sys.modules)"
    )
    command = [sys.executable, "-P", "-c", probe, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    loaded = set(done.stdout.split())
    assert done.returncode == 1 and {"mcp.server", "sqlite_utils", "virtualmle.cli.serve"} <= loaded, done.stderr
    others = {"virtualmle.cli.tune", "virtualmle.cli.bench"}
    assert not (others | {"rich", "pandas", "polars", "torch", "optuna"}) & loaded


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("tune",),
        ("tune", "demo", "--trials", "0"),
        ("tune", "demo", "--seed", "x"),
        ("serve", "--transport", "pigeon"),
        ("call", "drop_tables"),
        ("call", "open_session", "{not json"),
        ("call", "open_session", "[1]"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "") and err


def refused(outcome: tuple[int, str, str], *expected: str) -> str:
    """Assert that the outcome is a user error with one line that contains `expected`; returns the line."""
    code, out, err = outcome
    assert (code, out) == (1, ""), err
    assert err.count("\n") == 1 and err.startswith("virtualmle: "), err
    for words in expected:
        assert words in err
    return err


def test_an_unknown_dataset_is_refused_with_the_known_names(run: Run) -> None:
    refused(run("tune", "nowhere"), "'nowhere'", "demo", "data add")
    refused(run("data", "show", "nowhere"), "'nowhere'")
    refused(run("tune", "no/such/file.csv"), "no/such/file.csv")


@pytest.mark.parametrize(
    "option", [("--agent", "oracle"), ("--backbone", "bert"), ("--device", "abacus")], ids=" ".join
)
def test_an_unknown_choice_is_refused_before_anything_is_prepared(run: Run, option: tuple[str, str]) -> None:
    refused(run("tune", "demo", *option), option[1])
    assert not Path(".virtualmle").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--launcher", "slurm"), "choose one of local, ray"),
        (("--address", "10.0.0.5:6379"), "add --launcher ray"),
        (("--launcher", "ray", "--address", "local"), "would start a cluster"),
        (("--launcher", "ray", "--device", "cuda:1"), "use cuda, cpu or auto"),
    ],
)
def test_a_launcher_that_cannot_be_used_is_refused(run: Run, options: tuple[str, ...], reason: str) -> None:
    if "ray" in options:
        pytest.importorskip("ray", reason="needs Ray: pip install 'virtualmle[ray]'")
    code, _, errors = run("tune", "demo", *options)
    assert code == 1 and reason in errors


def test_ray_must_be_installed_to_be_chosen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, errors = run("tune", "demo", "--launcher", "ray")
    assert code == 1 and "pip install 'virtualmle[ray]'" in errors


def test_missing_columns_are_named(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("who,what,when\n" + "a,b,2024-05-31\n" * 30)
    error = refused(run("data", "add", "mine", str(log)), "log.csv", "'who', 'what', 'when'")
    assert error.endswith(f"virtualmle data add mine {log} --user who --item what --timestamp when\n")
    refused(run("data", "add", "mine", str(log), "--user", "nobody", "--item", "what", "--timestamp", "when"), "nobody")


def test_an_empty_file_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    refused(run("data", "add", "mine", "empty.csv"), "empty.csv")


def test_a_corrupt_archive_is_refused(run: Run, tmp_path: Path) -> None:
    archive = gzip.compress(
        b"user,item,timestamp\n" + b"".join(b"u%d,i%d,%d\n" % (n % 97, n % 89, n) for n in range(9000))
    )
    (tmp_path / "cut.csv.gz").write_bytes(archive[: len(archive) // 2])
    (tmp_path / "noise.csv.gz").write_bytes(b"no archive at all")
    refused(run("data", "add", "mine", "cut.csv.gz"), "cut.csv.gz")
    refused(run("data", "add", "mine", "noise.csv.gz"), "noise.csv.gz")


def test_a_log_too_small_for_the_five_core_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "small.csv").write_text(
        "user,item,timestamp\n" + "".join(f"u{n % 5},i{n % 7},{n}\n" for n in range(20))
    )
    refused(run("data", "add", "mine", "small.csv"), "5")
    refused(run("tune", "small.csv"), "5")
    assert run("data", "list", "--json")[1].find("small") == -1  # no part of it is registered


@pytest.mark.parametrize(
    "words", [("sessions", "resume"), ("sessions", "show"), ("report",), ("memory", "show")], ids=" ".join
)
def test_an_unknown_session_is_refused(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    refused(run(*words, "nowhere-sasrec-1"), "memory.db")  # a home without one
    with Memory(tmp_path / "memory.db"):
        pass
    refused(run(*words, "nowhere-sasrec-1"), "nowhere-sasrec-1")


def test_reading_a_home_without_memory_does_not_create_one(run: Run, tmp_path: Path) -> None:
    refused(run("memory", "list"), "memory.db")
    refused(run("sessions", "list"), "memory.db")
    assert not (tmp_path / "memory.db").exists()


@pytest.mark.parametrize("words", [("tune", "demo"), ("serve",), ("call", "list_sessions")], ids=" ".join)
def test_a_malformed_protocol_is_refused_with_its_line_number(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    broken = QUICK_SANDBOX.replace("| `keep_z` | 1.0 |", "| `keep_z` | -1.0 |")
    (tmp_path / "SANDBOX.md").write_text(broken)
    line = broken.splitlines().index("| `keep_z` | -1.0 |") + 1
    refused(run(*words), f"SANDBOX.md:{line}: ")


def test_the_sandbox_option_replaces_the_protocol_of_the_home(run: Run, tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("no blocks")
    refused(run("tune", "demo", "--sandbox", str(tmp_path / "other.md")), "other.md")
    refused(run("tune", "demo", "--sandbox", str(tmp_path / "absent.md")), "absent.md")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="file permissions do not bind root")
def test_a_read_only_home_is_refused(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "fixed"
    home.mkdir(mode=0o555)
    refused(run("tune", "demo", "--home", str(home)), str(home))


def test_a_home_that_is_a_file_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(run("tune", "demo", "--home", str(tmp_path / "file")), "file")


def test_a_port_in_use_is_refused(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(run("serve", "--transport", "http", "--port", port), port, "--port")


def test_invalid_arguments_of_a_tool_are_refused(run: Run) -> None:
    refused(run("call", "open_session", '{"dataset": "demo", "backbone": "sasrec", "seed": 7}'), "seed")
    refused(run("call", "open_session", '{"dataset": "demo", "backbone": "bert"}'), "backbone")
    refused(run("call", "open_session", "{}"), "dataset", "backbone")


def test_an_internal_error_exits_with_3_and_a_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Path:
        raise RuntimeError("a bug")

    monkeypatch.setattr("virtualmle.report.html.write_report", broken)
    code, _, err = run("report", "any")
    assert code == 3 and "Traceback" in err and "RuntimeError: a bug" in err


def test_a_log_is_registered_with_guessed_columns(run: Run, tmp_path: Path) -> None:
    rows = "".join(f"u{u},i{(u * 3 + k) % 12},{1_600_000_000 + 86_400 * k}\n" for u in range(40) for k in range(8))
    (tmp_path / "shop.csv").write_text("customer_id,product_id,time\n" + rows)
    code, out, err = run("data", "add", "shop", "shop.csv")
    assert code == 0, err
    assert "40 users, 12 items" in out and "user from 'customer_id'" in out
    assert '"shop"' in run("data", "list", "--json")[1] and "shop" in run("data", "list")[1]
    assert "length_mean" in run("data", "show", "shop")[1]
    refused(run("data", "add", "shop", "shop.csv"), "exists already")


def test_the_agent_of_a_session_is_derived_from_the_client_name() -> None:
    record = SessionRecord(
        id="s", dataset="d", dataset_id="i", backbone="hstu", protocol_hash="h", protocol_text="t", max_trials=1,
        max_train_seconds=1, profile={}, client="virtualmle-random",
    )  # fmt: skip
    assert agent_of(record) == "random"
    assert agent_of(record.model_copy(update={"client": "claude-code"})) == "engineer"


@pytest.mark.parametrize("text", [r'{"session": "\ud800"}', "[" * 100_000])
def test_json_that_cannot_be_parsed_is_a_usage_error(text: str, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "virtualmle", "call", "list_sessions", "-", "--home", str(tmp_path)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "not JSON" in done.stderr


def test_the_call_command_offers_the_tools_of_the_server() -> None:
    assert list(call.TOOLS) == [tool.__name__ for tool, _ in TOOLS]


def faulty_tool(ws: object, number: int) -> Row:
    """A tool with a bug: the value that it constructs is invalid for every number."""
    return Row.model_validate({"value": f"{ws} and {number}"})


def test_an_invalid_value_inside_a_tool_is_not_reported_as_an_invalid_argument() -> None:
    with pytest.raises(ArgumentError, match="number='x' is not an integer"):
        _invoke(faulty_tool, None, {"number": "x"})
    with pytest.raises(ValidationError, match="Row"):
        _invoke(faulty_tool, None, {"number": 1})


def test_parallel_of_resume_is_said_to_hold_from_now_on(run: Run) -> None:
    words = " ".join(run("sessions", "resume", "--help")[1].split())
    assert "Trials of the session at a time from now on" in words and "Trials of a new session" not in words
