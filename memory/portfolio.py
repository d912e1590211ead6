"""Select configurations of earlier datasets to try first on a new dataset. Pure functions: no database."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """A top configuration, with the session, trial and dataset where it was run."""

    session: str
    trial: str
    dataset_id: str
    config_hash: str


def choose(runs: Sequence[Run], similar: Mapping[str, float], limit: int) -> list[Run]:
    """Select up to `limit` configurations greedily by weighted rank; `runs` are sorted best first within each dataset.

    On each dataset, configurations are ranked by validation NDCG@10: 0 is the best, and 1 stands for those that were
    never run there. Each step adds the configuration that most reduces the sum over datasets of similarity x best rank
    among the selected ones. The first configuration therefore performs well on average, and each later one performs
    well on datasets where the earlier ones do not.
    """
    ranks = _ranks(runs)
    best = dict.fromkeys((run.dataset_id for run in runs), 1.0)
    chosen: list[Run] = []
    while len(chosen) < limit and ranks:
        loss = {
            key: math.fsum(similar[d] * min(rank, own.get(d, 1.0)) for d, rank in best.items())
            for key, own in ranks.items()
        }
        key = min(loss, key=lambda candidate: loss[candidate])  # ties go to the most similar dataset, which comes first
        own = ranks.pop(key)
        best = {d: min(rank, own.get(d, 1.0)) for d, rank in best.items()}
        chosen.append(next(run for run in runs if run.config_hash == key))
    return chosen


def _ranks(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Per configuration: its relative rank in [0, 1) on each dataset where it was run."""
    order: dict[str, list[str]] = {}
    for run in runs:
        hashes = order.setdefault(run.dataset_id, [])
        if run.config_hash not in hashes:
            hashes.append(run.config_hash)
    ranks: dict[str, dict[str, float]] = {}
    for dataset, hashes in order.items():
        for rank, key in enumerate(hashes):
            ranks.setdefault(key, {})[dataset] = rank / len(hashes)
    return ranks
