"""Long-term memory on the command line: export and import, and the options that restrict or shuffle it."""

import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.quick_home import environment, quick_home
from virtualmle.cli.app import main
from virtualmle.compare.record import RECIPES
from virtualmle.memory.records import RuleRecord
from virtualmle.memory.store import Memory
from virtualmle.tools.finalize import finalize
from virtualmle.tools.open_session import open_session
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.tools.write_reflection import RuleInput, write_reflection

TUNE = ["tune", "demo", "--threads", 1, "--keep-warm", 60]  # so that the second trial does not load torch again


def virtualmle(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "virtualmle", *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)


def output_of(*arguments: object) -> str:
    """The standard output of a read-only command, which runs in this process."""
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    assert left.value.code in (0, None)
    return printed.getvalue()


@pytest.fixture(scope="module")
def tuned_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one finalized session, in which a smaller batch helped; its rule recommends it."""
    home = quick_home(tmp_path_factory.mktemp("tuned"))
    ws = Workspace.open(home, settings=Settings(threads=1))
    session = open_session(ws, "demo", "sasrec").session
    first = run_trial(ws, session, {}, wait_seconds=200)
    write_reflection(ws, session, first.trial, "unclear", "optimisation", "the baseline")
    second = run_trial(ws, session, {"batch_size": 256}, wait_seconds=200)
    rule = RuleInput(kind="prefer", statement="small batches help", condition="batch_size <= 256", evidence=["t002"])
    write_reflection(ws, session, second.trial, "yes", "optimisation", "more steps help", evidence=["t002"], rule=rule)
    finalize(ws, session, "small batches help", confirm=True)
    ws.close()
    return home


@pytest.fixture
def home(tuned_home: Path, tmp_path: Path) -> Path:
    """A copy of the home with one session."""
    return Path(shutil.copytree(tuned_home, tmp_path / "home"))


def rules_of(home: Path) -> list[dict[str, Any]]:
    rules = json.loads(output_of("memory", "list", "--json", "--home", home))["rules"]
    return [{name: rule[name] for name in ("statement", "condition", "support", "dataset")} for rule in rules]


def test_exported_cognition_is_imported_and_counted_once(home: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "cognition.json", tmp_path / "other"
    exported = virtualmle("memory", "export", file, "--home", home)
    assert exported.returncode == 0 and "1 rule, 1 summary" in exported.stdout
    written = file.read_bytes()
    again = virtualmle("memory", "export", file, "--home", home)
    assert again.returncode == 1 and "name a new file" in again.stderr and file.read_bytes() == written
    assert list(tmp_path.glob(".cognition*")) == []  # no temporary file is left beside it

    first, second = (virtualmle("memory", "import", file, "--home", other) for _ in range(2))
    assert first.stdout.startswith("1 rules, 1 counts, 1 summaries") and first.returncode == 0, first.stderr
    assert second.stdout.startswith("0 rules, 0 counts, 0 summaries, 0 effects, 0 configurations")
    assert rules_of(other) == rules_of(home) != []


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "JSON"), ('{"schema": 1}', "cognition"), ("[1, 2", "JSON")],
    ids=["empty", "other-json", "truncated"],
)
def test_a_file_without_cognition_is_refused_in_one_line(
    home: Path, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "broken.json"
    file.write_text(content)
    before = rules_of(home)
    refused = virtualmle("memory", "import", file, "--home", home)
    assert refused.returncode == 1 and message in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert rules_of(home) == before


def opened(home: Path, *flags: str) -> tuple[dict[str, Any], list[str]]:
    """The record of a new session that was tuned with these flags, and the knobs that its trials changed."""
    tuned = virtualmle(*TUNE, "--new", "--trials", 2, "--home", home, "--json", *flags)
    assert tuned.returncode == 0, tuned.stderr
    name = json.loads(tuned.stdout)["session"]
    record = json.loads(output_of("sessions", "show", name, "--home", home, "--json"))
    changed = [knob for trial in record["trials"] for knob in trial["changes"]]
    return record["session"], changed


@pytest.mark.parametrize(
    ("flags", "recorded", "follows_the_prior"),
    [
        ([], {"memory_from": [], "with_memory": True}, True),
        (["--memory-from", "demo"], {"memory_from": ["demo"]}, True),
        (["--without-memory"], {"with_memory": False}, None),
        (["--without-reflection"], {"with_reflection": False, "with_memory": True}, True),
    ],
    ids=["plain", "from", "without-memory", "without-reflection"],
)
def test_memory_options_are_recorded_and_change_what_the_engineer_does(
    home: Path, flags: list[str], recorded: dict[str, Any], follows_the_prior: bool | None
) -> None:
    record, changed = opened(home, *flags)
    assert {name: record[name] for name in recorded} == recorded
    if follows_the_prior is not None:  # memory recommends a smaller batch; without a prior, capacity comes first
        assert ("batch_size" in changed) is follows_the_prior


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--memory-from", "demo,beuaty"], "memory holds nothing from 'beuaty'"),
        (["--without-memory", "--memory-from", "demo"], "excludes"),
        (["--without-memory", "--agent", f"recipe:{RECIPES}"], "hides the trials by which a recipe counts its steps"),
    ],
)
def test_contradictory_flags_are_refused_before_a_session_is_opened(
    home: Path, flags: list[str], message: str
) -> None:
    refused = virtualmle("tune", "demo", "--new", "--home", home, *flags)
    assert refused.returncode in (1, 2) and message in refused.stderr and "Traceback" not in refused.stderr
    assert len(json.loads(output_of("sessions", "list", "--json", "--home", home))["sessions"]) == 1


def test_rules_are_listed_in_80_columns_and_found_by_the_words_for_their_knob(tmp_path: Path) -> None:
    statement = "A [bold]higher[/bold] step size reaches the optimum in fewer epochs on small catalogues. " * 2
    with Memory(tmp_path / "memory.db") as memory:
        memory.rules.add(RuleRecord(kind="prefer", statement=statement, condition="lr >= 0.001", backbone="sasrec"))
    printed = output_of("memory", "list", "--home", tmp_path)
    assert max(map(len, printed.splitlines())) <= 80
    facts, *words = printed.splitlines()[:-1]
    assert facts.split()[:3] == ["1", "prefer", "sasrec"] and facts.endswith("lr >= 0.001")
    assert " ".join(" ".join(words).split()) == statement.strip()
    assert "higher" in output_of("memory", "search", "learning", "rate", "--home", tmp_path)
