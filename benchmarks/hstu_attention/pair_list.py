"""The valid pairs alone, one after the other, compiled: no square of a row is ever made. For CPUs, on one thread.

On several threads the sums by `index_add` become atomic additions, and the form loses what it won.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from virtualmle.kernels.jagged.threads import threads_for
from virtualmle.kernels.jagged.time_buckets import time_buckets

from .implementation import Implementation, Leaves
from .ours import tables_of
from .shapes import Problem

PAIR_LIST = "C3 pair list compiled"


class Pairs(NamedTuple):
    """The pairs of a batch, each (pairs,) int64: made once, they serve every layer."""

    queries: Tensor  # tokens
    keys: Tensor  # tokens, never after their query
    columns: Tensor  # of the position table
    buckets: Tensor  # columns of the time table


def pairs_of(problem: Problem) -> Pairs:
    """From the problem's cache, or built."""
    if "pairs" not in problem.cache:
        offsets = problem.offsets.numpy().astype(np.int64)
        lengths = np.diff(offsets)
        counts = lengths * (lengths + 1) // 2
        firsts, starts = np.cumsum(counts) - counts, np.repeat(offsets[:-1], counts)
        number = np.arange(counts.sum()) - np.repeat(firsts, counts)  # in its sequence: 0 | 1 2 | 3 4 5 | …
        query = ((np.sqrt(8 * number + 1) - 1) / 2).astype(np.int64)
        key = number - query * (query + 1) // 2
        queries, keys = torch.from_numpy(starts + query), torch.from_numpy(starts + key)
        buckets = time_buckets(problem.times[queries] - problem.times[keys])
        problem.cache["pairs"] = Pairs(queries, keys, keys - queries + problem.shape.max_len - 1, buckets)
    found = problem.cache["pairs"]
    assert isinstance(found, Pairs)
    return found


def pair_list_implementation() -> Implementation:
    """The contestant; its first call compiles."""
    compiled: Callable[..., Any] = torch.compile(_attend, dynamic=True)

    def attend(problem: Problem, leaves: Leaves) -> Tensor:
        tables = tables_of(problem, leaves)
        pair = tables.get("position_table"), tables.get("time_table")
        out: Tensor = compiled(*leaves[:3], *pair, *pairs_of(problem), problem.scale)
        return out

    return Implementation(PAIR_LIST, attend, around=_one_thread)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position_table: Tensor | None,
    time_table: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    columns: Tensor,
    buckets: Tensor,
    scale: float,
) -> Tensor:
    scores = (q.index_select(0, queries) * k.index_select(0, keys)).sum(-1)  # (pairs, heads)
    if position_table is not None:
        scores = scores + position_table[:, columns].T
    if time_table is not None:
        scores = scores + time_table[:, buckets].T
    weights = F.silu(scores) * scale
    return torch.zeros_like(v).index_add(0, queries, weights[..., None] * v.index_select(0, keys))


def _one_thread(problem: Problem) -> AbstractContextManager[None]:
    return threads_for(1)
