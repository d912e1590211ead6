"""Re-scoring: loads the model and the user states of a finished trial, to score them with other scoring knobs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.config import SCORING_KNOBS, TrialConfig, train_part
from .checkpoint import load_checkpoint
from .epoch_ranks import read_epoch_ranks
from .errors import TrainingError
from .spec import CHECKPOINT, EPOCH_RANKS, USERS, TrialResult, read_result, read_spec
from .trainer import FitResult


def load_trained(source: Path, config: TrialConfig, seed: int, device: torch.device) -> tuple[FitResult, TrialResult]:
    """The model and the result of the finished trial in `source`; training again would give an equal model.

    TrainingError if that trial is not finished, or if its configuration or seed differs in more than scoring knobs.
    """
    result = read_result(source)
    if result is None or result.status != "finished":
        raise TrainingError(f"rescore_from={str(source)!r} is not a finished trial; leave it out to train")
    model, trained = load_checkpoint(source / CHECKPOINT)
    differing = [knob for knob, value in train_part(config).items() if train_part(trained)[knob] != value]
    if differing or read_spec(source).seed != seed:
        raise TrainingError(
            f"only scoring knobs may differ from the trial to re-score; {', '.join(differing) or 'seed'} "
            "differs too: leave rescore_from out to train"
        )
    ranks = read_epoch_ranks(source / EPOCH_RANKS)
    rows = [] if ranks is None else list(ranks)
    curve = [record.model_copy(update={"judged": None}) for record in result.curve]  # those are of other scoring knobs
    return FitResult(model.to(device), curve, result.best_epoch, rows, []), result


def swept_configs(config: TrialConfig, settings: Sequence[Mapping[str, Any]]) -> list[TrialConfig]:
    """The configuration of each setting of a sweep over `config`; without settings, `config` alone.

    TrainingError if a setting changes a knob that training depends on, since all settings share one model.
    """
    differing = sorted({knob for setting in settings for knob in setting} - SCORING_KNOBS)
    if differing:
        raise TrainingError(f"a sweep changes scoring knobs only; {', '.join(differing)} needs a trial of its own")
    return [TrialConfig(**{**config.model_dump(), **setting}) for setting in settings] or [config]


def load_user_states(source: Path, num_users: int, hidden_dim: int) -> Tensor | None:
    """The states that the trial in `source` scored, (num_users, hidden_dim); None if it has no states of this shape."""
    path = source / USERS
    if not path.exists():
        return None
    states = torch.from_numpy(np.load(path))
    return states if states.shape == (num_users, hidden_dim) else None
