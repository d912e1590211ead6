"""What was learnt, from the command line: carried to another home by a file, and left out or shuffled for ablations."""

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

TUNE = ["tune", "demo", "--threads", 1, "--keep-warm", 60]  # the second trial need not load torch again


def virtualmle(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "virtualmle", *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)


def told_here(*arguments: object) -> str:
    """What a command prints that only reads, without the start of a process."""
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    assert left.value.code in (0, None)
    return printed.getvalue()


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home where the engineer has finalized one session, and learnt that transition_weight helps."""
    home = quick_home(tmp_path_factory.mktemp("taught"))
    done = virtualmle(*TUNE, "--home", home)
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def home(taught: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(taught, tmp_path / "home"))


def rules_of(home: Path) -> list[dict[str, Any]]:
    rules = json.loads(told_here("memory", "list", "--json", "--home", home))["rules"]
    return [{name: rule[name] for name in ("statement", "condition", "support", "dataset")} for rule in rules]


def test_cognition_travels_in_a_file_and_counts_once(home: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "cognition.json", tmp_path / "other"
    exported = virtualmle("memory", "export", file, "--home", home)
    assert exported.returncode == 0 and "1 rules, 1 summaries" in exported.stdout
    written = file.read_bytes()
    again = virtualmle("memory", "export", file, "--home", home)
    assert again.returncode == 1 and "name a new file" in again.stderr and file.read_bytes() == written
    assert list(tmp_path.glob(".cognition*")) == []  # nothing half-written is left beside it

    first, second = (virtualmle("memory", "import", file, "--home", other) for _ in range(2))
    assert first.stdout.startswith("1 rules, 1 counts, 1 summaries") and first.returncode == 0, first.stderr
    assert second.stdout.startswith("0 rules, 0 counts, 0 summaries, 0 effects, 0 configurations")
    assert rules_of(other) == rules_of(home) != []


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "JSON"), ('{"schema": 1}', "cognition"), ("[1, 2", "JSON")],
    ids=["empty", "other-json", "cut-short"],
)
def test_a_file_that_is_no_cognition_is_refused_in_one_line(
    home: Path, tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "broken.json"
    file.write_text(content)
    before = rules_of(home)
    refused = virtualmle("memory", "import", file, "--home", home)
    assert refused.returncode == 1 and said in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert rules_of(home) == before


def opened(home: Path, *flags: str) -> tuple[dict[str, Any], list[str]]:
    """The record of a new session that was tuned with these flags, and the knobs that its prior spoke of."""
    tuned = virtualmle(*TUNE, "--new", "--trials", 2, "--home", home, "--json", *flags)
    assert tuned.returncode == 0, tuned.stderr
    name = json.loads(tuned.stdout)["session"]
    record = json.loads(told_here("sessions", "show", name, "--home", home, "--json"))
    changed = [knob for trial in record["trials"] for knob in trial["changes"]]
    return record["session"], changed


@pytest.mark.parametrize(
    ("flags", "kept", "follows_the_prior"),
    [
        ([], {"memory_from": [], "placebo": False, "with_memory": True}, True),
        (["--memory-from", "demo"], {"memory_from": ["demo"], "placebo": False}, True),
        (["--memory-from", "demo", "--placebo-memory"], {"memory_from": ["demo"], "placebo": True}, False),
        (["--without-memory"], {"with_memory": False}, None),
        (["--without-reflection"], {"with_reflection": False, "with_memory": True}, True),
    ],
    ids=["plain", "from", "placebo", "without-memory", "without-reflection"],
)
def test_what_a_session_may_know_is_kept_with_it_and_shows_in_what_the_engineer_does(
    home: Path, flags: list[str], kept: dict[str, Any], follows_the_prior: bool | None
) -> None:
    record, changed = opened(home, *flags)
    assert {name: record[name] for name in kept} == kept
    if follows_the_prior is not None:  # the one thing that memory knows is to raise transition_weight
        assert ("transition_weight" in changed) is follows_the_prior


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--memory-from", "demo,beuaty"], "memory holds nothing from 'beuaty'"),
        (["--without-memory", "--placebo-memory"], "excludes"),
    ],
)
def test_flags_that_make_no_sense_are_refused_before_anything_is_opened(
    home: Path, flags: list[str], said: str
) -> None:
    refused = virtualmle("tune", "demo", "--new", "--home", home, *flags)
    assert refused.returncode in (1, 2) and said in refused.stderr and "Traceback" not in refused.stderr
    assert len(json.loads(told_here("sessions", "list", "--json", "--home", home))["sessions"]) == 1
