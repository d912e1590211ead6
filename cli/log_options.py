"""The options with which commands read a log as `data add` does.

Commands that take a user or an item as --user or --item name the columns --user-column and --item-column.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..data.interactions import Cleaning
    from ..data.reading import Reading

LOG = (
    "A CSV, TSV, JSON or Parquet file, also compressed (.gz, .zip, .bz2, .xz, .zst); a directory of Parquet parts; "
    "or - for standard input, with --format."
)
LogFile = Annotated[Path, typer.Option("--log", metavar="FILE", help=LOG)]
UserColumn = Annotated[
    str | None, typer.Option("--user-column", help="Name or number of the user column.", show_default="guessed")
]
ItemColumn = Annotated[
    str | None, typer.Option("--item-column", help="Name or number of the item column.", show_default="guessed")
]
TimeColumn = Annotated[
    str | None,
    typer.Option("--timestamp-column", help="Name or number of the timestamp column.", show_default="guessed"),
]
FormatName = Annotated[
    str | None, typer.Option("--format", help="csv, tsv, jsonl or parquet.", show_default="by file extension")
]
Separator = Annotated[
    str | None,
    typer.Option("--separator", help="Cell separator of a text table, e.g. ';', '::' or tab.", show_default="detected"),
]
Header = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="Whether the first row has column names.", show_default="detected"),
]
NoQuotes = Annotated[bool, typer.Option("--no-quotes", help="Treat double quotes as plain characters.")]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Skip and count rows that cannot be parsed.")]
TimeUnitName = Annotated[str, typer.Option("--time-unit", help="Unit of numeric times: s, ms, us, ns, day or auto.")]
DropBadTimes = Annotated[bool, typer.Option("--drop-bad-times", help="Drop rows without a valid time.")]
DropMissing = Annotated[bool, typer.Option("--drop-missing", help="Drop rows without a user or item.")]
KeepDuplicates = Annotated[bool, typer.Option("--keep-duplicates", help="Keep rows with equal user, item and time.")]


def make_reading(  # noqa: PLR0913, PLR0917 - one parameter per option
    user: str | None,
    item: str | None,
    timestamp: str | None,
    format: str | None,
    separator: str | None,
    header: bool | None,
    no_quotes: bool,
    skip_bad_rows: bool,
) -> "Reading":
    """The reading that the options describe; raises DataError for an unknown format."""
    from ..data.errors import DataError
    from ..data.reading import Reading

    if format not in (None, "csv", "tsv", "jsonl", "parquet"):
        raise DataError(f"format={format!r} is not known; use csv, tsv, jsonl or parquet")
    quotes = False if no_quotes else None
    return Reading(user, item, timestamp, format, separator, header, quotes, skip_bad_rows)  # type: ignore[arg-type]


def make_cleaning(drop_missing: bool, drop_bad_times: bool, time_unit: str) -> "Cleaning":
    """The cleaning that the options describe; raises DataError for an unknown unit."""
    from ..data.interactions import Cleaning

    return Cleaning(drop_missing, drop_bad_times, time_unit)  # type: ignore[arg-type]  # checked by Cleaning
