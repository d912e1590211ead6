"""The learning rate of each step, as a factor on `lr`: a linear warm-up, then constant, or down to zero."""

import math

from ..models.config import TrialConfig


def lr_factor(config: TrialConfig, step: int, steps_per_epoch: int) -> float:
    """The factor in [0, 1] of step 0, 1, …, when an epoch has `steps_per_epoch`.

    Warm-up takes `warmup_epochs`, from one step's share up to 1. "linear" and "cosine" (Loshchilov & Hutter 2017,
    eq. 5, without restarts) then fall to 0 at the end of `epochs`, also where early stopping ends training before.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    if config.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1.0, config.epochs * steps_per_epoch - warmup)
    return 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
