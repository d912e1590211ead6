"""A replay table: one Parquet file with all cells of a grid, from which sessions are served without training.

The footer holds, as JSON under the key `virtualmle.replay`, the protocol page, the manifest of the dataset, the
provenance of the measurements and a digest of the rows; `training/cells.py` describes the columns. A table contains
nothing that depends on test targets.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PanicException, PolarsError
from pydantic import BaseModel, ConfigDict, ValidationError

from ..data.atomic import write_bytes
from ..data.errors import ReplayError
from ..data.prepared import Manifest
from ..training.cells import Cell, cells_of, encoded, frame_of, read_frame

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


class ReplayTable:
    """The content of a replay file."""

    def __init__(self, path: Path, footer: Footer, cells: Sequence[Cell]) -> None:
        self.path = path
        self.footer = footer
        self.cells = list(cells)

    @classmethod
    def read(cls, path: Path) -> "ReplayTable":
        """Read and verify a table. Raises ReplayError if it is missing, damaged or of another format."""
        frame = read_frame(path)
        footer = read_footer(path)
        if _digest(frame) != footer.digest:
            raise ReplayError(f"{str(path)!r} is damaged: its rows differ from the digest in its footer; copy it again")
        cells = cells_of(frame)
        users = footer.dataset.num_users
        if any(cell.ranks is not None and len(cell.ranks) != users for cell in cells):
            raise ReplayError(f"{str(path)!r} is damaged: a row has not the ranks of {users} users; copy it again")
        return cls(path, footer, cells)

    def write(self) -> None:
        """Write the file atomically, with the digest of its rows."""
        frame = frame_of(self.cells)
        footer = self.footer.model_copy(update={"digest": _digest(frame)})
        write_bytes(self.path, encoded(frame, {KEY: footer.model_dump_json()}))

    def backbones(self) -> list[str]:
        """The backbones of the cells, in their order."""
        return list(dict.fromkeys(cell.backbone for cell in self.cells))


def read_footer(path: Path) -> Footer:
    """The footer of a table; no row is read. Raises ReplayError."""
    try:
        metadata: Mapping[str, str] = pl.read_parquet_metadata(path)
        return Footer.model_validate_json(metadata[KEY])
    except (OSError, PolarsError, PanicException, KeyError):
        raise ReplayError(f"{str(path)!r} is no replay table: it has no readable entry {KEY} in its footer") from None
    except ValidationError as error:
        message = error.errors(include_url=False)[0]
        raise ReplayError(
            f"the footer of {str(path)!r} is damaged or of another version ({message['loc']}: {message['msg']}); "
            "build the table again"
        ) from None


def _digest(frame: pl.DataFrame) -> str:
    digest = hashlib.sha256()
    for row in frame.iter_rows(named=True):
        ranks = row.pop("ranks")
        digest.update(json.dumps(row, sort_keys=True).encode())
        digest.update(ranks or b"")
    return digest.hexdigest()
