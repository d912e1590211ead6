"""The conformance suite of the protocol's authors, for three revisions of the specification.

The suite calls tools, prompts and resources that only its own example server has. `conformance.toml` names the checks
that must therefore fail, and the features that we leave out on purpose, each with its reason. A failure that it does
not name is unexpected; a named check that passes is reported, so that the file does not outlive its reasons.
"""

import json
import re
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.interop.environments import HERE, execute, node, node_environment, npm_modules, npm_version
from tests.interop.outcome import Check, Outcome
from tests.interop.served import http_server, temporary_home

PACKAGE = "@modelcontextprotocol/conformance"
# The suite has frozen sets of requirements from 2025-11-25 on; for the revision before it selects by version.
SELECTION = {
    "2025-06-18": ["--spec-version", "2025-06-18"],
    "2025-11-25": ["--requirements", "2025-11-25"],
    "2026-07-28": ["--requirements", "2026-07-28"],
}
PASSED, FAILED = "SUCCESS", "FAILURE"


def run_conformance(revision: str) -> Outcome:
    """Run the suite for one revision against the server over HTTP."""
    program = npm_modules() / PACKAGE / "dist" / "index.js"
    with temporary_home() as home, http_server(home) as url, tempfile.TemporaryDirectory() as folder:
        selected = ["--url", url, *SELECTION[revision], "-o", folder]
        done = execute([node(), program, "server", *selected], node_environment())
        results = dict(saved_results(Path(folder)))
    if not results:
        raise RuntimeError(f"the conformance suite saved nothing: {(done.stderr or done.stdout)[-1000:]}")
    baseline = tomllib.loads((HERE / "conformance.toml").read_text(encoding="utf-8"))["expected"]
    return judged(f"conformance {revision}", revision, results, baseline)


def saved_results(folder: Path) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    """Scenario and checks of each scenario that the suite has saved."""
    for path in sorted(folder.glob("*/checks.json")):
        scenario = re.sub(r"^server-|-\d{4}-\d\d-\d\dT[\d-]+Z$", "", path.parent.name)
        yield scenario, json.loads(path.read_text(encoding="utf-8"))


def judged(
    suite: str, revision: str, results: Mapping[str, list[dict[str, Any]]], baseline: Iterable[dict[str, Any]]
) -> Outcome:
    """The checks with the reason of each expected failure; notes name reasons that are no longer needed."""
    entries = [entry for entry in baseline if revision in entry.get("revisions", SELECTION)]
    checks, used = [], set()
    for scenario, found in results.items():
        for check in found:
            if check["status"] not in (PASSED, FAILED):
                continue  # INFO, SKIPPED, and WARNING: a recommendation
            passed = check["status"] == PASSED
            index = None if passed else _entry_for(entries, scenario, check["id"])
            used |= {(index, scenario)}
            reason = "" if index is None else entries[index]["reason"]
            checks.append(Check(f"{scenario}/{check['id']}", passed, str(check.get("errorMessage") or ""), reason))
    stale = [
        f"{scenario} has no expected failure any more: remove it from conformance.toml"
        for index, entry in enumerate(entries)
        for scenario in entry["scenarios"]
        if scenario in results and (index, scenario) not in used
    ]
    return Outcome(suite, npm_version(PACKAGE), checks, notes=stale)


def _entry_for(entries: list[dict[str, Any]], scenario: str, check: str) -> int | None:
    """The index of the entry that expects this check to fail."""
    for index, entry in enumerate(entries):
        if scenario in entry["scenarios"] and any(fnmatchcase(check, name) for name in entry.get("checks", ["*"])):
            return index
    return None
