"""The ranks by which a trial is judged, while it trains: those of the scores with its score priors.

Weights, early stopping and the best epoch depend on the bare model only; these ranks are what racing compares. Without
score priors they are the ranks of the bare model and are not computed twice. With them they are computed after every
second epoch, because that takes nearly as long as the evaluation of the bare model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..models.config import TrialConfig, has_priors, scoring_part
from ..models.priors import PriorTables, RepeatedPriors, ScorePriors
from .epoch_ranks import Race, RanksByEpoch
from .metrics import ndcg_per_user
from .spec import EpochRecord
from .state import TrainingState
from .stopping import judged_epochs


@dataclass(frozen=True)
class Judging:
    """How the epochs of a training are judged, and what follows from it."""

    tables: PriorTables | None = None  # of the score priors; None = they are not computed
    race: Race | None = None  # decides after an epoch whether to stop
    end_early: Callable[[int], bool] = lambda epoch: False  # whether to end after it, with the best weights so far
    on_resume: Callable[[Sequence[EpochRecord]], None] = lambda curve: None  # is given the curve so far, as judged here


NOT_JUDGED = Judging()


class Judge:
    """What the epochs of one training are scored with."""

    def __init__(self, config: TrialConfig, tables: PriorTables | None, state: TrainingState) -> None:
        """state: where the training begins; if other scoring knobs have judged it, the training is not judged.

        Without `tables`, nothing is known of a configuration that has priors.
        """
        self._asked, self._bare, self._scoring = tables is not None, not has_priors(config), scoring_part(config)
        same = state.scoring == self._scoring and len(state.judged_ranks) == len(_judged(state))
        known = tables is not None and (same or not state.curve)
        priors = tables.priors(config) if tables and known else None
        self._priors = RepeatedPriors.of(priors) if priors else None

    def variants(self, epoch: int) -> list[ScorePriors | None]:
        """The ways of scoring an epoch: the bare model, then the priors if the epoch is judged with them."""
        return [None, self._priors] if self._priors and judged_epochs([epoch]) else [None]

    def begin(self, state: TrainingState) -> TrainingState:
        """`state` with what is known of its judged ranks, and of nothing that other scoring knobs have given."""
        if self._priors is None:
            state = replace(state, judged_ranks=[], scoring={})
        else:
            state = replace(state, scoring=self._scoring)
        ranks = self.ranks(state) or {}
        curve = [self.judged(record, ranks.get(record.epoch)) for record in state.curve]
        return replace(state, curve=curve)

    def ranks(self, state: TrainingState) -> RanksByEpoch | None:
        """The judged ranks of the epochs of `state` by epoch; None if they are not known."""
        if self._bare:
            return dict(zip((record.epoch for record in state.curve), state.epoch_ranks, strict=True))
        return dict(zip(_judged(state), state.judged_ranks, strict=True)) if self._priors else None

    def judged(self, record: EpochRecord, ranks: NDArray[np.uint8] | None) -> EpochRecord:
        """The record of an epoch with the NDCG@10 of its judged `ranks`, if it was asked for."""
        ndcg10 = float(ndcg_per_user(ranks).mean()) if self._asked and ranks is not None else None
        return record.model_copy(update={"judged": ndcg10})


def _judged(state: TrainingState) -> list[int]:
    return judged_epochs(record.epoch for record in state.curve)
