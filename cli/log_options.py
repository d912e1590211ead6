"""The options with which commands read a log as `data add` does.

Commands that take a user or an item as --user or --item name the columns --user-column and --item-column.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

import typer

from .composed import Option, with_options

if TYPE_CHECKING:
    from ..data.cleaning import Cleaning
    from ..data.reading import Reading

LOG = (
    "A CSV, TSV, JSON or Parquet file, also compressed (.gz, .zip, .bz2, .xz, .zst); a directory of Parquet parts; "
    "or - for standard input, with --format."
)
LogFile = Annotated[Path, typer.Option("--log", metavar="FILE", help=LOG)]
KeepDuplicates = Annotated[bool, typer.Option("--keep-duplicates", help="Keep rows with equal user, item and time.")]

_OPTIONS: dict[str, Option] = {
    "user_column": (
        Annotated[
            str | None,
            typer.Option("--user-column", help="Name or number of the user column.", show_default="guessed"),
        ],
        None,
    ),
    "item_column": (
        Annotated[
            str | None,
            typer.Option("--item-column", help="Name or number of the item column.", show_default="guessed"),
        ],
        None,
    ),
    "timestamp_column": (
        Annotated[
            str | None,
            typer.Option("--timestamp-column", help="Name or number of the timestamp column.", show_default="guessed"),
        ],
        None,
    ),
    "format": (
        Annotated[
            str | None,
            typer.Option("--format", help="csv, tsv, jsonl or parquet.", show_default="by file extension"),
        ],
        None,
    ),
    "separator": (
        Annotated[
            str | None,
            typer.Option(
                "--separator", help="Cell separator of a text table, e.g. ';', '::' or tab.", show_default="detected"
            ),
        ],
        None,
    ),
    "header": (
        Annotated[
            bool | None,
            typer.Option(
                "--header/--no-header", help="Whether the first row has column names.", show_default="detected"
            ),
        ],
        None,
    ),
    "no_quotes": (
        Annotated[bool, typer.Option("--no-quotes", help="Treat double quotes as plain characters.")],
        False,
    ),
    "skip_bad_rows": (
        Annotated[bool, typer.Option("--skip-bad-rows", help="Skip and count rows that cannot be parsed.")],
        False,
    ),
    "time_unit": (
        Annotated[str, typer.Option("--time-unit", help="Unit of numeric times: s, ms, us, ns, day or auto.")],
        "auto",
    ),
    "drop_bad_times": (
        Annotated[bool, typer.Option("--drop-bad-times", help="Drop rows without a valid time.")],
        False,
    ),
    "drop_missing": (
        Annotated[bool, typer.Option("--drop-missing", help="Drop rows without a user or item.")],
        False,
    ),
}
"""The options of `reads_a_log` by parameter."""


class LogReading(NamedTuple):
    """How the rows of a log are read and cleaned, as the options say."""

    reading: "Reading"
    cleaning: "Cleaning"

    @classmethod
    def given(cls, **options: Any) -> Self:
        """From the values of the options; raises DataError for an unknown format or unit."""
        from ..data.cleaning import Cleaning
        from ..data.errors import DataError
        from ..data.reading import Reading

        user, item, timestamp = (options[f"{name}_column"] for name in ("user", "item", "timestamp"))
        form = options["format"]
        if form not in (None, "csv", "tsv", "jsonl", "parquet"):
            raise DataError(f"format={form!r} is not known; use csv, tsv, jsonl or parquet")
        quotes = False if options["no_quotes"] else None
        table = options["separator"], options["header"], quotes, options["skip_bad_rows"]
        reading = Reading(user, item, timestamp, form, *table)
        return cls(reading, Cleaning(options["drop_missing"], options["drop_bad_times"], options["time_unit"]))


def reads_a_log(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of reading a log in place of its parameter `rows`, a LogReading."""
    return with_options(command, "rows", _OPTIONS, LogReading.given)


@contextmanager
def columns_by_these_options() -> Iterator[None]:
    """A DataError inside names the options of columns as these commands have them, not as `data add` does."""
    from ..data.errors import ColumnsError, DataError

    try:
        yield
    except ColumnsError as error:
        raise ColumnsError(error.problem, error.columns, suffix="-column") from None
    except DataError as error:
        raise DataError(re.sub(r"--(user|item|timestamp)\b", r"--\1-column", str(error))) from None
