"""Agent frameworks: their converters of tool schemas, and whole sessions that their test models drive."""

import sys
from typing import Any

from tests.interop.clients import checks_of, reported
from tests.interop.environments import HERE, Missing, execute, frameworks_python
from tests.interop.outcome import Check, Outcome
from tests.interop.served import TRIALS, stdio_command, temporary_home

TITLES = {"openai_agents": "session by openai-agents", "pydantic_ai": "session by pydantic-ai"}
FRAMEWORKS = (  # the rows of converters.py
    "openai-agents", "langchain-openai", "pydantic-ai-slim", "google-genai", "google-adk", "anthropic", "fastmcp",
    "llama-index-tools-mcp",
)  # fmt: skip
COLUMNS = ("framework", "version", "tools", "properties kept", "notes")
CONVERTER_SECONDS = 2400
CHARACTERS_PER_TOKEN = 4  # an estimate: tokenizers need files that a machine without network does not have


def run_converters() -> Outcome:
    """The converters of the agent frameworks: nothing of a schema is lost, and a call goes through."""
    script = HERE / "converters.py"
    if not script.is_file():
        raise Missing("this checkout has no tests/interop/converters.py")
    done = execute([frameworks_python(), script, "--server", sys.executable], seconds=CONVERTER_SECONDS)
    rows = [row for row in map(_cells, done.stdout.splitlines()) if len(row) == len(COLUMNS) and row[0] in FRAMEWORKS]
    checks = [Check(f"{row[0]} {row[1]}", row[3].startswith("all"), f"{row[3]} {row[4]}") for row in rows]
    complete = {row[0] for row in rows} == set(FRAMEWORKS) and done.returncode == 0
    checks.append(Check("every framework reported", complete, done.stderr[-500:]))
    notes = [f"{name} {version}: {tools} tools, {kept}; {note}" for name, version, tools, kept, note in rows]
    return Outcome("converters", f"{len(rows)} frameworks", checks, notes=notes)


def _cells(line: str) -> list[str]:
    """The cells of a row of a Markdown table."""
    cells = line.strip().removeprefix("|").removesuffix("|").split("|", len(COLUMNS) - 1)  # the last one may have a "|"
    return [cell.strip() for cell in cells]


def run_session(framework: str) -> Outcome:
    """A session of ten trials on the demo by the framework's test model, then what the memory has recorded of it."""
    with temporary_home() as home:
        program = [frameworks_python(), HERE / "sessions" / f"{framework}_session.py"]
        report = reported([*program, *stdio_command(home)])
        recorded = reported([sys.executable, "-P", HERE / "recorded.py", home])
    checks = [*checks_of(report), *compared(report, recorded)]
    return Outcome(TITLES[framework], report["version"], checks, notes=[report["note"], what_was_read(report["shown"])])


def compared(report: dict[str, Any], recorded: dict[str, Any]) -> list[Check]:
    """Whether the memory has what the model asked for: each trial, its knobs and hypothesis, each lesson, the rule."""
    asked, trials = report["asked"], recorded["trials"]
    statuses = [trial["status"] for trial in trials]
    checks = [Check("ten finished trials", statuses == ["finished"] * TRIALS, str(statuses))]
    for name in ("changes", "hypothesis", "lesson"):
        wanted, found = [entry[name] for entry in asked], [trial[name] for trial in trials]
        lost = [pair for pair in zip(wanted, found, strict=False) if pair[0] != pair[1]]
        checks.append(Check(f"no {name} was lost", wanted == found, f"asked and recorded: {lost[:2]}"))
    return [
        *checks,
        Check("the session was revealed", recorded["state"] == "revealed", recorded["state"]),
        Check("the summary was kept", recorded["summaries"] == [report["summary"]], str(recorded["summaries"])),
        Check("the rule was kept", report["rule"] in recorded["rules"], str(recorded["rules"])),
    ]


def what_was_read(shown: dict[str, int]) -> str:
    """A sentence on the text that the framework showed its model."""
    tools, answers, total = shown["tools"], shown["answers"], shown["all requests"]
    return (
        f"the model was shown {tools:,} characters of tools and {answers:,} of answers, about "
        f"{_tokens(tools + answers):,} tokens at {CHARACTERS_PER_TOKEN} characters a token; with the history sent "
        f"again in each of its {shown['requests']} requests, about {_tokens(total):,}"
    )


def _tokens(characters: int) -> int:
    return round(characters / CHARACTERS_PER_TOKEN)
