"""Where the rows of a frame come from, so that messages can name the file, its columns and its row numbers."""

from dataclasses import dataclass

import polars as pl

NUM_NAMED = 3  # the number of rows that a message names


@dataclass(frozen=True)
class Source:
    """A log file and the rows that were read from it."""

    file: str
    columns: dict[str, str]  # role (user, item, timestamp) → column of the file
    rows: int | pl.Series = 1  # the number of the first row, or, if rows were skipped, the number of each row

    def row(self, position: int) -> int:
        """The number in the file of the row at `position` in the frame."""
        return self.rows + position if isinstance(self.rows, int) else int(self.rows[position])

    def place(self, bad: pl.Series) -> str:
        """The file and the first row where the mask `bad` is true."""
        return f"{self.file}, row {self.row(int(bad.arg_true()[0]))}"

    def extent(self, bad: pl.Series) -> str:
        """How many rows the mask `bad` marks, and the first of them: '8 of 48 rows: 2, 8, 14, ...'."""
        positions = bad.arg_true()
        named = ", ".join(str(self.row(int(position))) for position in positions[:NUM_NAMED])
        return f"{len(positions):,} of {len(bad):,} rows: {named}{', ...' if len(positions) > NUM_NAMED else ''}"
