"""A trial served from a replay table: the files that its worker would have written, at once and without a process.

Everything after these files is the path of a trial that was trained. There is no checkpoint; `REPLAYED` stands for it:
the model of the trial is known, so a trial that changes scoring knobs only is charged as a re-scoring.
"""

from io import BytesIO
from pathlib import Path

import numpy as np

from ..data.atomic import write_bytes, write_json
from ..data.errors import MachineError, TrialError
from ..training.cells import Cell
from ..training.spec import RANKS, RESULT, SPEC, TrialResult, TrialSpec, write_model

REPLAYED = "replayed.json"


def serve(cell: Cell, spec: TrialSpec, directory: Path) -> None:
    """Write the result of `spec` as `cell` has it. A re-scored trial is charged the seconds of scoring only.

    TrialError if the directory already holds a trial, MachineError if it cannot be written.
    """
    if directory.is_dir() and any(directory.iterdir()):
        raise TrialError(f"{directory} already holds a trial; a handle is never reused: start a new trial")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_model(directory / SPEC, spec)
        write_json(directory / REPLAYED, {"settings": cell.settings})
        if cell.ranks is not None:
            buffer = BytesIO()
            np.save(buffer, cell.ranks.astype(np.int32))
            write_bytes(directory / RANKS, buffer.getvalue())
        write_model(directory / RESULT, result_of(cell, rescored=spec.rescore_from is not None))
    except OSError as error:
        raise MachineError(
            f"trial {spec.trial} could not be written to {directory} ({error.strerror}); free disk space and retry"
        ) from None


def result_of(cell: Cell, *, rescored: bool) -> TrialResult:
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
