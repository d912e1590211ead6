"""A replay table: one Parquet file with all cells of a grid, from which sessions are served without training.

The footer holds, as JSON under the key `virtualmle.replay`, the protocol page, the manifest of the dataset, the
provenance of the measurements and a digest of the rows; `training/cells.py` describes the columns. A table contains
nothing that depends on test targets.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars.exceptions import PanicException, PolarsError
from pydantic import BaseModel, ConfigDict, ValidationError

from ..data.atomic import write_bytes
from ..data.errors import ReplayError
from ..data.permissions import as_the_user_set
from ..data.prepared import Manifest
from ..training.cells import METRICS, SCHEMA, Cell, cells_of, encoded, frame_of, read_frame
from ..training.metrics import metrics_from_ranks

KEY = "virtualmle.replay"
FORMAT_VERSION = 1


class Footer(BaseModel):
    """What the footer of a table says about its rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    page: str  # the text of the protocol page
    dataset: Manifest
    seed: int  # of the sessions that the cells were measured for
    clock: str  # "processor" or "wall": what the seconds of a cell are
    provenance: dict[str, Any]  # date, commit, versions, processor, threads, …
    digest: str = ""  # SHA-256 over the rows
    pages: str = ""  # SHA-256 over the bytes before the footer; empty in tables of before it was recorded


class ReplayTable:
    """The content of a replay file."""

    def __init__(self, path: Path, footer: Footer, cells: Sequence[Cell]) -> None:
        self.path = path
        self.footer = footer
        self.cells = list(cells)

    @classmethod
    def read(cls, path: Path) -> "ReplayTable":
        """Read and verify a table. Raises ReplayError if it is missing, damaged or of another format."""
        footer = read_footer(path)
        _check_pages(path, footer)
        frame = read_frame(path)
        if _digest(frame) != footer.digest:
            raise ReplayError(f"{str(path)!r} is damaged: its rows differ from the digest in its footer; copy it again")
        if footer.format_version != FORMAT_VERSION:
            raise ReplayError(
                f"{str(path)!r} has format {footer.format_version}, and this version reads format {FORMAT_VERSION}; "
                "build the table again"
            )
        users = footer.dataset.num_ranked
        for number, row in enumerate(frame.iter_rows(named=True), 1):
            if problem := _problem(row, users):
                raise ReplayError(f"{str(path)!r} is damaged: row {number} has {problem}; copy the file again")
        return cls(path, footer, cells_of(frame))

    def write(self) -> None:
        """Write the file atomically, with the digest of its rows."""
        frame = frame_of(self.cells)
        pages = _pages_digest(encoded(frame, {}))
        footer = self.footer.model_copy(update={"digest": _digest(frame), "pages": pages})
        with as_the_user_set():
            write_bytes(self.path, encoded(frame, {KEY: footer.model_dump_json()}))

    def backbones(self) -> list[str]:
        """The backbones of the cells, in their order."""
        return list(dict.fromkeys(cell.backbone for cell in self.cells))


def read_footer(path: Path) -> Footer:
    """The footer of a table; no row is read. Raises ReplayError."""
    try:
        metadata: Mapping[str, str] = pl.read_parquet_metadata(path)
        return Footer.model_validate_json(metadata[KEY])
    except OSError as error:
        raise ReplayError(f"{str(path)!r} cannot be read ({error.strerror or error}); check the path") from None
    except (PolarsError, PanicException, KeyError):
        raise ReplayError(
            f"{str(path)!r} is no replay table or is damaged: it has no readable entry {KEY} in its footer"
        ) from None
    except ValidationError as error:
        message = error.errors(include_url=False)[0]
        raise ReplayError(
            f"the footer of {str(path)!r} is damaged or of another version ({message['loc']}: {message['msg']}); "
            "build the table again"
        ) from None


def _problem(row: Mapping[str, Any], users: int) -> str:
    """What no trial can have measured: figures that differ from the ranks, impossible ranks or seconds."""
    seconds = [row[name] for name in SCHEMA if name.endswith("_seconds")]
    if not all(value is not None and 0 <= value < math.inf for value in seconds):
        return "seconds that are none"
    if row["cause"]:
        return ""
    ranks = np.frombuffer(row["ranks"] or b"", np.uint8)
    if len(ranks) != users or ranks.min() < 1:
        return f"not the ranks of {users} users"
    expected = metrics_from_ranks(ranks.astype(np.int32))
    wrong = [name for name in METRICS if name != "mrr" and not _close(row[name], expected[name])]
    wrong += [] if _is_share(row["mrr"]) else ["mrr"]  # needs ranks beyond those stored
    return f"{', '.join(wrong)} other than its ranks" if wrong else ""


def _close(value: float | None, expected: float) -> bool:
    return value is not None and math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-9)


def _is_share(value: float | None) -> bool:
    return value is not None and 0 <= value <= 1


def _check_pages(path: Path, footer: Footer) -> None:
    """Raise ReplayError if the pages are damaged: the reader aborts the process if the size of a page is absurd."""
    if footer.pages and _pages_digest(path.read_bytes()) != footer.pages:
        raise ReplayError(f"{str(path)!r} is damaged: its pages differ from the digest in its footer; copy it again")


def _pages_digest(content: bytes) -> str:
    """SHA-256 over the bytes before the footer of a Parquet file, whose length is in front of the last four bytes."""
    length = int.from_bytes(content[-8:-4], "little")
    return hashlib.sha256(content[: max(0, len(content) - 8 - length)]).hexdigest()


def _digest(frame: pl.DataFrame) -> str:
    digest = hashlib.sha256()
    for row in frame.iter_rows(named=True):
        ranks = row.pop("ranks")
        digest.update(json.dumps(row, sort_keys=True).encode())
        digest.update(ranks or b"")
    return digest.hexdigest()
