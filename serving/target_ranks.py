"""Ranks of later targets, and the lists that a user would have seen, by an exported model and by its baselines."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.histories import Histories
from ..models.priors import ScorePriors
from ..training.catalogue_scores import score_blocks
from ..training.popularity import popularity_ranks
from ..training.ranking import ScoreBlocks, rank_variants
from .baselines import baseline_scores
from .engine import Engine
from .evaluation_result import LIST_LENGTH
from .later_events import UNKNOWN, LaterEvents
from .top_k import top_k

MISSED = 0  # the rank of a target that no list can hold
MODEL = "model"

Items = NDArray[np.int32]
Progress = Callable[[int, int], None]
"""`progress(done, total)` is called after each chunk of targets."""


@dataclass(frozen=True)
class Measured:
    """What one scorer does with every target."""

    ranks: NDArray[np.int32]  # (num_targets,), 1 = best, MISSED for an unknown item
    lists: Items  # (num_targets, LIST_LENGTH): items outside the history, best first; -1 where there are fewer

    @classmethod
    def empty(cls, num_targets: int) -> "Measured":
        """To be filled chunk by chunk."""
        return cls(np.full(num_targets, MISSED, np.int32), np.full((num_targets, LIST_LENGTH), UNKNOWN, np.int32))


def measure(
    engine: Engine, baselines: Mapping[str, ScorePriors], events: LaterEvents, progress: Progress
) -> dict[str, Measured]:
    """Rank all targets in the whole catalogue, by the model (MODEL) and by every baseline.

    Ties count against the scorer. A history without a known item is ranked by popularity, as `recommend` does it.
    """
    found = {name: Measured.empty(len(events.targets)) for name in (MODEL, *baselines)}
    for part, histories in events.chunks():
        targets = events.target_items[part]
        filled = np.flatnonzero(np.diff(histories.offsets))
        bare = np.flatnonzero(np.diff(histories.offsets) == 0)
        chunk = _Chunk(engine, _of_users(histories, filled), np.maximum(targets[filled], 0))
        popular = by_popularity(engine, np.maximum(targets[bare], 0))
        for name, blocks in chunk.scorers(baselines):
            measured = chunk.measured(blocks)
            for positions, result in ((filled, measured), (bare, popular)):
                found[name].ranks[part.start + positions] = result.ranks
                found[name].lists[part.start + positions] = result.lists
        progress(part.stop, len(events.targets))
    for result in found.values():
        result.ranks[events.target_items == UNKNOWN] = MISSED
    return found


def by_popularity(engine: Engine, targets: Items) -> Measured:
    """Ranks and lists of histories without a known item."""
    counts = engine.counts.cpu().numpy().astype(np.int64)
    none = np.empty(0, np.int32)
    ranks = popularity_ranks(counts, none, np.zeros(len(targets) + 1, np.int64), targets)
    best, _ = top_k(engine.counts[None], LIST_LENGTH)
    return Measured(ranks, best.cpu().numpy().astype(np.int32).repeat(len(targets), axis=0))


class _Chunk:
    """Targets whose histories have a known item."""

    def __init__(self, engine: Engine, histories: Histories, targets: Items) -> None:
        self.engine, self.histories = engine, histories
        self.items = torch.tensor(histories.items, dtype=torch.int64, device=engine.device)
        self.offsets = torch.tensor(histories.offsets)
        self.targets = torch.tensor(targets, device=engine.device)

    def scorers(self, baselines: Mapping[str, ScorePriors]) -> Iterator[tuple[str, ScoreBlocks]]:
        """The scores of the model, and then those of every baseline."""
        yield MODEL, self._model_blocks()
        for name, priors in baselines.items():
            yield name, self._blocks(priors)

    @torch.inference_mode()
    def _model_blocks(self) -> ScoreBlocks:
        vectors = self.engine.user_vectors(self.histories)
        return score_blocks(self.engine.factors, vectors, self.items, self.offsets, [self.engine.priors])

    def _blocks(self, priors: ScorePriors) -> ScoreBlocks:
        def blocks(first: int, last: int) -> Iterator[Tensor]:
            bounds = self.offsets[first : last + 1]
            history = self.items[int(bounds[0]) : int(bounds[-1])]
            yield baseline_scores(priors, self.engine.num_items, history, bounds - bounds[0])

        return blocks

    @torch.inference_mode()
    def measured(self, blocks: ScoreBlocks) -> Measured:
        """Ranks and lists by these scores."""
        result = Measured.empty(len(self.targets))
        if not len(self.targets):
            return result
        step = self.engine.factors.block_users
        result.ranks[:] = rank_variants(blocks, self.items, self.offsets, self.targets, step)[0][0]
        for first in range(0, len(self.targets), step):
            last = min(first + step, len(self.targets))
            (scores,) = blocks(first, last)
            bounds = self.offsets[first : last + 1]
            users = torch.arange(last - first).repeat_interleave(bounds.diff()).to(scores.device)
            scores[users, self.items[int(bounds[0]) : int(bounds[-1])]] = -torch.inf
            result.lists[first:last] = top_k(scores, LIST_LENGTH)[0].cpu().numpy()
        return result


def _of_users(histories: Histories, filled: NDArray[np.int64]) -> Histories:
    """The histories of the users with events; the events stay, because the other users have none."""
    lengths = np.diff(histories.offsets)[filled]
    return histories._replace(offsets=np.concatenate(([0], np.cumsum(lengths))))
