"""Clients of other languages and older lines: each opens a session and runs a trial, on both transports."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.interop.environments import (
    HERE,
    client_python,
    execute,
    node,
    node_environment,
    npm_modules,
    npm_version,
)  # fmt: skip
from tests.interop.outcome import Check, Outcome
from tests.interop.served import http_server, stdio_command, temporary_home

TYPESCRIPT = {"client_1.mjs": "@modelcontextprotocol/sdk", "client_2.mjs": "@modelcontextprotocol/client"}


def run_python_client(version: str) -> Outcome:
    """The Python client of `version`: a session, a trial, waits, a reflection, errors."""
    program = [client_python(version), HERE / "client_python.py"]
    return _on_both_transports(f"Python mcp {version}", program)


def run_typescript_client(script: str) -> Outcome:
    """A line of the TypeScript SDK: a session, a trial with progress, errors."""
    package = TYPESCRIPT[script]
    version = npm_version(package)
    environment = {**node_environment(), "INTEROP_MODULES": str(npm_modules()), "INTEROP_VERSION": version}
    return _on_both_transports(f"TypeScript {package.split('/')[1]}", [node(), HERE / "node" / script], environment)


def reported(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The JSON object that a script prints as its last line; RuntimeError with its errors if it printed none."""
    done = execute(command, environment)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"{_script_of(command)} ended with code {done.returncode}: {done.stderr[-250:]}")
    return json.loads(lines[-1])  # type: ignore[no-any-return]


def checks_of(report: dict[str, Any], prefix: str = "") -> list[Check]:
    """The checks in the report of a script."""
    return [Check(prefix + entry["name"], entry["passed"], entry["detail"]) for entry in report["checks"]]


def _on_both_transports(
    suite: str, program: Sequence[str | Path], environment: Mapping[str, str] | None = None
) -> Outcome:
    with temporary_home() as home:
        local = reported([*program, "stdio", *stdio_command(home)], environment)
    with temporary_home() as home, http_server(home) as url:
        remote = reported([*program, "http", url], environment)
    return Outcome(suite, local["version"], [*checks_of(local, "stdio: "), *checks_of(remote, "http: ")])


def _script_of(command: Sequence[str | Path]) -> str:
    """The name of the script in a command."""
    return next(Path(word).name for word in command if str(word).endswith((".py", ".mjs")))
