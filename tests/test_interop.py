"""The rules of `make interop`, and the suites themselves where their tools are already installed."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.interop.conformance import judged
from tests.interop.environments import FRAMEWORKS_PYTHON, HERE, NPM, ROOT, VENV, Missing
from tests.interop.frameworks import compared
from tests.interop.outcome import Check, Outcome, details, skipped, table
from tests.interop.run import SUITES, main
from tests.interop.sessions.scripted import PLAN, SUMMARY, Engineer, arguments_for

RUN = [sys.executable, "-P", str(HERE / "run.py")]
BASELINE = [{"scenarios": ["images"], "reason": "only the suite has that tool", "checks": ["image-*"]}]
STRICT = {
    "type": "object",
    "required": ["session", "changes", "changes_list", "wait_seconds", "hypothesis", "note"],
    "properties": {
        "session": {"type": "string"},
        "changes": {"anyOf": [{"type": "object", "additionalProperties": False, "properties": {}}, {"type": "null"}]},
        "changes_list": {"type": "array", "items": {"type": "object"}},
        "wait_seconds": {"type": "number", "default": 60},
        "note": {"type": ["string", "null"]},
        "hypothesis": {
            "type": "object",
            "required": ["dimension", "size"],
            "properties": {"dimension": {"type": "string"}, "size": {"type": "number"}},
        },
    },
}


def check_of(status: str, name: str = "image-shown") -> dict[str, str]:
    return {"id": name, "status": status, "errorMessage": "no image"}


@pytest.mark.parametrize(
    ("scenario", "status", "name", "failed"),
    [
        pytest.param("images", "FAILURE", "image-shown", False, id="a failure with a reason"),
        pytest.param("images", "FAILURE", "listed", True, id="another check of that scenario"),
        pytest.param("sounds", "FAILURE", "image-shown", True, id="another scenario"),
        pytest.param("sounds", "WARNING", "image-shown", True, id="a recommendation alone checks nothing"),
        pytest.param("sounds", "SUCCESS", "image-shown", False, id="a success"),
    ],
)
def test_only_a_failure_that_the_baseline_explains_is_forgiven(scenario, status, name, failed):
    outcome = judged("suite", "2025-11-25", {scenario: [check_of(status, name)]}, BASELINE)
    assert outcome.failed == failed


def test_a_reason_that_is_no_longer_needed_is_reported():
    outcome = judged("suite", "2025-11-25", {"images": [check_of("SUCCESS")]}, BASELINE)
    assert not outcome.failed
    assert "images has no expected failure any more" in details([outcome])


def test_every_entry_of_the_baseline_has_a_kind_and_a_reason():
    entries = tomllib.loads((HERE / "conformance.toml").read_text(encoding="utf-8"))["expected"]
    assert {entry["kind"] for entry in entries} <= {"fixture", "choice", "lack"}
    assert all(len(entry["reason"]) > 40 for entry in entries)
    named = [(name, tuple(e.get("revisions", ()))) for e in entries for name in e["scenarios"]]
    assert len(named) == len(set(named)), "a scenario is named twice"


def test_the_table_tells_success_expected_failures_failures_and_skips_apart():
    expected, unexpected = Check("a", False, expected="a fixture"), Check("b", False, "broken | pipe\nline")
    outcomes = [
        Outcome("good", "1", [Check("c", True), expected]),
        Outcome("bad", "2", [unexpected]),
        Outcome("silent", "3"),
        skipped("absent", "no npm"),
    ]
    rows = table(outcomes).splitlines()[2:]
    assert rows == [
        "| good | 1 | 1 | 1 | ok |",
        "| bad | 2 | 0 | 0 | FAILED (1) |",
        "| silent | 3 | 0 | 0 | FAILED (0) |",
        "| absent | | | | skipped: no npm |",
    ]
    assert [outcome.failed for outcome in outcomes] == [False, True, True, False]
    assert "FAILED bad: b: broken / pipe line" in details(outcomes)
    assert "expected good: 1 check of a: a fixture" in details(outcomes)


def test_a_strict_schema_gets_the_list_of_changes_and_everything_that_it_requires():
    given = arguments_for(STRICT, {"session": "s", "changes": {"lr": 0.01}, "hypothesis": {"dimension": "capacity"}})
    assert given == {
        "session": "s",
        "changes_list": [{"knob": "lr", "value": "0.01"}],
        "changes": None,
        "wait_seconds": 60,
        "note": None,
        "hypothesis": {"dimension": "capacity", "size": 0},
    }


def test_a_free_object_gets_the_changes_themselves():
    schema = {"type": "object", "properties": {"changes": {"type": "object"}, "changes_list": {"type": "array"}}}
    assert arguments_for(schema, {"changes": {"lr": 0.01}}) == {"changes": {"lr": 0.01}}
    listed = arguments_for(schema, {"changes": {"lr": 0.01}}, as_list=True)
    assert listed == {"changes_list": [{"knob": "lr", "value": "0.01"}]}


def test_the_engineer_notes_an_answer_that_it_cannot_read():
    engineer = Engineer()
    schemas = {name: {"properties": {}} for name in ("open_session", "run_trial", "wait_trial", "write_reflection")}
    assert engineer.next_call(schemas, "")[0] == "open_session"
    assert engineer.next_call(schemas, "session demo-sasrec-1 is open")[0] == "run_trial"
    assert engineer.next_call(schemas, "t001 running")[0] == "wait_trial"
    assert engineer.next_call(schemas, "changes is wrong")[0] == "write_reflection"
    assert engineer.errors == ["the answer about t001 has no verdict: changes is wrong"]


def test_a_lost_argument_fails_the_session():
    entry = {"changes": {"lr": 0.01}, "hypothesis": {"dimension": "capacity"}, "lesson": "wider helps"}
    report = {"asked": [entry] * len(PLAN), "summary": SUMMARY, "rule": "a rule"}
    trials = [{"status": "finished", **entry} for _ in PLAN]
    recorded = {"state": "revealed", "summaries": [SUMMARY], "rules": ["a rule"], "trials": trials}
    assert all(check.passed for check in compared(report, recorded))
    trials[3] = {**trials[3], "changes": {}}
    assert [check.name for check in compared(report, recorded) if not check.passed] == ["no changes was lost"]


def test_the_command_lists_its_suites_and_refuses_an_unknown_one():
    listed = subprocess.run([*RUN, "--list"], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == list(SUITES)
    unknown = subprocess.run([*RUN, "--only", "telex"], capture_output=True, text=True, check=False)
    assert unknown.returncode == 2 and "no suite begins with telex" in unknown.stderr


def missing() -> Outcome:
    raise Missing("no npm")


def broken() -> Outcome:
    raise RuntimeError("the server did not start")


@pytest.mark.parametrize(("suite", "code", "row"), [(missing, 0, "skipped: no npm"), (broken, 1, "FAILED (1)")])
def test_a_missing_tool_is_skipped_and_a_broken_suite_fails_the_run(monkeypatch, capsys, suite, code, row):
    monkeypatch.setitem(SUITES, "bundle", suite)
    assert main(["--only", "bundle"]) == code
    assert row in capsys.readouterr().out


def test_every_suite_is_in_the_document():
    page = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w.-]+)` \|", page, flags=re.MULTILINE)) == set(SUITES)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("suite", list(SUITES))
def test_a_suite_whose_tools_are_installed_finds_nothing_unexpected(suite):
    if not (VENV / "installed").exists() and not Path(os.environ.get(FRAMEWORKS_PYTHON, "none")).exists():
        pytest.skip("needs `make interop` to have installed its tools in .venv-interop")
    if not (NPM / "installed").exists():
        pytest.skip("needs `make interop` to have installed its npm packages in .npm-interop")
    done = subprocess.run([*RUN, "--only", suite], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
