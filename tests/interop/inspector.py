"""The MCP Inspector from the command line: strict portability of the schemas, a call, an error."""

import json
from pathlib import Path

from tests.interop.environments import execute, node, node_environment, npm_modules, npm_version
from tests.interop.outcome import Check, Outcome
from tests.interop.served import http_server, stdio_command, temporary_home

PACKAGE = "@modelcontextprotocol/inspector"
# Milliseconds; on a busy machine the server needs longer to start than the default of 15 s.
CONNECT = ["--connect-timeout", "120000"]
TOOL_ERROR = 5  # the exit code for a tool that answered with an error
DEMO = {"dataset": "demo", "backbone": "sasrec"}


def run_inspector() -> Outcome:
    """List the tools strictly, call one, provoke a refusal: over stdio with the handshake, over HTTP without."""
    program = npm_modules() / PACKAGE / "clients" / "launcher" / "build" / "index.js"
    checks: list[Check] = []
    with temporary_home() as home:
        checks += _checks(program, home, "stdio", ["--protocol-era", "legacy", *stdio_command(home)])
        with http_server(home) as url:
            checks += _checks(program, home, "http", ["--protocol-era", "modern", url, "--transport", "http"])
    return Outcome("Inspector --strict", npm_version(PACKAGE), checks)


def _checks(program: Path, home: Path, transport: str, target: list[str]) -> list[Check]:
    environment = {**node_environment(), "MCP_CATALOG_PATH": str(home.parent / "catalog.json")}

    def ask(*arguments: str) -> tuple[int, str, str]:
        done = execute([node(), program, "--cli", *CONNECT, *target, *arguments], environment, seconds=300)
        return done.returncode, done.stdout, done.stderr

    code, listed, problems = ask("--method", "tools/list", "--strict")
    names = [tool["name"] for tool in json.loads(listed)["tools"]] if code == 0 else []
    called = ["--method", "tools/call", "--tool-name"]
    opened = ask(*called, "open_session", "--tool-args-json", json.dumps(DEMO))
    lucky = {"session": "demo-sasrec-1", "changes": {}, "seed": 7}
    seed = ask(*called, "run_trial", "--tool-args-json", json.dumps(lucky))
    is_refused = seed[0] == TOOL_ERROR and "seeds belong to the server" in seed[1].lower()
    page = ask("--method", "resources/read", "--uri", "sandbox://protocol")
    prompt = ask("--method", "prompts/get", "--prompt-name", "tune", "--prompt-args", "dataset=demo")
    return [
        Check(f"{transport}: tools/list --strict", code == 0 and not problems.strip(), problems or listed[-300:]),
        Check(f"{transport}: the tools are there", {"open_session", "run_trial", "finalize"} <= set(names), str(names)),
        Check(f"{transport}: open_session", opened[0] == 0 and "demo-sasrec-1" in opened[1], str(opened)[-400:]),
        Check(f"{transport}: a seed is refused", is_refused, str(seed)[-300:]),
        Check(f"{transport}: resources/read", page[0] == 0 and "max_trials" in page[1], page[2]),
        Check(f"{transport}: prompts/get", prompt[0] == 0 and "demo" in prompt[1], prompt[2]),
    ]
