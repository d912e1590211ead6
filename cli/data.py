"""`virtualmle data`: registering and looking at datasets. For people: no MCP tool can do this."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import HERE, Home, Json

if TYPE_CHECKING:
    from ..data.catalogue import Catalogue
    from ..data.prepared import Manifest

LOG = (
    "A CSV, TSV, JSON or Parquet file, also packed (.gz, .zip, .bz2, .xz, .zst); a directory of Parquet parts; "
    "- for standard input, with --format."
)
app = typer.Typer(
    help="Register and look at datasets.\n\nExample: virtualmle data add office office.tsv.gz", no_args_is_help=True
)


@app.command()
def add(  # noqa: PLR0913, PLR0917 - one argument per option
    name: Annotated[str, typer.Argument(help="A name of your choice.")],
    file: Annotated[Path, typer.Argument(help=LOG)],
    user: Annotated[
        str | None, typer.Option(help="Column of the user, name or number.", show_default="guessed")
    ] = None,
    item: Annotated[str | None, typer.Option(help="Column of the item.", show_default="guessed")] = None,
    timestamp: Annotated[str | None, typer.Option(help="Column of the time.", show_default="guessed")] = None,
    k_core: Annotated[int, typer.Option(help="Least number of events per user and item.")] = 5,
    max_events: Annotated[int, typer.Option(help="Last events kept per user.")] = 50,
    format: Annotated[str | None, typer.Option(help="csv, tsv, jsonl, parquet.", show_default="by ending")] = None,
    separator: Annotated[
        str | None,
        typer.Option(help="Between the cells of a text table, e.g. ';', '::' or tab.", show_default="detected"),
    ] = None,
    header: Annotated[
        bool | None, typer.Option("--header/--no-header", help="Whether names come first.", show_default="detected")
    ] = None,
    no_quotes: Annotated[bool, typer.Option("--no-quotes", help="Double quotes are plain characters.")] = False,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be parsed, and count them.")
    ] = False,
    time_unit: Annotated[str, typer.Option(help="Of numeric times: s, ms, us, ns, day, auto.")] = "auto",
    drop_bad_times: Annotated[bool, typer.Option("--drop-bad-times", help="Leave out rows without a time.")] = False,
    drop_missing: Annotated[bool, typer.Option("--drop-missing", help="Leave out rows without user or item.")] = False,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Keep rows with equal user, item and time.")
    ] = False,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Prepare a log and register it under a name.

    Example: virtualmle data add office ~/logs/office.tsv.gz --user customer --item product --timestamp time
    """
    from ..data.errors import DataError  # these bring polars
    from ..data.interactions import Cleaning
    from ..data.prepared import PrepareOptions
    from ..data.reading import Reading
    from ..examiner.vault import Vault

    if format not in (None, "csv", "tsv", "jsonl", "parquet"):
        raise DataError(f"format={format!r} is not known; use csv, tsv, jsonl or parquet")
    quotes = False if no_quotes else None
    manifest = _catalogue(home).add(
        name, file, public_key=Vault(home).public_key(),
        options=PrepareOptions(k_core=k_core, max_events=max_events, keep_duplicates=keep_duplicates),
        cleaning=Cleaning(drop_missing, drop_bad_times, time_unit),  # type: ignore[arg-type]  # checked by Cleaning
        reading=Reading(user, item, timestamp, format, separator, header, quotes, skip_bad_rows),  # type: ignore[arg-type]
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


def _catalogue(home: Path) -> "Catalogue":
    from ..data.catalogue import Catalogue  # brings polars

    return Catalogue(home)


def _tell(manifest: "Manifest", as_json: bool) -> None:
    if as_json:
        print(manifest.model_dump_json(indent=1, exclude={"files"}))
        return
    taken = ", ".join(f"{role} from {column!r}" for role, column in manifest.columns.items())
    print(
        f"{manifest.name}: {manifest.num_users:,} users, {manifest.num_items:,} items, "
        f"{manifest.num_interactions:,} interactions (of {manifest.rows_read:,} rows; columns: {taken})"
    )
    for name, value in manifest.profile.items():
        print(f"  {name:<20} {value}")
    for note in manifest.notes:
        print(f"note: {note}")
