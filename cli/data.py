"""`virtualmle data`: registering and looking at datasets. For people: no MCP tool can do this."""

import inspect
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..data.wording import counted
from .options import HERE, Home, Json

if TYPE_CHECKING:
    from ..data.catalogue import Catalogue
    from ..data.prepared import Manifest

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

app = typer.Typer(
    help="Register and look at datasets.\n\nExample: virtualmle data add office office.tsv.gz", no_args_is_help=True
)


@app.command()
def add(  # noqa: PLR0913, PLR0917 - one parameter per option
    name: Annotated[str, typer.Argument(help="A name of your choice.")],
    file: Annotated[Path, typer.Argument(help="CSV, TSV, JSON lines (.gz too), Parquet, or an Amazon review file.")],
    user: Annotated[str | None, typer.Option(help="Column of the user.", show_default="guessed")] = None,
    item: Annotated[str | None, typer.Option(help="Column of the item.", show_default="guessed")] = None,
    timestamp: Annotated[str | None, typer.Option(help="Column of the time.", show_default="guessed")] = None,
    k_core: Annotated[int, typer.Option(help="Least number of events per user and item.")] = 5,
    max_events: Annotated[int, typer.Option(help="Last events kept per user.")] = 50,
    format: Annotated[str | None, typer.Option(help="csv, tsv, jsonl, parquet.", show_default="by ending")] = None,
    home: Home = HERE,
    as_json: Json = False,
    replace: Annotated[bool, typer.Option(hidden=True)] = False,  # set by `data replace`
) -> None:
    """Prepare a log and register it under a name.

    Example: virtualmle data add office ~/logs/office.tsv.gz --user customer --item product --timestamp time
    """
    from ..data.errors import DataError  # these bring polars
    from ..data.prepared import PrepareOptions
    from ..examiner.vault import Vault

    if format not in (None, "csv", "tsv", "jsonl", "parquet"):
        raise DataError(f"format={format!r} is not known; use csv, tsv, jsonl or parquet")
    manifest = _catalogue(home).add(
        name, file, public_key=Vault(home).public_key(),
        options=PrepareOptions(k_core=k_core, max_events=max_events),
        user=user, item=item, timestamp=timestamp, format=format, replace=replace,  # type: ignore[arg-type]  # checked above
    )  # fmt: skip
    _tell(manifest, as_json)


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="demo, or a public dataset to download, e.g. amazon-beauty.")],
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Generate or download a named dataset and prepare it; one that is prepared already is left as it is.

    Example: virtualmle data prepare amazon-beauty
    """
    from ..examiner.vault import Vault
    from .live import download_bar

    catalogue = _catalogue(home)
    with download_bar(name) as progress:
        catalogue.resolve(name, Vault(home).public_key(), progress)
    _tell(catalogue.manifest(name), as_json)


@app.command("list")
def list_datasets(home: Home = HERE, as_json: Json = False) -> None:
    """List the registered datasets, and those that can be fetched by name.

    Example: virtualmle data list --json
    """
    catalogue = _catalogue(home)
    manifests = [catalogue.manifest(name) for name in catalogue.names()]
    if as_json:
        shown = {"name", "dataset_id", "num_users", "num_items", "num_interactions"}
        rows = [m.model_dump(include=shown) for m in manifests]
        print(json.dumps({"datasets": rows, "available": catalogue.available()}, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("name", no_wrap=True)
    for heading in ("users", "items", "interactions", "dataset id"):
        table.add_column(heading, overflow="fold")
    for m in manifests:
        table.add_row(m.name, f"{m.num_users:,}", f"{m.num_items:,}", f"{m.num_interactions:,}", m.dataset_id[:12])
    Console().print(table)
    print(f"ready to fetch: {', '.join(n for n in catalogue.available() if n not in catalogue.names()) or 'none'}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A registered dataset.")], home: Home = HERE, as_json: Json = False
) -> None:
    """Show a dataset's counts, options and train-only profile.

    Example: virtualmle data show demo
    """
    _tell(_catalogue(home).manifest(name), as_json)


@app.command()
def rm(
    name: Annotated[str, typer.Argument(help="A registered dataset.")],
    yes: Yes = False,
    home: Home = HERE,
) -> None:
    """Remove a dataset; its sessions stay readable, and so do the looks at its test set that were counted.

    Example: virtualmle data rm office
    """
    from ..data.errors import DataError
    from .dataset_users import sessions_on, unfinished

    catalogue = _catalogue(home)
    catalogue.path(name)  # raises for an unknown name
    try:
        content = catalogue.manifest(name).dataset_id
    except DataError:  # a damaged dataset can be removed too; which sessions used it, its name alone tells
        content = None
    sessions = sessions_on(home, name, content)
    if busy := unfinished(sessions):
        raise DataError(
            f"dataset {name!r} is used by {busy}; resume it to its end (`virtualmle sessions resume`) before you "
            "remove the dataset"
        )
    _confirm(f"Remove the dataset {name!r}, with {counted(len(sessions), 'ended session')} on it?", yes)
    catalogue.remove(name)
    print(f"removed {name}; sessions, memory and the look ledger stay as they are")


@app.command()
def replace(**given: Any) -> None:
    """Prepare a log and put it in the place of a registered dataset, in one step; takes the options of `data add`.

    Example: virtualmle data replace office ~/logs/office-2026.tsv.gz
    """
    from .dataset_users import sessions_on, unfinished

    home, name, yes = given["home"], given["name"], given.pop("yes")
    catalogue = _catalogue(home)
    before = catalogue.manifest(name)
    sessions = sessions_on(home, name, before.dataset_id)
    if busy := unfinished(sessions):
        print(f"{busy} uses the present content of {name!r}: it stays readable and takes no more trials",
              file=sys.stderr)  # fmt: skip
    _confirm(f"Replace the dataset {name!r}?", yes)
    add(**given, replace=True)
    if catalogue.manifest(name).dataset_id == before.dataset_id:
        print("train and validation parts are what they were: sessions on them go on", file=sys.stderr)
        return
    print(
        f"{counted(len(sessions), 'session')} on the old content can still be shown and reported; what they taught "
        "stays in memory as knowledge of another dataset. Looks at the test set are counted by content: those at the "
        "old content stay counted, the new content has none unless it was registered here before.",
        file=sys.stderr,
    )


def _confirm(question: str, yes: bool) -> None:
    """Ask on a terminal unless `yes`; raises DataError where nobody can be asked, typer.Abort for a no."""
    from ..data.errors import DataError

    if yes:
        return
    if not sys.stdin.isatty():
        raise DataError(f"{question} Nobody can be asked here: give --yes")
    typer.confirm(question, abort=True, err=True)


def _add_yes() -> None:
    """`replace` takes the parameters of `add` but its hidden one, and --yes."""
    parameters = [p for p in inspect.signature(add).parameters.values() if p.name != "replace"]
    asked = inspect.Parameter("yes", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Yes, default=False)
    replace.__signature__ = inspect.Signature([*parameters, asked])  # type: ignore[attr-defined]


_add_yes()


def _catalogue(home: Path) -> "Catalogue":
    from ..data.catalogue import Catalogue  # brings polars

    return Catalogue(home)


def _tell(manifest: "Manifest", as_json: bool) -> None:
    if as_json:
        print(manifest.model_dump_json(indent=1, exclude={"files"}))
        return
    from .dataset_text import filter_lines, profile_lines

    taken = ", ".join(f"{role} from {column!r}" for role, column in manifest.columns.items())
    print(
        f"{manifest.name}: {manifest.num_users:,} users, {manifest.num_items:,} items, "
        f"{manifest.num_interactions:,} interactions (of {manifest.rows_read:,} rows; columns: {taken})"
    )
    for line in (*filter_lines(manifest), *profile_lines(manifest)):
        print(f"  {line}")
