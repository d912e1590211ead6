"""Baselines without a model: popularity, item transitions and item co-occurrence alone, in full ranking.

They say how much of a figure needs no training. Their counts are those of the score priors (`models/priors.py`) with
the default counting knobs: popularity is the number of train events, transitions are those of the last item, and
co-occurrence is summed over the last five items. Items with equal scores are ordered by popularity, because most items
never followed a given item. The caller passes histories and targets; this module knows no splits.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.histories import Histories
from ..data.prepared import PreparedDataset
from ..models.config import make_config
from ..models.priors import PriorTables
from .catalogue_scores import BLOCK_SCORES
from .metrics import metrics_from_ranks
from .popularity import popularity_ranks
from .ranking import Scratch, rank_variants

TIE_WEIGHT = 1e-4
"""Of popularity in [0, 1]: less than the difference of two transition shares, unless an item has thousands."""
COUNTED = {"transitions": "transition_weight", "cooccurrence": "cooccurrence_weight"}
"""The baselines that are score priors, and the knob that weighs each."""


def baseline_metrics(
    dataset: PreparedDataset, histories: Histories, targets: NDArray[np.int32], tables: PriorTables
) -> dict[str, dict[str, float]]:
    """The metrics of `metrics_from_ranks` of every baseline, by its name."""
    ranks = baseline_ranks(dataset, histories, targets, tables)
    return {name: metrics_from_ranks(found) for name, found in ranks.items()}


@torch.inference_mode()
def baseline_ranks(
    dataset: PreparedDataset, histories: Histories, targets: NDArray[np.int32], tables: PriorTables
) -> dict[str, NDArray[np.int32]]:
    """Ranks int32 (num_users,) of each user's target by popularity, transitions and co-occurrence.

    Candidates and ties are those of `ranking.py`. `tables` are counted on the train part of `dataset`, whose popularity
    counts too; their device does the work.
    """
    counts = np.bincount(dataset.items, minlength=dataset.num_items)
    found = {"popularity": popularity_ranks(counts, histories.items, histories.offsets, targets)}
    knobs = [{weight: 1.0, "popularity_weight": TIE_WEIGHT} for weight in COUNTED.values()]
    priors = [tables.priors(make_config("sasrec", **chosen)) for chosen in knobs]
    items = torch.tensor(np.asarray(histories.items), device=tables.device)
    offsets = torch.tensor(np.asarray(histories.offsets))
    scratch = Scratch()

    def score_blocks(first: int, last: int) -> Iterator[Tensor]:
        bounds = offsets[first : last + 1]
        history = items[int(bounds[0]) : int(bounds[-1])]
        for prior in priors:
            assert prior is not None  # its weight is not 0
            scores = scratch.matrix(last - first, dataset.num_items, items.device).zero_()
            yield prior.add_to(scores, history, bounds - bounds[0], normalised=True)

    block_users = max(1, BLOCK_SCORES[items.device.type] // dataset.num_items)
    wanted = torch.tensor(np.asarray(targets), device=items.device)
    ranked = rank_variants(score_blocks, items, offsets, wanted, block_users)
    return found | {name: ranks for name, (ranks, _) in zip(COUNTED, ranked, strict=True)}
