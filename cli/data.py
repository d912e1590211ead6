"""`virtualmle data`: register and inspect datasets. Only people can do this; there is no MCP tool for it."""

import inspect
import json
import sys
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..data.wording import counted
from .log_options import LOG
from .options import HERE, HoldoutLength, Home, Json, KCoreOn, Split, Ties, split_options

if TYPE_CHECKING:
    from ..data.catalogue import Catalogue
    from ..data.prepared import Manifest

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
app = typer.Typer(
    help="Register, prepare and inspect datasets.\n\nExample: virtualmle data add office office.tsv.gz",
    no_args_is_help=True,
)


@app.command()
def add(  # noqa: PLR0913, PLR0917 - one argument per option
    name: Annotated[str, typer.Argument(help="The name to register the dataset under.")],
    file: Annotated[Path, typer.Argument(help=LOG)],
    user: Annotated[
        str | None, typer.Option(help="Name or number of the user column.", show_default="guessed")
    ] = None,
    item: Annotated[
        str | None, typer.Option(help="Name or number of the item column.", show_default="guessed")
    ] = None,
    timestamp: Annotated[
        str | None, typer.Option(help="Name or number of the timestamp column.", show_default="guessed")
    ] = None,
    k_core: Annotated[int, typer.Option(help="Minimum number of events per user and per item.")] = 5,
    max_events: Annotated[int, typer.Option(help="Number of most recent events kept per user.")] = 50,
    split_by: Split = None,
    holdout: HoldoutLength = None,
    k_core_on: KCoreOn = None,
    ties: Ties = None,
    format: Annotated[
        str | None, typer.Option(help="csv, tsv, jsonl or parquet.", show_default="by file extension")
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(help="Cell separator of a text table, e.g. ';', '::' or tab.", show_default="detected"),
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option("--header/--no-header", help="Whether the first row has column names.", show_default="detected"),
    ] = None,
    no_quotes: Annotated[bool, typer.Option("--no-quotes", help="Treat double quotes as plain characters.")] = False,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Skip and count rows that cannot be parsed.")
    ] = False,
    time_unit: Annotated[str, typer.Option(help="Unit of numeric times: s, ms, us, ns, day or auto.")] = "auto",
    drop_bad_times: Annotated[bool, typer.Option("--drop-bad-times", help="Drop rows without a valid time.")] = False,
    drop_missing: Annotated[bool, typer.Option("--drop-missing", help="Drop rows without a user or item.")] = False,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Keep rows with equal user, item and time.")
    ] = False,
    home: Home = HERE,
    as_json: Json = False,
    replace: Annotated[bool, typer.Option(hidden=True)] = False,  # set by `data replace`
) -> None:
    """Register an interaction log as a dataset.

    Reads, filters and splits the log, and seals its test targets.

    Example: virtualmle data add office ~/logs/office.tsv.gz --user customer --item product --timestamp time

    With a split by time: virtualmle data add shop purchases.csv --split time --holdout 30d
    """
    from ..data.cleaning import Cleaning
    from ..data.errors import DataError  # these import pydantic
    from ..data.prepared import PrepareOptions
    from ..data.reading import Reading
    from ..examiner.vault import Vault
    from ..tools.recording import record_dataset

    if format not in (None, "csv", "tsv", "jsonl", "parquet"):
        raise DataError(f"format={format!r} is not known; use csv, tsv, jsonl or parquet")
    quotes = False if no_quotes else None
    manifest = _catalogue(home).add(
        name, file, public_key=Vault(home).public_key(),
        options=replace_fields(
            split_options(split_by, holdout, k_core_on, ties) or PrepareOptions(),
            k_core=k_core, max_events=max_events, keep_duplicates=keep_duplicates,
        ),
        cleaning=Cleaning(drop_missing, drop_bad_times, time_unit),  # type: ignore[arg-type]  # checked by Cleaning
        reading=Reading(user, item, timestamp, format, separator, header, quotes, skip_bad_rows),  # type: ignore[arg-type]
        replace=replace,
    )  # fmt: skip
    record_dataset(home, name)
    _print_manifest(manifest, as_json)


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="demo, or a public dataset, e.g. amazon-beauty.")],
    split_by: Split = None,
    holdout: HoldoutLength = None,
    k_core_on: KCoreOn = None,
    ties: Ties = None,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Prepare a dataset by name.

    Generates or downloads the dataset, and prepares it. A dataset that is prepared already is not changed. A split by
    time and ties in random order are registered under names of their own, e.g. demo-time-90d and demo-ties-random.

    Example: virtualmle data prepare amazon-beauty

    With a split by time: virtualmle data prepare demo --split time --holdout 90d
    """
    from ..examiner.vault import Vault
    from ..tools.recording import record_dataset
    from .live import download_bar

    catalogue = _catalogue(home)
    with download_bar(name) as progress:
        options = split_options(split_by, holdout, k_core_on, ties)
        registered = catalogue.resolve(name, Vault(home).public_key(), progress, options)
    record_dataset(home, registered)
    _print_manifest(catalogue.manifest(registered), as_json)


@app.command("list")
def list_datasets(home: Home = HERE, as_json: Json = False) -> None:
    """List registered and available datasets.

    Available datasets can be passed to `data prepare` and `tune` by name.

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
    print(f"available by name: {', '.join(n for n in catalogue.available() if n not in catalogue.names()) or 'none'}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A registered dataset.")], home: Home = HERE, as_json: Json = False
) -> None:
    """Show the counts and profile of a dataset.

    The profile is computed on the training data only.

    Example: virtualmle data show demo
    """
    _print_manifest(_catalogue(home).manifest(name), as_json)


