"""Soft targets from item transitions: what followed an item in other places of the train split shares the loss.

With weight w, the target distribution of a position whose input item is a and whose target is t becomes

    (1 - w) onehot(t) + w T_a,    T_aj = c'_aj / sum_k c'_ak,    c' = c without one transition from a to t

c_aj counts how often j directly follows a in the training histories. A position would find its own target in its row,
so that one occurrence is left out; a row with nothing else leaves the target as it is. Only the strongest 32 successors
of an item are kept, so that a step costs 33 more scores per position. Knowledge distillation (Hinton et al. 2015,
section 2) with counts as the teacher; the counts are those of the score priors (`models/prior_tables.py`).

Tensor dimensions: n supervised positions, V items, k successors kept per item.
"""

import numpy as np
import torch
from torch import Tensor

from ..data.prepared import PreparedDataset
from ..kernels.losses.gathered_scores import gathered_scores
from ..models.config import TrialConfig
from ..models.prior_tables import transition_prior

STRONGEST = 32  # successors per item
COUNTED = {
    "transition_window": 1,
    "transition_direction": "forward",
    "transition_normalisation": "none",
    "transition_neighbours": STRONGEST,
}
"""How transitions are counted here, whatever the scoring knobs of the trial are."""


class SuccessorTargets:
    """The strongest successors of every item in the train split, and the losses that they add."""

    def __init__(self, config: TrialConfig, dataset: PreparedDataset, device: torch.device) -> None:
        items, offsets = np.asarray(dataset.items).astype(np.int64), np.asarray(dataset.offsets)
        keys, values = transition_prior(items, offsets, dataset.num_items, config.model_copy(update=COUNTED))
        rows, columns = keys // dataset.num_items, keys % dataset.num_items
        lengths = np.bincount(rows, minlength=dataset.num_items)
        places = np.arange(len(keys)) - (np.cumsum(lengths) - lengths)[rows]
        shape = dataset.num_items, max(1, int(lengths.max()))
        padded_columns, padded_counts = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        padded_columns[rows, places], padded_counts[rows, places] = columns, values
        self.columns = torch.tensor(padded_columns, device=device)  # (V, k), 0 for padding
        self.counts = torch.tensor(padded_counts, device=device)  # (V, k), 0 for padding

    def losses(self, scaled: Tensor, table: Tensor, targets: Tensor, latest: Tensor) -> Tensor:
        """(n,): s_t - sum_j T_aj s_j, what a weight of 1 adds to the cross-entropy with the target alone.

        Scores are dot products of scaled (n, d) and table (V, d); targets t and latest items a are (n,) int64. The sum
        of exponentials needs nothing, because both target distributions sum to 1.
        """
        columns, counts = self.columns.index_select(0, latest), self.counts.index_select(0, latest)  # (n, k)
        counts = (counts.to(scaled.dtype) - (columns == targets[:, None]).to(scaled.dtype)).clamp(min=0)  # padding: 0
        total = counts.sum(dim=1)
        shares = counts / total.clamp(min=1)[:, None]
        scores = gathered_scores(scaled, table, torch.cat((targets[:, None], columns), dim=1))
        return torch.where(total > 0, scores[:, 0], 0) - (shares * scores[:, 1:]).sum(dim=1)
