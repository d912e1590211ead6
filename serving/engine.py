"""Scores of an exported model for arrays of histories: top-k, scores of chosen items, and ranks of targets.

Users are encoded and scored in the blocks that evaluation uses, with its code, so that equal histories have equal
scores and ranks. Memory does not grow with the number of users, except for the results.
"""

import math
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.errors import ExportError
from ..data.histories import Histories
from ..training.catalogue_scores import ItemFactors, joint_factors, joint_users, score_blocks
from ..training.evaluate import ENCODE_USERS, encode_users, rank_by_vectors
from ..training.ranking import Ranks, ScoreBlocks, map_in_threads
from .artifact import Export
from .top_k import NO_ITEM, top_k

CHUNK_USERS = 1 << 17  # upper bound on the users whose states are in memory at once
_IN_THREADS = threading.Lock()  # `map_in_threads` sets torch's number of threads for the whole process


class _Chunk(NamedTuple):
    """Consecutive users with their scores: `blocks(first, last)` yields those of users first..last-1 of the chunk."""

    blocks: ScoreBlocks
    items: Tensor  # (num_events,) int64, on the device
    offsets: Tensor  # (num_users + 1,) int64, on the CPU

    def history_of(self, first: int, last: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows and columns of the events of users first..last-1 in a matrix of their scores."""
        bounds = self.offsets[first : last + 1]
        rows = torch.arange(last - first).repeat_interleave(bounds.diff()).to(device)
        return rows, self.items[int(bounds[0]) : int(bounds[-1])]


Pair = tuple[Tensor, Tensor]
Found = tuple[NDArray[np.int32], NDArray[np.float32]]
Work = Callable[[_Chunk, int, int], Pair]
"""`work(chunk, first, last)` returns numbers and scores, (last - first, width) each, of users first..last-1."""


class Engine:
    """The models of an export on one device."""

    def __init__(self, export: Export, device: torch.device) -> None:
        self.device, self.num_items = device, export.config.num_items
        self.median_gap = round(export.config.dataset.median_gap_seconds)
        self.members = [(member.model.to(device), member.config) for member in export.members]
        self.priors = None if export.priors is None else export.priors.to(device)
        with torch.inference_mode():
            self.member_factors = [ItemFactors(model.items.catalogue()) for model, _ in self.members]
            self.factors = joint_factors(self.member_factors)
            self.counts = torch.tensor(export.counts, dtype=torch.float32, device=device)
        self.nameless = None if export.nameless is None else torch.tensor(export.nameless, device=device)

    @torch.inference_mode()
    def user_vectors(self, histories: Histories) -> Tensor:
        """float32 (num_users, d): their dot products with the export's item vectors are the scores without priors.

        ExportError if a history is empty.
        """
        self._check(histories)
        if (np.diff(histories.offsets) == 0).any():
            raise ExportError("a history without a known item has no vector; leave it out, or recommend by popularity")
        return self._vectors(histories)

    def _vectors(self, histories: Histories) -> Tensor:
        if histories.times is None:  # as if the events were as far apart as those of the training log
            histories = histories._replace(times=np.arange(len(histories.items)) * self.median_gap)
        users = [model.items.scaled(encode_users(model, config, histories)) for model, config in self.members]
        return joint_users(self.member_factors, users)

    @torch.inference_mode()
    def top(
        self, histories: Histories, k: int, allowed: NDArray[np.bool_] | None = None, mask_seen: bool = True
    ) -> Found:
        """The k best items of every user: numbers int32 (num_users, k) and scores float32 (num_users, k).

        Best first; of equal scores, the item with the lower number first. allowed: bool (num_items,), the candidates;
        None = all; items without an id are never candidates. With `mask_seen`, the items of a user's history are left
        out. Where there are fewer than k candidates, the rest is -1 with a score of -inf. An empty history gets the
        items with most events, with their numbers of events as scores.
        """
        _check_k(k)
        self._check(histories)
        barred = self._barred(allowed)

        def best(chunk: _Chunk, first: int, last: int) -> Pair:
            (scores,) = chunk.blocks(first, last)
            if mask_seen:
                scores[chunk.history_of(first, last, self.device)] = -torch.inf
            if barred is not None:
                scores.masked_fill_(barred, -torch.inf)
            return top_k(scores, k)

        filled = np.diff(histories.offsets) > 0
        numbers, scores = self._in_blocks(_without_empty(histories, filled), best, k)
        if not scores[numbers != NO_ITEM].isfinite().all():
            raise ExportError("the model's scores are not finite; it cannot be used")
        found = numbers.numpy().astype(np.int32), scores.numpy()
        return found if filled.all() else _merged(filled, found, self._popular(k, barred))

    def _barred(self, allowed: NDArray[np.bool_] | None) -> Tensor | None:
        """What may not be recommended, bool (num_items,): items that are not allowed, and those without an id."""
        if allowed is None:
            return self.nameless
        barred = torch.tensor(~allowed, device=self.device)
        return barred if self.nameless is None else barred | self.nameless

    def _popular(self, k: int, barred: Tensor | None) -> Found:
        """The items with most events, (1, k)."""
        counts = self.counts if barred is None else self.counts.masked_fill(barred, -torch.inf)
        numbers, scores = top_k(counts[None], k)
        return numbers.cpu().numpy().astype(np.int32), scores.cpu().numpy()

    @torch.inference_mode()
    def scores(self, histories: Histories, columns: NDArray[np.int32]) -> NDArray[np.float32]:
        """The scores of the items `columns` (m,) for every user, (num_users, m); items of the history are not masked.

        An empty history gets the items' numbers of events.
        """
        self._check(histories)
        chosen = torch.tensor(columns, dtype=torch.int64, device=self.device)

        def pick(chunk: _Chunk, first: int, last: int) -> Pair:
            (scores,) = chunk.blocks(first, last)
            return chosen.expand(last - first, -1), scores.index_select(1, chosen)

        filled = np.diff(histories.offsets) > 0
        _, scores = self._in_blocks(_without_empty(histories, filled), pick, len(columns))
        found = self.counts[chosen].cpu().numpy()[None].repeat(len(filled), axis=0)
        found[filled] = scores.numpy()
        return found

    @torch.inference_mode()
    def ranks(self, histories: Histories, targets: NDArray[np.int32]) -> Ranks:
        """The rank of each user's target after the user's history, as the examiner computes it; and the tied users.

        Ranks int32 (num_users,), 1 = best. The history is masked except the target; ties count against the target.
        ExportError if a history is empty.
        """
        vectors = self.user_vectors(histories)
        return rank_by_vectors(self.factors, vectors, histories, targets, [self.priors])[0]

    @torch.inference_mode()
    def similar(self, item: int, k: int) -> Found:
        """The k items with the largest cosine with `item`, without it, and the cosines: (k,) each, the best first.

        Of an ensemble, the cosines are means over the members. Fewer than k if the catalogue is that small.
        """
        _check_k(k)
        cosines = torch.stack([_cosines(factors.vectors, item) for factors in self.member_factors]).mean(dim=0)
        cosines[item] = -torch.inf
        num_others = self.num_items - 1
        if self.nameless is not None:
            cosines.masked_fill_(self.nameless, -torch.inf)
            num_others -= int(self.nameless.sum())
        numbers, scores = top_k(cosines[None], min(k, num_others))
        return numbers[0].cpu().numpy().astype(np.int32), scores[0].cpu().numpy()

    def _in_blocks(self, histories: Histories, work: Work, width: int) -> Pair:
        """The two results of `work` for every block of users, joined: (num_users, width) each."""
        parts = [(torch.empty(0, width, dtype=torch.int64), torch.empty(0, width))]
        for chunk in self._chunks(histories):
            num_users = len(chunk.offsets) - 1
            parts += self._map(chunk, work, range(0, num_users, self.factors.block_users), num_users)
        numbers, scores = zip(*parts, strict=True)
        return torch.cat(numbers), torch.cat(scores)

    def _map(self, chunk: _Chunk, work: Work, firsts: range, num_users: int) -> list[Pair]:
        @torch.inference_mode()  # applies per thread, so each block needs it
        def one(first: int) -> Pair:
            numbers, scores = work(chunk, first, min(first + firsts.step, num_users))
            return numbers.cpu(), scores.cpu()

        if self.device.type != "cpu" or len(firsts) == 1:
            return [one(first) for first in firsts]
        with _IN_THREADS:
            return map_in_threads(one, firsts)

    def _chunks(self, histories: Histories) -> Iterator[_Chunk]:
        """The users in chunks of bounded memory, whose blocks begin where those of an evaluation would."""
        num_users, step = len(histories.offsets) - 1, self._chunk_users()
        for first in range(0, num_users, step):
            bounds = histories.offsets[first : first + step + 1]
            events = slice(int(bounds[0]), int(bounds[-1]))
            times = None if histories.times is None else histories.times[events]
            part = Histories(histories.items[events], bounds - bounds[0], times)
            items, offsets = self._on_device(part)
            yield _Chunk(score_blocks(self.factors, self._vectors(part), items, offsets, [self.priors]), items, offsets)

    def _chunk_users(self) -> int:
        block = self.factors.block_users
        both = math.lcm(block, ENCODE_USERS[self.device.type])
        return both if both <= CHUNK_USERS else block * max(1, CHUNK_USERS // block)

    def _on_device(self, histories: Histories) -> tuple[Tensor, Tensor]:
        items = torch.tensor(np.asarray(histories.items), dtype=torch.int64, device=self.device)
        return items, torch.tensor(np.asarray(histories.offsets))

    def _check(self, histories: Histories) -> None:
        """Raise ExportError for arrays that are no jagged batch of this catalogue's items."""
        items, offsets = np.asarray(histories.items), np.asarray(histories.offsets)
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 0).any():
            raise ExportError(f"offsets must rise from 0 to the number of events, {len(items)}")
        if len(items) and not 0 <= int(items.min()) <= int(items.max()) < self.num_items:
            raise ExportError(f"items must be numbers from 0 to {self.num_items - 1}; look ids up with item_index")
        if histories.times is not None and len(histories.times) != len(items):
            raise ExportError(f"there are {len(items)} events and {len(histories.times)} times; give one for each")


