"""The files of racing in a trial's directory: the ranks of every evaluated epoch, and the race to apply.

This module does not import torch, because the server uses it as well.
"""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ..data.atomic import write_bytes
from .racing import RaceContext, StopCause, decide
from .spec import EPOCH_RANKS, INCUMBENT_RANKS, RACE, EpochRecord, write_model

Race = Callable[[Sequence[EpochRecord], Sequence[NDArray[np.uint8]], int], StopCause | None]
"""Decides after an epoch whether to stop: from the curve, the clipped ranks (num_users,) of each of its epochs, and the
number of weights."""

EpochRanks = NDArray[np.uint8]
"""Ranks (num_epochs_evaluated, num_users) of the bare model, those above 255 as 255."""


def write_epoch_ranks(directory: Path, rows: Sequence[NDArray[np.uint8]]) -> None:
    """Write `rows`, one array (num_users,) per evaluated epoch, as the epoch ranks of the trial in `directory`."""
    buffer = BytesIO()
    np.save(buffer, np.stack(rows))
    write_bytes(directory / EPOCH_RANKS, buffer.getvalue())


def read_epoch_ranks(path: Path) -> EpochRanks | None:
    """The epoch ranks in a file; None if it does not exist or is damaged."""
    try:
        ranks = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return ranks if ranks.ndim == 2 and ranks.dtype == np.uint8 else None


def write_race(directory: Path, context: RaceContext, incumbent_ranks: EpochRanks) -> None:
    """Write the files with which the worker of the trial in `directory` races it against the incumbent."""
    buffer = BytesIO()
    np.save(buffer, incumbent_ranks)
    write_bytes(directory / INCUMBENT_RANKS, buffer.getvalue())
    write_model(directory / RACE, context)


def race_in(directory: Path) -> Race | None:
    """The race of the trial in `directory`; None if it is not raced, or if the files are damaged."""
    incumbent_ranks = read_epoch_ranks(directory / INCUMBENT_RANKS)
    try:
        context = RaceContext.model_validate_json((directory / RACE).read_bytes())
    except (OSError, ValidationError):
        return None
    if incumbent_ranks is None:
        return None

    def race(curve: Sequence[EpochRecord], ranks: Sequence[NDArray[np.uint8]], parameters: int) -> StopCause | None:
        return decide([record.epoch for record in curve], ranks, parameters, incumbent_ranks, context)

    return race