@app.command()
def rm(
    name: Annotated[str, typer.Argument(help="A registered dataset.")],
    yes: Yes = False,
    home: Home = HERE,
) -> None:
    """Remove a dataset.

    Its sessions can still be shown, and the looks at its test set stay counted.

    Example: virtualmle data rm office
    """
    from ..data.errors import DataError
    from ..tools.recording import record_removal
    from .dataset_users import finishing, sessions_on, unfinished

    catalogue = _catalogue(home)
    catalogue.path(name)  # raises for an unknown name
    try:
        content = catalogue.manifest(name).dataset_id
    except DataError:  # a damaged dataset can be removed too; its sessions are then found by its name only
        content = None
    sessions = sessions_on(home, name, content)
    if busy := unfinished(sessions):
        raise DataError(
            f"dataset {name!r} is used by {busy}; before you remove it, finish with {finishing(home, sessions)}"
        )
    _confirm(f"Remove the dataset {name!r}, with {counted(len(sessions), 'ended session')} on it?", yes)
    record_removal(home, name)
    catalogue.remove(name)
    print(f"removed {name}; sessions, memory and the look ledger stay as they are")


@app.command()
def replace(**given: Any) -> None:
    """Replace the content of a dataset by another log.

    Takes the options of `data add`. If the new log cannot be prepared, the dataset is unchanged.

    Example: virtualmle data replace office ~/logs/office-2026.tsv.gz
    """
    from .dataset_users import sessions_on, unfinished

    home, name, yes = given["home"], given["name"], given.pop("yes")
    catalogue = _catalogue(home)
    before = catalogue.manifest(name)
    sessions = sessions_on(home, name, before.dataset_id)
    if busy := unfinished(sessions):
        print(f"the current content of {name!r} is used by {busy}, which can still be shown but takes no more trials",
              file=sys.stderr)  # fmt: skip
    _confirm(f"Replace the dataset {name!r}?", yes)
    add(**given, replace=True)
    if catalogue.manifest(name).dataset_id == before.dataset_id:
        print("the train and validation parts are unchanged: sessions on this dataset continue", file=sys.stderr)
        return
    old = counted(len(sessions), "session")
    shown = f"{old} on the old content can still be shown and reported, and what they taught stays in memory. "
    print(
        f"{shown if sessions else ''}Looks at the test set are counted by content: those at the old content "
        "stay counted, and the new content has none unless it was registered here before.",
        file=sys.stderr,
    )


def _confirm(question: str, yes: bool) -> None:
    """Ask for confirmation unless `yes`; raises typer.Abort for a no, and DataError without a terminal."""
    from ..data.errors import DataError

    if yes:
        return
    if not sys.stdin.isatty():
        raise DataError(f"{question} Standard input is not a terminal, so confirm with --yes")
    typer.confirm(question, abort=True, err=True)


def _add_yes() -> None:
    """Give `replace` the parameters of `add`, except the hidden one, and --yes."""
    parameters = [p for p in inspect.signature(add).parameters.values() if p.name != "replace"]
    confirmation = inspect.Parameter("yes", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Yes, default=False)
    replace.__signature__ = inspect.Signature([*parameters, confirmation])  # type: ignore[attr-defined]


_add_yes()


def _catalogue(home: Path) -> "Catalogue":
    from ..data.catalogue import Catalogue  # imports pydantic

    return Catalogue(home)


def _print_manifest(manifest: "Manifest", as_json: bool) -> None:
    if as_json:
        print(manifest.model_dump_json(indent=1, exclude={"files"}))
        return
    from .dataset_text import filter_lines, profile_lines, split_lines

    columns = ", ".join(f"{role} from {column!r}" for role, column in manifest.columns.items())
    print(
        f"{manifest.name}: {counted(manifest.num_users, 'user')}, {counted(manifest.num_items, 'item')}, "
        f"{counted(manifest.num_interactions, 'interaction')} (of {counted(manifest.rows_read, 'row')}; "
        f"columns: {columns})"
    )
    for line in (*filter_lines(manifest), *split_lines(manifest), *profile_lines(manifest)):
        print(f"  {line}")
    for note in manifest.notes:
        print(f"note: {note}")
