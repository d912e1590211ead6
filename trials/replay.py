"""A trial served from a replay table: the files that its worker would have written, at once and without a process.

Everything after these files is the path of a trial that was trained. There is no checkpoint; `REPLAYED` stands for it:
the model of the trial is known, so a trial that changes scoring knobs only is charged as a re-scoring.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..data.atomic import write_json
from ..data.errors import MachineError, TrialError
from ..data.hashing import write_hashed
from ..training.metrics import best_setting
from ..training.signature import write_signed_result
from ..training.spec import RANKS, SPEC, SWEPT_RANKS, TrialResult, TrialSpec, write_model

if TYPE_CHECKING:
    from ..training.cells import Cell  # imports polars

REPLAYED = "replayed.json"


def serve(cells: Sequence["Cell"], spec: TrialSpec, directory: Path, key: bytes, dataset_id: str) -> None:
    """Write the result of `spec` as its cell has it, or of a sweep, as the cells of its settings have it.

    key: of the session, with which the files are signed; dataset_id: of the table's dataset.
    A re-scored trial is charged the seconds of scoring only, a sweep those of all of its settings.
    TrialError if the directory already holds a trial, MachineError if it cannot be written.
    """
    if directory.is_dir() and any(directory.iterdir()):
        raise TrialError(f"{directory} already holds a trial; a handle is never reused: start a new trial")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_model(directory / SPEC, spec)
        write_json(directory / REPLAYED, [cell.settings for cell in cells])
        files: dict[str, str] = {}
        result = _result(cells, spec, directory, files)
        write_signed_result(directory, key, spec, result, files, dataset_id=dataset_id, by="server")
    except OSError as error:
        raise MachineError(
            f"trial {spec.trial} could not be written to {directory} ({error.strerror}); free disk space and retry"
        ) from None


def _result(cells: Sequence["Cell"], spec: TrialSpec, directory: Path, files: dict[str, str]) -> TrialResult:
    """The result of the trial; its ranks are written to `directory`, and their SHA-256 to `files`."""
    rescored = spec.rescore_from is not None
    failed = next((cell for cell in cells if cell.cause), None)
    if failed:
        return result_of(failed, rescored=rescored)
    if not spec.settings:
        files[RANKS] = _write_ranks(directory / RANKS, _ranks(cells[0]).astype(np.int32))
        return result_of(cells[0], rescored=rescored)
    swept = np.stack([_ranks(cell) for cell in cells])
    best = best_setting(swept)
    files[RANKS] = _write_ranks(directory / RANKS, swept[best].astype(np.int32))
    files[SWEPT_RANKS] = _write_ranks(directory / SWEPT_RANKS, swept)
    seconds = sum(cell.score_seconds for cell in cells)
    changes = {"best_setting": best, "evaluate_seconds": seconds, "wall_seconds": seconds}
    return result_of(cells[best], rescored=rescored).model_copy(update=changes)


def _ranks(cell: "Cell") -> npt.NDArray[np.uint8]:
    assert cell.ranks is not None  # every cell without a cause has ranks
    return cell.ranks


def _write_ranks(path: Path, ranks: npt.NDArray[Any]) -> str:
    buffer = BytesIO()
    np.save(buffer, ranks)
    return write_hashed(path, buffer.getvalue())


def result_of(cell: "Cell", *, rescored: bool) -> TrialResult:
    """The result of a trial with this configuration, with the seconds that it would be charged."""
    train_seconds = 0.0 if rescored else cell.train_seconds
    evaluate_seconds = cell.score_seconds if rescored else cell.evaluate_seconds
    return TrialResult(
        status="failed" if cell.cause else "finished",
        cause=cell.cause,
        metrics=cell.metrics,
        model_ndcg10=cell.model_ndcg10,
        train_ndcg10=cell.train_ndcg10,
        ties=cell.ties,
        curve=cell.curve,
        best_epoch=cell.best_epoch,
        parameters=cell.parameters,
        train_seconds=train_seconds,
        evaluate_seconds=evaluate_seconds,
        wall_seconds=train_seconds + evaluate_seconds,
        device="replay",
    )
