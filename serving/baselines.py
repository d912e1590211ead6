"""What needs no model: popularity, transitions of the last item, and co-occurrence, from the sums of an export.

They are the baselines of training/baselines.py, with the default counting knobs whatever the export's own are. Items
with equal scores are ordered by popularity. A history without a known item gets the list by popularity.
"""

import torch
from torch import Tensor

from ..models.config import make_config
from ..models.priors import ScorePriors
from ..training.baselines import COUNTED, TIE_WEIGHT
from .sums import ExportSums

POPULARITY = "popularity"
BASELINES = (POPULARITY, *COUNTED)


def baseline_priors(sums: ExportSums, device: torch.device) -> dict[str, ScorePriors]:
    """By the name of each baseline, the priors that are its whole score."""
    knobs = {POPULARITY: {"popularity_weight": 1.0}} | {
        name: {weight: 1.0, "popularity_weight": TIE_WEIGHT} for name, weight in COUNTED.items()
    }
    found: dict[str, ScorePriors] = {}
    for name, chosen in knobs.items():
        priors = sums.baseline.priors(make_config("sasrec", **chosen))
        assert priors is not None  # a weight is not 0
        found[name] = priors.to(device)
    return found


def baseline_scores(priors: ScorePriors, num_items: int, items: Tensor, offsets: Tensor) -> Tensor:
    """float32 (num_users, num_items) for jagged histories, none of them empty: the priors alone."""
    scores = torch.zeros(len(offsets) - 1, num_items, device=items.device)
    return priors.add_to(scores, items, offsets, normalised=True)
