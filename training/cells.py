"""The cells of a grid: jobs for `cell_worker.py`, its answers, and the rows of a replay table, as Parquet.

A *cell* is one configuration of a grid with everything that its trial measures. Cells that differ in scoring knobs only
share one training run, so a job is one training configuration with all of its scoring settings. This module does not
import torch, because the process that reads a table does not need it.
"""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.exceptions import PanicException, PolarsError
from pydantic import BaseModel, ConfigDict

from ..data.errors import ReplayError
from .spec import EpochRecord

MAX_RANK = 100  # larger ranks are stored as this one: no metric but the MRR, which is stored, depends on them
METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr")
SCHEMA: dict[str, pl.DataType] = {
    "backbone": pl.String(),
    "settings": pl.String(),  # JSON: the knobs that differ from the page's default
    "cause": pl.String(),  # null: the trial finished
    **{name: pl.Float64() for name in METRICS},
    "model_ndcg10": pl.Float64(),
    "train_ndcg10": pl.Float64(),
    "ties": pl.Int64(),
    "parameters": pl.Int64(),
    "best_epoch": pl.Int64(),
    "train_seconds": pl.Float64(),
    "evaluate_seconds": pl.Float64(),
    "score_seconds": pl.Float64(),
    "wall_seconds": pl.Float64(),
    "curve": pl.String(),  # JSON: a list of EpochRecord
    "ranks": pl.Binary(),  # uint8 per user
}
"""The columns of a table."""


class CellTask(BaseModel):
    """One configuration to measure, complete, and as settings over the default of the page."""

    model_config = ConfigDict(frozen=True)

    settings: dict[str, Any]
    config: dict[str, Any]


class CellsJob(BaseModel):
    """One training configuration: all cells have equal training knobs. The result is written to `part`."""

    model_config = ConfigDict(frozen=True)

    dataset_dir: str
    cells: list[CellTask]
    seed: int
    device: str
    threads: int
    part: str


class JobDone(BaseModel):
    """The worker's answer to a job: wall-clock seconds, or why the machine could not run it."""

    model_config = ConfigDict(frozen=True)

    seconds: float = 0.0
    error: str | None = None


class Cell(BaseModel):
    """What a trial of one configuration measures. With a `cause`, the trial failed and has no ranks or metrics.

    train_seconds: of the training steps. evaluate_seconds: of all evaluations of a trial that trains.
    score_seconds: of a trial that re-scores an existing checkpoint. wall_seconds: of training and scoring on the clock,
    whatever else the machine did; the other seconds are processor time if one thread computed, else wall time as well.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    backbone: str
    settings: dict[str, Any]
    cause: str | None = None
    metrics: dict[str, float] = {}
    model_ndcg10: float | None = None
    train_ndcg10: float | None = None
    ties: int = 0
    parameters: int = 0
    best_epoch: int = 0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    score_seconds: float = 0.0
    wall_seconds: float = 0.0
    curve: list[EpochRecord] = []
    ranks: npt.NDArray[np.uint8] | None = None  # (num_users,), 1 = best, at most MAX_RANK


def clipped(ranks: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """Ranks as a table stores them."""
    return np.minimum(ranks, MAX_RANK).astype(np.uint8)


def frame_of(cells: Sequence[Cell]) -> pl.DataFrame:
    """The cells as rows with the columns of SCHEMA."""
    return pl.DataFrame([_row(cell) for cell in cells], schema=SCHEMA)


def cells_of(frame: pl.DataFrame) -> list[Cell]:
    """The cells in the rows of `frame`, which has the columns of SCHEMA."""
    return [_cell(row) for row in frame.iter_rows(named=True)]


def encoded(frame: pl.DataFrame, metadata: dict[str, str]) -> bytes:
    """The bytes of a Parquet file of `frame`, with `metadata` in its footer."""
    buffer = BytesIO()
    frame.write_parquet(buffer, compression="zstd", compression_level=12, metadata=metadata)
    return buffer.getvalue()


def read_frame(path: Path) -> pl.DataFrame:
    """The rows of a table or of a part of one. Raises ReplayError if it is missing, damaged or something else."""
    try:
        frame = pl.read_parquet(path)
    except OSError as error:
        raise ReplayError(f"{str(path)!r} cannot be read ({error.strerror or error}); check the path") from None
    except (PolarsError, PanicException) as error:  # the reader panics on some damaged pages
        raise ReplayError(f"{str(path)!r} is not a replay table or is damaged ({_first_line(error)})") from None
    if dict(frame.schema) != SCHEMA:
        raise ReplayError(f"{str(path)!r} has other columns than a table of `virtualmle replay build`; give one")
    return frame


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0][:200]


def _row(cell: Cell) -> dict[str, Any]:
    plain = cell.model_dump(exclude={"settings", "metrics", "curve", "ranks"})
    return plain | {
        "settings": json.dumps(cell.settings, sort_keys=True),
        "curve": json.dumps([record.model_dump() for record in cell.curve]),
        "ranks": None if cell.ranks is None else cell.ranks.tobytes(),
        **{name: cell.metrics.get(name) for name in METRICS},
    }


def _cell(row: dict[str, Any]) -> Cell:
    metrics = {name: row.pop(name) for name in METRICS}
    return Cell(
        **row
        | {
            "settings": json.loads(row["settings"]),
            "curve": json.loads(row["curve"]),
            "ranks": None if row["ranks"] is None else np.frombuffer(row["ranks"], np.uint8),
            "metrics": {} if row["cause"] else metrics,
        }
    )
