"""Which configurations of earlier datasets to try first on a new one. Pure functions: no database."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """A configuration that did well, by where it was run."""

    session: str
    trial: str
    dataset_id: str
    config_hash: str


def choose(runs: Sequence[Run], similar: Mapping[str, float], limit: int) -> list[Run]:
    """Up to `limit` configurations, chosen greedily by average rank; `runs` are best first within each dataset.

    On each dataset its configurations are ranked by validation NDCG@10, 0 = best and 1 = last or never run there. The
    next one is the one that most lowers the sum over the datasets of similarity x best rank of those chosen: the first
    does well on average, the later ones where the first do not.
    """
    ranks = _ranks(runs)
    best = dict.fromkeys((run.dataset_id for run in runs), 1.0)
    chosen: list[Run] = []
    while len(chosen) < limit and ranks:
        loss = {
            key: math.fsum(similar[d] * min(rank, on.get(d, 1.0)) for d, rank in best.items())
            for key, on in ranks.items()
        }
        key = min(loss, key=lambda candidate: loss[candidate])  # the first of equals: of the most similar dataset
        on = ranks.pop(key)
        best = {d: min(rank, on.get(d, 1.0)) for d, rank in best.items()}
        chosen.append(next(run for run in runs if run.config_hash == key))
    return chosen


def _ranks(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Per configuration: its rank in [0, 1) on each dataset where it was run."""
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
