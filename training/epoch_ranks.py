"""The files of racing in a trial's directory: the ranks of every evaluated epoch, and the race to apply.

This module does not import torch, because the server uses it as well.
"""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ..data.atomic import write_bytes
from ..data.hashing import write_hashed
from .metrics import clip_ranks
from .racing import RaceContext, StopCause, decide
from .spec import INCUMBENT_RANKS, RACE, RANKS, EpochRecord, read_trial_file, write_model

Rows = Sequence[NDArray[np.uint8]]
"""Clipped ranks (num_users,), one array per evaluated epoch."""

RanksByEpoch = Mapping[int, NDArray[np.uint8]]
"""Clipped ranks (num_users,) by epoch."""

Race = Callable[[Sequence[EpochRecord], Rows, RanksByEpoch, int], StopCause | None]
"""Decides after an epoch whether to stop: from the curve, the ranks of the bare model after each of its epochs, those
with score priors after some of them, and the number of weights."""

EpochRanks = NDArray[np.uint8]
"""Ranks (num_epochs_evaluated, num_users), those above 255 as 255."""


def write_epoch_ranks(path: Path, rows: Rows) -> str:
    """Write `rows`, one array (num_users,) per evaluated epoch, to a file; returns its SHA-256."""
    buffer = BytesIO()
    np.save(buffer, np.stack(rows))
    return write_hashed(path, buffer.getvalue())


def read_epoch_ranks(path: Path) -> EpochRanks | None:
    """The epoch ranks in a file; None if it does not exist or is damaged."""
    try:
        ranks = np.load(BytesIO(read_trial_file(path.parent, path.name)))
    except (OSError, ValueError, EOFError):
        return None
    return ranks if ranks.ndim == 2 and ranks.dtype == np.uint8 else None


def read_ranks(directory: Path) -> NDArray[np.uint8] | None:
    """The final ranks of the trial in `directory`, clipped (num_users,); None if they do not exist or are damaged."""
    try:
        return clip_ranks(np.load(BytesIO(read_trial_file(directory, RANKS))))
    except (OSError, ValueError, EOFError):
        return None


def write_race(directory: Path, context: RaceContext, incumbent_ranks: EpochRanks) -> None:
    """Write the files with which the worker of the trial in `directory` races it against the incumbent.

    incumbent_ranks: as `decide` takes them.
    """
    buffer = BytesIO()
    np.save(buffer, incumbent_ranks)
    write_bytes(directory / INCUMBENT_RANKS, buffer.getvalue())
    write_model(directory / RACE, context)


def race_in(directory: Path, advise: Callable[[StopCause], None] = lambda cause: None) -> Race | None:
    """The race of the trial in `directory`; None if it is not raced, or if the files are damaged.

    advise: is given the cause instead, if the race stops nothing.
    """
    incumbent_ranks = read_epoch_ranks(directory / INCUMBENT_RANKS)
    try:
        context = RaceContext.model_validate_json((directory / RACE).read_bytes())
    except (OSError, ValidationError):
        return None
    if incumbent_ranks is None:
        return None

    def race(curve: Sequence[EpochRecord], bare: Rows, judged: RanksByEpoch, parameters: int) -> StopCause | None:
        cause = decide([record.epoch for record in curve], bare, judged, parameters, incumbent_ranks, context)
        if cause is None or context.stops:
            return cause
        advise(cause)
        return None

    return race
