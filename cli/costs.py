"""`virtualmle costs`: the cost ledger of a home."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..data.wording import counted
from .memory import existing_memory
from .options import HERE, Home, Json

if TYPE_CHECKING:
    from ..agents.llm.client_files import ClientUsage
    from ..agents.llm.prices import PriceTable
    from ..memory.ledger import ImportedUsage, Totals


class ShowByDefault(TyperGroup):
    """A group whose command `show` need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `show` before arguments that begin with no command."""
        named = bool(args) and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if named else ["show", *args])


app = typer.Typer(
    cls=ShowByDefault,
    help="Show what language models cost, or import the usage of an external client.\n\n"
    "Example: virtualmle costs demo-sasrec-1",
)

Prices = Annotated[
    Path | None, typer.Option("--prices", help="A TOML file of prices.", show_default="HOME/prices.toml")
]


@app.command()
def show(
    session: Annotated[str | None, typer.Argument(help="The id of a session.", show_default="all")] = None,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Show tokens and money by session, model and kind; measured and imported apart.

    Example: virtualmle costs demo-sasrec-1
    """
    with existing_memory(home) as memory:
        name = memory.sessions.get(session).id if session else None
        rows = memory.ledger.totals(name)
    if as_json:
        print(json.dumps({"calls": [row.model_dump() for row in rows], "totals": _sums(rows)}, indent=1))
        return
    if not rows:
        print("no language model was called")
        return
    from rich.console import Console

    Console().print(_table(rows))
    for line in _lines(rows):
        print(line)


@app.command("import")
def import_usage(  # noqa: PLR0913, PLR0917 - one parameter per option
    session: Annotated[str, typer.Argument(help="The id of the session that the client worked on.")],
    file: Annotated[Path, typer.Argument(help="The result file of Claude Code, Codex or the OpenAI Agents SDK.")],
    model: Annotated[
        str, typer.Option("--model", help="The model, for clients that do not name it.", show_default="unknown")
    ] = "",
    prices: Prices = None,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Import the usage of an external client; the same file is counted once.

    Reads `claude -p --output-format json` (or stream-json), `codex exec --json`, and the usage of the OpenAI Agents SDK
    as JSON.

    Example: virtualmle costs import demo-sasrec-1 claude.json
    """
    from ..agents.llm.client_files import read_usage
    from ..agents.llm.prices import PriceTable
    from ..agents.llm.settings import price_files

    usages = read_usage(_text(file))
    table = PriceTable.load(price_files(home, prices))
    with existing_memory(home) as memory:
        new = memory.ledger.import_usage(session, [_priced(usage, model, table) for usage in usages])
    if as_json:
        print(json.dumps({"records": len(usages), "new": new}))
        return
    print(f"{file}: {counted(len(usages), 'record')} of {usages[0].client}, {new} of them new")


def _text(file: Path) -> str:
    from ..data.errors import ConfigError

    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); name the result file of a client") from None


def _priced(usage: "ClientUsage", model: str, table: "PriceTable") -> "ImportedUsage":
    """The record of the ledger: at the client's own price, else by the price table."""
    from ..agents.llm.settings import ModelSettings
    from ..memory.ledger import KINDS, ImportedUsage

    name = usage.model or model
    provider = ModelSettings(name).provider if name else ""
    price = table.find(provider, name, usage.usage.input + usage.usage.cached + usage.usage.cache_write)
    usd = usage.usd if usage.usd is not None or price is None else price.cost(usage.usage)
    tokens = {kind: getattr(usage.usage, kind) for kind in KINDS}
    return ImportedUsage(
        origin=usage.origin, provider=provider, model=name or "unknown", tokens=tokens, usd=usd, note=usage.client
    )


def _table(rows: "list[Totals]") -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("session", "model"):
        table.add_column(heading, overflow="fold")  # these are folded first
    for heading in ("calls", "input", "cached", "cache\nwrite", "output", "reasoning", "US\ndollars"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        marks = [*(["imported"] if row.source == "imported" else []), *(["estimated"] if row.estimated else [])]
        model = f"{row.model} ({', '.join(marks)})" if marks else row.model
        tokens = [f"{getattr(row, kind):,}" for kind in ("input", "cached", "cache_write", "output", "reasoning")]
        table.add_row(row.session or "–", model, str(row.calls), *tokens, _dollars(row.usd))
    return table


def _lines(rows: "list[Totals]") -> list[str]:
    lines = [f"{source}: {_dollars(sums['usd'])} US dollars" for source, sums in _sums(rows).items()]
    lost = [row for row in rows if row.lost]
    if lost:
        calls = sum(row.lost for row in lost)
        lines.append(
            f"{counted(calls, 'call')} got no reply and may have been charged: up to "
            f"{_dollars(_sum(r.lost_usd for r in lost))} US dollars more"
        )
    return lines


def _sums(rows: "list[Totals]") -> dict[str, dict[str, Any]]:
    """Calls, tokens by kind and money by source; money is None if that of any row is."""
    from ..memory.ledger import KINDS

    sums = {}
    for source in ("measured", "imported"):
        chosen = [row for row in rows if row.source == source]
        if chosen:
            counts = {name: sum(getattr(row, name) for row in chosen) for name in ("calls", "lost", *KINDS)}
            sums[source] = {**counts, "usd": _sum(row.usd for row in chosen)}
    return sums


def _sum(amounts: Any) -> float | None:
    values = list(amounts)
    return None if None in values else float(sum(values))


def _dollars(usd: float | None) -> str:
    return "unknown" if usd is None else f"{usd:.4f}"
