"""The learning-rate schedule, as a factor on `lr`: linear warm-up, then constant or decaying to zero."""

import math

from ..models.config import TrialConfig


def lr_factor(config: TrialConfig, step: int, steps_per_epoch: int) -> float:
    """The factor in [0, 1] for a step, counted from 0 over all epochs of `steps_per_epoch` steps each.

    Warm-up rises linearly to 1 within `warmup_epochs`. "linear" and "cosine" (Loshchilov & Hutter 2017, eq. 5, without
    restarts) then decay to 0 at the end of `epochs`; early stopping does not shorten the schedule.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    if config.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1.0, config.epochs * steps_per_epoch - warmup)
    return 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
