"""Several requests answered by few calls of the engine: histories of different requests are scored together.

The answer to a request does not depend on the others, except for rounding: the engine's products over more users may
differ in the last bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.errors import ExportError
from ..training.evaluate import Histories
from .histories import ReadHistories, read_histories
from .recommender import Recommender
from .requests import AnyRequest, RecommendRequest, SimilarRequest
from .results import RecommendationBatch, Recommendations
from .top_k import NO_ITEM

MAX_SURPLUS = 100  # excluded items that are removed from a longer top-k; more of them make a call of their own

Answer = Recommendations | RecommendationBatch | ExportError


@dataclass(frozen=True)
class _Rows:
    """The histories of one request, looked up, and the items that it excludes."""

    request: RecommendRequest
    read: ReadHistories
    excluded: NDArray[np.int32]
    candidates: NDArray[np.int32] | None
    unknown: list[Any]  # ids of candidates and exclude

    @property
    def surplus(self) -> int:
        """How many more items than k are needed, because some of them may be excluded."""
        return len(self.excluded) if len(self.excluded) <= MAX_SURPLUS else 0

    def group(self, with_times: bool) -> tuple[Any, ...]:
        """Requests of equal groups are scored in one call."""
        barred = b"" if self.surplus else self.excluded.tobytes()
        chosen = None if self.candidates is None else self.candidates.tobytes()
        return (self.request.mask_seen, chosen, barred, with_times and self.read.times is not None)


def answer_all(recommender: Recommender, requests: Sequence[AnyRequest]) -> list[Answer]:
    """The answer to every request, in their order; the answer to one that cannot be met is its ExportError."""
    answers: dict[int, Answer] = {}
    groups: dict[tuple[Any, ...], list[tuple[int, _Rows]]] = {}
    for position, request in enumerate(requests):
        try:
            if isinstance(request, SimilarRequest):
                answers[position] = recommender.similar(request.item, request.k)
            else:
                rows = _look_up(recommender, request)
                groups.setdefault(rows.group(recommender.needs_times), []).append((position, rows))
        except ExportError as error:
            answers[position] = error
    for members in groups.values():
        of_group = _score(recommender, [rows for _, rows in members])
        answers |= {position: answer for (position, _), answer in zip(members, of_group, strict=True)}
    return [answers[position] for position in range(len(requests))]


def _look_up(recommender: Recommender, request: RecommendRequest) -> _Rows:
    find = recommender.item_index
    read = read_histories(request.rows, request.rows_of_times, recommender.index)
    excluded = find(request.exclude)
    unknown = [each for each, number in zip(request.exclude, excluded, strict=True) if number < 0]
    candidates = None
    if request.candidates is not None:
        candidates = find(request.candidates)
        unknown += [each for each, number in zip(request.candidates, candidates, strict=True) if number < 0]
        candidates = candidates[candidates >= 0]
        if not len(candidates):
            raise ExportError("none of the candidates is an item of this model; leave candidates out for all items")
    return _Rows(request, read, np.unique(excluded[excluded >= 0]), candidates, unknown)


def _score(recommender: Recommender, group: Sequence[_Rows]) -> list[Answer]:
    """The answers to requests of one group."""
    k = max(rows.request.k + rows.surplus for rows in group)
    numbers, scores = recommender.engine.top(
        _joined(recommender, [rows.read for rows in group]), k, _allowed(recommender, group[0]),
        group[0].request.mask_seen,
    )  # fmt: skip
    answers: list[Answer] = []
    first = 0
    for rows in group:
        last = first + len(rows.read.offsets) - 1
        answers.append(_answer(recommender, rows, numbers[first:last], scores[first:last]))
        first = last
    return answers


def _joined(recommender: Recommender, reads: Sequence[ReadHistories]) -> Histories:
    """The histories of several requests behind each other."""
    lengths = np.concatenate([np.diff(read.offsets) for read in reads])
    times = None
    if recommender.needs_times and all(read.times is not None for read in reads):
        times = np.concatenate([read.times for read in reads if read.times is not None])
    items = np.concatenate([read.items for read in reads])
    return Histories(items, np.concatenate(([0], np.cumsum(lengths))), times)


def _allowed(recommender: Recommender, rows: _Rows) -> NDArray[np.bool_] | None:
    """The items to choose from, which are the same for a group; None for all."""
    if rows.candidates is None and (rows.surplus or not len(rows.excluded)):
        return None
    allowed = np.full(recommender.num_items, rows.candidates is None)
    if rows.candidates is not None:
        allowed[rows.candidates] = True
    if not rows.surplus:
        allowed[rows.excluded] = False
    return allowed


def _answer(
    recommender: Recommender, rows: _Rows, numbers: NDArray[np.int32], scores: NDArray[np.float32]
) -> Recommendations | RecommendationBatch:
    lengths = np.diff(rows.read.offsets)
    kept = (numbers != NO_ITEM) & ~np.isin(numbers, rows.excluded)
    users = []
    for user, in_history in enumerate(rows.read.unknown):
        columns = np.flatnonzero(kept[user])[: rows.request.k]
        users.append(
            Recommendations(
                tuple(recommender.index.originals(numbers[user, columns])),
                tuple(scores[user, columns].tolist()),
                tuple(dict.fromkeys((*in_history, *rows.unknown))),
                by_popularity=not lengths[user],
            )
        )
    return users[0] if rows.request.history is not None else RecommendationBatch(tuple(users))