def _without_empty(histories: Histories, filled: NDArray[np.bool_]) -> Histories:
    """The histories of users with events; the arrays of events stay, because the others have none."""
    if filled.all():
        return histories
    lengths = np.diff(histories.offsets)[filled]
    return histories._replace(offsets=np.concatenate(([0], np.cumsum(lengths))))


def list_length(k: int, num_items: int) -> int:
    """The number of items in a list of the `k` best of `num_items`. ExportError unless k is a positive whole number."""
    _check_k(k)
    return min(k, num_items)


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise ExportError(f"k={k!r:.60} is not a whole number; ask for at least one item")
    if k < 1:
        raise ExportError(f"k={k} is not positive; ask for at least one item")


def _cosines(vectors: Tensor, item: int) -> Tensor:
    """The cosines of one of the vectors (num_items, d) with all, (num_items,)."""
    unit = F.normalize(vectors, dim=1)
    return unit @ unit[item]


def _merged(filled: NDArray[np.bool_], found: Found, popular: Found) -> Found:
    """The rows of `found` (number of True, k) where `filled` (num_users,), and the one row of `popular` elsewhere."""
    numbers, scores = popular[0].repeat(len(filled), axis=0), popular[1].repeat(len(filled), axis=0)
    numbers[filled], scores[filled] = found
    return numbers, scores
