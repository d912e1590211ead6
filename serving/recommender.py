"""An exported model in Python: recommendations, scores and similar items, by original ids or by arrays.

    from virtualmle.serving import Recommender

    recommender = Recommender.load("model")
    print(recommender.recommend(["item-7", "item-9"], k=10))

Methods that take ids are for programs and notebooks; `top` and `item_index` take arrays, for millions of users.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.errors import ExportError, MachineError
from ..data.histories import Histories
from ..training.ranking import Ranks
from .artifact import Export
from .engine import Engine, list_length
from .histories import ReadHistories, read_histories
from .item_index import Ids, ItemIndex
from .results import RecommendationBatch, Recommendations
from .top_k import NO_ITEM


def use_threads(count: int) -> None:
    """Let this process compute with `count` threads on the CPU; 0 = as many as torch chooses."""
    if count:
        torch.set_num_threads(count)


class Recommender:
    """A loaded export. Several threads may use it at once."""

    def __init__(self, export: Export, device: torch.device | str = "cpu") -> None:
        self.export = export
        self.device = torch.device(device)
        self.index = ItemIndex(export.items)
        self.engine = Engine(export, self.device)

    @classmethod
    def load(cls, directory: Path | str, device: str = "auto") -> "Recommender":
        """Load an export; device: auto (CUDA if available), cpu, cuda or cuda:N.

        ExportError if the directory is no intact export, MachineError if the device does not exist.
        """
        return cls(Export.load(directory), device_of(device))

    @property
    def num_items(self) -> int:
        """The number of items."""
        return self.export.config.num_items

    @property
    def needs_times(self) -> bool:
        """Whether the scores depend on the times of a history; without times, typical gaps are assumed."""
        return any(member.config.time_bias for member in self.export.members)

    def recommend(
        self,
        history: Iterable[Any],
        k: int = 10,
        times: Iterable[Any] | None = None,
        candidates: Iterable[Any] | None = None,
        exclude: Iterable[Any] | None = None,
        mask_seen: bool = True,
    ) -> Recommendations | RecommendationBatch:
        """The k best items for a history of item ids, oldest first: Recommendations; for several, RecommendationBatch.

        times: of every event, in seconds or as datetime; they matter to a model with `time_bias` only, and sort the
        history. candidates: the only items to choose from; exclude: items that are never chosen; mask_seen: leave out
        the items of the history. Unknown ids are skipped and named in the result, and a history without a known item
        gets the most popular items. ExportError if no candidate is known, or if times and items differ in number.
        """
        read = read_histories(history, times, self.index)
        allowed, unknown = self._allowed(candidates, exclude)
        numbers, scores = self.engine.top(_arrays(read), list_length(k, self.num_items), allowed, mask_seen)
        rows = [(row[row != NO_ITEM], of_row[row != NO_ITEM]) for row, of_row in zip(numbers, scores, strict=True)]
        return self._results(read, rows, unknown)

    def score(
        self, history: Iterable[Any], items: Iterable[Any], times: Iterable[Any] | None = None
    ) -> Recommendations | RecommendationBatch:
        """The scores of `items` (ids) after a history or after each of several, in the order of `items`.

        Unknown ids are skipped and named in the result. Scores of one history can be compared with each other only.
        """
        read = read_histories(history, times, self.index)
        numbers, unknown = self._known(items)
        scores = self.engine.scores(_arrays(read), numbers)
        return self._results(read, [(numbers, row) for row in scores], unknown)

    def similar(self, item: Any, k: int = 10) -> Recommendations:
        """The k items whose vectors have the largest cosine with that of `item` (an id), without `item` itself.

        ExportError if the model does not know the item.
        """
        number = int(self.index.find([item])[0])
        if number < 0:
            raise ExportError(f"item {item!r:.60} is not one of the {self.num_items:,} items of this model")
        numbers, scores = self.engine.similar(number, k)
        return Recommendations(tuple(self.index.originals(numbers)), tuple(scores.tolist()))

    def user_vectors(self, histories: Iterable[Any], times: Iterable[Any] | None = None) -> NDArray[np.float32]:
        """float32 (num_users, d): their dot products with the rows of item_vectors.npy are the scores without priors.

        ExportError if a history has no known item.
        """
        read = read_histories(histories, times, self.index)
        vectors: NDArray[np.float32] = self.engine.user_vectors(_arrays(read)).cpu().numpy()
        return vectors

    def item_index(self, ids: Ids) -> NDArray[np.int32]:
        """The numbers of items, int32 (n,), by their original ids; -1 for unknown ids. For a list, array or Series."""
        return self.index.find(ids)

    def top(
        self,
        items: NDArray[np.int32],
        offsets: NDArray[np.int64],
        times: NDArray[np.int64] | None = None,
        k: int = 10,
        allowed: NDArray[np.bool_] | None = None,
        mask_seen: bool = True,
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The k best items of user u after the history items[offsets[u]:offsets[u + 1]], oldest first.

        items int32 (num_events,) as `item_index` numbers them, offsets int64 (num_users + 1,), times int64
        (num_events,) in seconds. Returns numbers int32 (num_users, k) and scores float32 (num_users, k); see
        `Engine.top`.
        """
        return self.engine.top(Histories(items, offsets, times), k, allowed, mask_seen)

    def ranks(
        self,
        items: NDArray[np.int32],
        offsets: NDArray[np.int64],
        targets: NDArray[np.int32],
        times: NDArray[np.int64] | None = None,
    ) -> Ranks:
        """The rank int32 (num_users,) of each user's target, as the examiner computes it, and the number of ties."""
        return self.engine.ranks(Histories(items, offsets, times), targets)

    def _known(self, ids: Iterable[Any]) -> tuple[NDArray[np.int32], list[Any]]:
        """The numbers of the known ids, and the unknown ids."""
        if isinstance(ids, (str, bytes)):
            raise ExportError(f"items are given as a list of ids, not as {ids!r:.60}; write [{ids!r:.60}]")
        given = list(ids)
        numbers = self.index.find(given)
        return numbers[numbers >= 0], [each for each, number in zip(given, numbers, strict=True) if number < 0]

    def _allowed(
        self, candidates: Iterable[Any] | None, exclude: Iterable[Any] | None
    ) -> tuple[NDArray[np.bool_] | None, list[Any]]:
        """The items to choose from, bool (num_items,), None for all; and the unknown ids of the request."""
        if candidates is None and exclude is None:
            return None, []
        allowed = np.full(self.num_items, candidates is None)
        unknown: list[Any] = []
        if candidates is not None:
            numbers, unknown = self._known(candidates)
            if not len(numbers) and not unknown:
                raise ExportError("candidates is empty, so that nothing can be recommended; leave it out for all items")
            if not len(numbers):
                raise ExportError("none of the candidates is an item of this model; leave candidates out for all items")
            allowed[numbers] = True
        if exclude is not None:
            numbers, more = self._known(exclude)
            allowed[numbers] = False
            unknown = [*unknown, *more]
        return allowed, unknown

    def _results(
        self,
        read: ReadHistories,
        rows: Sequence[tuple[NDArray[np.int32], NDArray[np.float32]]],
        unknown: Sequence[Any],
    ) -> Recommendations | RecommendationBatch:
        lengths = np.diff(read.offsets)
        users = tuple(
            Recommendations(
                tuple(self.index.originals(numbers)),
                tuple(scores.tolist()),
                tuple(dict.fromkeys((*in_history, *unknown))),
                by_popularity=not length,
            )
            for (numbers, scores), in_history, length in zip(rows, read.unknown, lengths, strict=True)
        )
        return users[0] if read.single else RecommendationBatch(users)


def _arrays(read: ReadHistories) -> Histories:
    return Histories(read.items, read.offsets, read.times)


def device_of(name: str) -> torch.device:
    """The device of this name: auto (CUDA if available), cpu, cuda or cuda:N. MachineError if it does not exist."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise MachineError(f"device={name!r} is not known; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise MachineError(f"device={name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MachineError(f"device={name!r} does not exist on this machine; use auto or cpu")
    return device
