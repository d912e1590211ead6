"""What a continuation of training is asked for, and what it has done. Does not import torch."""

from dataclasses import dataclass
from typing import NamedTuple

from ..data.errors import ExportError
from ..models.config import TrialConfig
from ..models.knobs.trial_names import NO_TRIALS
from .evaluation_result import EvaluationResult, Figure

DEFAULT_EPOCHS = 3
LR_SHARE = 0.5  # of the trial's learning rate, as a default


@dataclass(frozen=True)
class ContinueOptions:
    """How training goes on; schedule, warm-up and weight averaging of the trial are not used."""

    epochs: int = DEFAULT_EPOCHS
    lr: float | None = None  # None = LR_SHARE of the learning rate of each member's trial
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ExportError(f"epochs={self.epochs} is not positive; {DEFAULT_EPOCHS} is usual")

    def of_member(self, config: TrialConfig) -> TrialConfig:
        """The configuration of a member with these options, without teachers: an export has none."""
        lr = config.lr * LR_SHARE if self.lr is None else self.lr
        changes = {"epochs": self.epochs, "lr": lr, "schedule": "constant", "warmup_epochs": 0.0, "ema_decay": 0.0}
        changes["teachers"] = NO_TRIALS
        return TrialConfig(**{**config.model_dump(), **changes})


class Continued(NamedTuple):
    """What a continuation has done."""

    before: EvaluationResult  # of the old export, on the held-out events
    after: EvaluationResult  # of the new one, on the same events
    difference: Figure  # NDCG@10 after minus before, paired over users
    num_new_items: int
    num_events: int  # that were trained on
