"""`virtualmle memory`: the knowledge of all sessions of a home."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import HERE, Home, Json

if TYPE_CHECKING:
    from ..memory.records import RuleRecord
    from ..memory.store import Memory

app = typer.Typer(
    help="Inspect and exchange long-term memory.\n\n"
    "Example: virtualmle memory search dropout",
    no_args_is_help=True,
)


@app.command("list")
def list_rules(
    backbone: Annotated[str | None, typer.Option(help="Only rules for this backbone: sasrec or hstu.")] = None,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """List the rules in memory.

    Shows how many trials support and contradict each rule, and which sessions left a Cognition Summary.

    Example: virtualmle memory list --backbone hstu
    """
    with existing_memory(home) as memory:
        rules, summaries = memory.rules.all(backbone), memory.summaries.all()
    if as_json:
        rows = [rule.model_dump(exclude={"profile"}) for rule in rules]
        print(json.dumps({"rules": rows, "summaries": [s.session for s in summaries]}, indent=1))
        return
    _print_rules(rules)
    print(f"Cognition Summaries of: {', '.join(s.session for s in summaries) or 'no session yet'}")


def _print_rules(rules: "list[RuleRecord]") -> None:
    """Two lines or more per rule, because a statement needs the width of the terminal: the facts, then the words."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console()
    for rule in rules:
        counts = f"{rule.check} {rule.support} for, {rule.contradiction} against"
        facts = f"{rule.id:>4}  {rule.kind:<7}  {rule.backbone or 'both':<6}  {counts:<30}  {rule.condition or ''}"
        # Text shows markup in agents' texts literally
        console.print(Text(facts.rstrip(), style="bold"), overflow="fold")
        console.print(Padding(Text(rule.statement, overflow="fold"), (0, 0, 0, 6)))


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(help="Words to search for.")],
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of results.")] = 20,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Search rules, reflections and Cognition Summaries.

    Example: virtualmle memory search learning rate
    """
    with existing_memory(home) as memory:
        found = memory.knowledge().search(" ".join(words), limit)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for row in found:
        where = " ".join(str(row[key]) for key in ("source", "id", "session", "trial") if row.get(key))
        print(f"[{where}] {row['text']}")
    if not found:
        print("nothing found")


@app.command()
def show(
    what: Annotated[str, typer.Argument(help="The id of a rule, or the id of a session.")],
    home: Home = HERE,
) -> None:
    """Show a rule or a session as JSON.

    For a session, shows its Cognition Summary, its reflections, and the texts that are kept with it only.

    Example: virtualmle memory show demo-sasrec-1
    """
    with existing_memory(home) as memory:
        content = _rule(memory, int(what)) if what.isdecimal() else _session(memory, what)
    print(json.dumps(content, indent=1))


@app.command("export")
def export_cognition(
    file: Annotated[Path, typer.Argument(help="The file to write; an existing file is not overwritten.")],
    home: Home = HERE,
) -> None:
    """Export all cognition to a JSON file.

    Exports rules, summaries, effects and configurations; the file contains no users, items or interactions.

    Example: virtualmle memory export cognition.json
    """
    from ..data.atomic import write_bytes
    from ..data.errors import ConfigError
    from ..data.permissions import as_the_user_set
    from ..data.wording import counted
    from ..memory.portable import collect

    with existing_memory(home) as memory:
        cognition = collect(memory)
    try:
        with as_the_user_set():
            write_bytes(file, (cognition.model_dump_json(indent=1) + "\n").encode(), replace=False)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}); name a new file") from None
    print(f"{file}: {counted(len(cognition.rules), 'rule')}, {counted(len(cognition.summaries), 'summary')}")


@app.command("import")
def import_cognition(
    file: Annotated[Path, typer.Argument(help="A file written by `virtualmle memory export`.")],
    home: Home = HERE,
) -> None:
    """Import the cognition of another home. Existing entries are not changed, and nothing is counted twice.

    Example: virtualmle memory import cognition.json --home ~/recsys
    """
    from ..memory.portable import merge, read_cognition
    from .options import open_workspace  # not existing_memory: a new home may start with an import

    cognition = read_cognition(file)
    ws = open_workspace(home)
    with ws.memory as memory:
        merged = merge(memory, cognition)
    print(", ".join(f"{count} {name}" for name, count in merged.model_dump().items()) + " were new")


def _rule(memory: "Memory", number: int) -> dict[str, Any]:
    from ..data.errors import SessionError

    rules = {rule.id: rule for rule in memory.rules.all()}
    if number not in rules:
        raise SessionError(f"there is no rule {number}; `virtualmle memory list` shows all {len(rules)} rules")
    return rules[number].model_dump()


def _session(memory: "Memory", session: str) -> dict[str, Any]:
    record = memory.sessions.get(session)
    summary = next((s for s in memory.summaries.all() if s.session == session), None)
    return {
        "session": record.model_dump(include={"id", "dataset", "backbone", "state"}),
        "summary": summary.model_dump(include={"text", "computed"}) if summary else None,
        "reflections": [r.model_dump(exclude={"session"}) for r in memory.reflections.all(session)],
        "kept_texts": [text.model_dump(exclude={"session"}) for text in memory.kept_texts.all(session)],
    }


def existing_memory(home: Path) -> "Memory":
    """Open memory.db of a home; raises HomeError if it does not exist, because commands that read create nothing."""
    from ..data.errors import HomeError
    from ..memory.store import Memory  # imports sqlite-utils

    path = home / "memory.db"
    if not path.exists():
        raise HomeError(
            f"home={str(path.parent)!r} has no memory.db; run `virtualmle tune` first or choose another with --home"
        )
    return Memory(path)
