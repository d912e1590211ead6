"""How a log is to be read, and what the reader of one format returns. Not covered: ids, times and missing values."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .errors import DataError
from .wording import counted

if TYPE_CHECKING:
    import polars as pl

Format = Literal["csv", "tsv", "jsonl", "parquet"]
ROLES = ("user", "item", "timestamp")
NOT_UTF_8 = "not UTF-8 text; if it is Latin-1, convert the file with iconv -f LATIN1 -t UTF-8"
NUM_NAMED = 3  # bad rows that a message names


@dataclass(frozen=True)
class Reading:
    """What a caller can say about a log, as `read_log` takes it; None = decide from the name and the content."""

    user: str | None = None  # the name of a column, or its number, counted from 1
    item: str | None = None
    timestamp: str | None = None
    format: Format | None = None
    separator: str | None = None
    header: bool | None = None
    quotes: bool | None = None  # False: a double quote is a character like any other
    skip_bad_rows: bool = False

    def given(self) -> dict[str, str]:
        """The columns that the caller named: role → name or number."""
        named = zip(ROLES, (self.user, self.item, self.timestamp), strict=True)
        return {role: name for role, name in named if name is not None}


@dataclass(frozen=True)
class RawLog:
    """The columns user, item and timestamp as they are in the file, without rows that cannot be parsed."""

    frame: "pl.DataFrame"
    columns: dict[str, str]  # role → name of the column
    rows: "pl.Series | int"  # the row number in the file of each row of `frame`, or of the first if none is left out
    notes: tuple[str, ...] = ()


@dataclass
class BadRows:
    """Counts the rows of a file that cannot be parsed, and remembers the first ones with the reason."""

    source: str
    skip: bool
    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)

    def add(self, row: int, reason: str) -> None:
        self.count += 1
        if len(self.first) < NUM_NAMED:
            self.first.append((row, reason))

    def notes(self) -> tuple[str, ...]:
        """A note about the rows left out, if any. Raises DataError if bad rows are not to be skipped."""
        if not self.count:
            return ()
        reasons: dict[str, list[str]] = {}
        for row, reason in self.first:
            reasons.setdefault(reason, []).append(f"row {row}")
        named = "; ".join(f"{', '.join(rows)}: {reason}" for reason, rows in reasons.items())
        if self.skip:
            return (f"{counted(self.count, 'bad row')} skipped ({named})",)
        rest = f" ({self.count:,} bad rows in all)" if self.count > 1 else ""
        raise DataError(f"{self.source}, {named}{rest}; correct the file, or leave such rows out with --skip-bad-rows")
