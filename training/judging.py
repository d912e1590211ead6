"""The ranks by which a trial is judged, after each epoch: those of the scores with its score priors.

Weights, early stopping and the best epoch depend on the bare model only; these ranks are what racing compares. Without
score priors they are the ranks of the bare model and are not computed twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..models.config import TrialConfig, has_priors, scoring_part
from ..models.priors import PriorTables, ScorePriors
from .epoch_ranks import Race, Rows
from .metrics import ndcg_per_user
from .spec import EpochRecord
from .state import TrainingState


@dataclass(frozen=True)
class Judging:
    """How the epochs of a training are judged."""

    tables: PriorTables | None = None  # of the score priors; None = they are not computed
    race: Race | None = None  # decides after an epoch whether to stop


NOT_JUDGED = Judging()


class Judge:
    """What an epoch of a configuration is scored with, and the ranks by which its epochs are judged so far."""

    def __init__(self, config: TrialConfig, tables: PriorTables | None, state: TrainingState) -> None:
        """Without `tables`, score priors are not computed; then nothing is known of a configuration that has some.

        state: where training begins. If it was not judged by the same scoring knobs, the whole training is not judged.
        """
        self.config = config
        self.bare = not has_priors(config)
        same = state.scoring == scoring_part(config) and len(state.judged_ranks) == len(state.curve)
        self.known = self.bare or (tables is not None and (same or not state.curve))
        self.priors: ScorePriors | None = tables.priors(config) if tables and self.known else None
        self.asked = tables is not None

    @property
    def variants(self) -> list[ScorePriors | None]:
        """The ways of scoring an epoch: the bare model first, the one that is judged last."""
        return [None, self.priors] if self.priors else [None]

    def begin(self, state: TrainingState) -> TrainingState:
        """The state with what is known of its judged ranks, and of nothing that other scoring knobs have given."""
        scoring = scoring_part(self.config) if self.priors else {}
        judged = self.ranks(state)
        curve = [
            record.model_copy(update={"judged": self._ndcg10(judged[row]) if judged else None})
            for row, record in enumerate(state.curve)
        ]
        return replace(state, curve=curve, judged_ranks=state.judged_ranks if self.priors else [], scoring=scoring)

    def ranks(self, state: TrainingState) -> Rows | None:
        """The judged ranks of all epochs of `state`; None if they are not known."""
        return None if not self.known else state.epoch_ranks if self.bare else state.judged_ranks

    def judged(self, record: EpochRecord, ranks: Sequence[NDArray[np.uint8]]) -> EpochRecord:
        """The record of an epoch with its judged NDCG@10, from the ranks of all `variants`."""
        return record.model_copy(update={"judged": self._ndcg10(ranks[-1])}) if self.known else record

    def _ndcg10(self, ranks: NDArray[np.uint8]) -> float | None:
        return float(ndcg_per_user(ranks).mean()) if self.asked else None
