"""Several requests answered by few calls of the engine: histories of different requests are scored together.

The answer to a request does not depend on the others, except for rounding: the engine's products over more users may
differ in the last bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.errors import ExportError
from .histories import read_histories
from .recommender import Recommender
from .requests import AnyRequest, RecommendRequest, SimilarRequest
from .results import RecommendationBatch, Recommendations
from .top_k import NO_ITEM

MAX_SURPLUS = 100  # excluded items that are removed from a longer top-k; more of them make a call of their own

Answer = Recommendations | RecommendationBatch | ExportError


@dataclass(frozen=True)
class _Plan:
    """A request with the items that it chooses from, looked up."""

    request: RecommendRequest
    excluded: frozenset[int]
    candidates: NDArray[np.int32] | None
    unknown: list[Any]  # ids of candidates and exclude

    @property
    def surplus(self) -> int:
        """How many more items than k are needed, because some of them may be excluded."""
        return len(self.excluded) if len(self.excluded) <= MAX_SURPLUS else 0

    def group(self) -> tuple[Any, ...]:
        """Requests of equal groups are scored in one call."""
        barred = frozenset() if self.surplus else self.excluded
        chosen = None if self.candidates is None else self.candidates.tobytes()
        return (self.request.mask_seen, self.request.times is None, chosen, barred)


def answer_all(recommender: Recommender, requests: Sequence[AnyRequest]) -> list[Answer]:
    """The answer to every request, in their order; the answer to one that cannot be met is its ExportError."""
    answers: dict[int, Answer] = {}
    groups: dict[tuple[Any, ...], list[tuple[int, _Plan]]] = {}
    for position, request in enumerate(requests):
        try:
            if isinstance(request, SimilarRequest):
                answers[position] = recommender.similar(request.item, request.k)
            else:
                plan = _plan(recommender, request)
                groups.setdefault(plan.group(), []).append((position, plan))
        except ExportError as error:
            answers[position] = error
    for members in groups.values():
        of_group = _score(recommender, [plan for _, plan in members])
        answers |= {position: answer for (position, _), answer in zip(members, of_group, strict=True)}
    return [answers[position] for position in range(len(requests))]


def _plan(recommender: Recommender, request: RecommendRequest) -> _Plan:
    excluded, unknown = _known(recommender, request.exclude)
    candidates = None
    if request.candidates is not None:
        candidates, more = _known(recommender, request.candidates)
        unknown = [*more, *unknown]
        if not len(candidates):
            raise ExportError("none of the candidates is an item of this model; leave candidates out for all items")
    return _Plan(request, frozenset(excluded.tolist()), candidates, unknown)


def _known(recommender: Recommender, ids: Sequence[Any]) -> tuple[NDArray[np.int32], list[Any]]:
    """The numbers of the known ids, and the unknown ids."""
    numbers = recommender.item_index(ids)
    return numbers[numbers >= 0], [each for each, number in zip(ids, numbers, strict=True) if number < 0]


def _score(recommender: Recommender, group: Sequence[_Plan]) -> list[Answer]:
    """The answers to requests of one group."""
    rows = [row for plan in group for row in plan.request.rows]
    times = None
    if group[0].request.times is not None:
        times = [row for plan in group for row in plan.request.rows_of_times or []]
    read = read_histories(rows, times, recommender.index)
    k = max(plan.request.k + plan.surplus for plan in group)
    numbers, scores = recommender.top(
        read.items, read.offsets, read.times, k, _allowed(recommender, group[0]), group[0].request.mask_seen
    )
    users = zip(numbers.tolist(), scores.tolist(), read.unknown, np.diff(read.offsets).tolist(), strict=True)
    return [_answer(recommender, plan, list(islice(users, len(plan.request.rows)))) for plan in group]


def _allowed(recommender: Recommender, plan: _Plan) -> NDArray[np.bool_] | None:
    """The items to choose from, which are the same for a group; None for all."""
    if plan.candidates is None and (plan.surplus or not plan.excluded):
        return None
    allowed = np.full(recommender.num_items, plan.candidates is None)
    if plan.candidates is not None:
        allowed[plan.candidates] = True
    if not plan.surplus:
        allowed[list(plan.excluded)] = False
    return allowed


def _answer(
    recommender: Recommender, plan: _Plan, users: Sequence[tuple[list[int], list[float], tuple[Any, ...], int]]
) -> Recommendations | RecommendationBatch:
    """The results of a request from numbers, scores, unknown ids and number of events of each of its histories."""
    found = []
    for numbers, scores, in_history, num_events in users:
        pairs = zip(numbers, scores, strict=True)
        kept = [pair for pair in pairs if pair[0] != NO_ITEM and pair[0] not in plan.excluded][: plan.request.k]
        found.append(
            Recommendations(
                tuple(recommender.index.originals([number for number, _ in kept])),
                tuple(score for _, score in kept),
                tuple(dict.fromkeys((*in_history, *plan.unknown))),
                by_popularity=not num_events,
            )
        )
    return found[0] if plan.request.history is not None else RecommendationBatch(tuple(found))
