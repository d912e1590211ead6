"""Full ranking: the rank of each user's target in the catalogue, history masked, ties broken pessimistically.

    rank = 1 + #(candidates scored above the target) + #(other candidates scored equal to the target)

The candidates are all items outside the user's history, and the target, even if the history contains the target. Scores
stay float32. Users are ranked in blocks, without Python code per user, and the results stay on the device until the
end. On a CPU each thread ranks whole blocks, because half of the operations of a block do not run in parallel.
"""

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import TrainingError

BLOCK_USERS = 256
Result = TypeVar("Result")

ScoreBlock = Callable[[int, int], Tensor]
"""`score_block(first, last)` returns the scores of users first..last-1: float32 (last - first, num_items), contiguous.

The caller overwrites the result, and calls the function from several threads at once.
"""

ScoreBlocks = Callable[[int, int], Iterable[Tensor]]
"""As `ScoreBlock`, for several ways of scoring: yields one tensor for each, always in the same order."""

Ranks = tuple[NDArray[np.int32], int]
"""Ranks int32 (num_users,), and the number of users whose target tied with another candidate."""


class Scratch(threading.local):
    """A float32 buffer for each thread that asks, reused from block to block.

    A fresh buffer of several megabytes is mapped page by page on first use, which takes longer than its arithmetic.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def matrix(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """A contiguous float32 (rows, columns) with arbitrary content, valid until the thread's next call."""
        if self._buffer.numel() < rows * columns:
            self._buffer = torch.empty(rows * columns, device=device)
        return self._buffer[: rows * columns].view(rows, columns)


def rank_targets(
    score_block: ScoreBlock,
    items: Tensor,
    offsets: Tensor,
    targets: Tensor,
    block_users: int = BLOCK_USERS,
) -> Ranks:
    """Ranks int32 (num_users,) of `targets`, and the number of users whose target tied with another candidate.

    User u has the history items[offsets[u]:offsets[u + 1]], which is masked. `items` (num_events,) and `targets`
    (num_users,) are integers on the device of the scores, `offsets` is int64 (num_users + 1,) on the CPU.
    TrainingError if a candidate's score is NaN or infinite.
    """
    return rank_variants(lambda first, last: (score_block(first, last),), items, offsets, targets, block_users)[0]


def rank_variants(
    score_blocks: ScoreBlocks,
    items: Tensor,
    offsets: Tensor,
    targets: Tensor,
    block_users: int = BLOCK_USERS,
) -> list[Ranks]:
    """`rank_targets` for each of several ways of scoring the same users, in the order of `score_blocks`.

    A tensor is ranked before the next one is requested, so that only one of them is in memory at a time.
    """
    lengths = offsets.diff().to(targets.device)
    comparisons = Scratch()

    @torch.inference_mode()  # applies per thread, so each block needs it
    def rank_block(first: int) -> list[tuple[Tensor, ...]]:
        last = min(first + block_users, len(targets))
        history = items[int(offsets[first]) : int(offsets[last])].long()
        about = (history, lengths[first:last], targets[first:last].long())
        return [_rank_block(scores, *about, comparisons) for scores in score_blocks(first, last)]

    blocks = range(0, len(targets), block_users)
    results = map_in_threads(rank_block, blocks) if targets.device.type == "cpu" else map(rank_block, blocks)
    return [_joined(blocks_of_one) for blocks_of_one in zip(*results, strict=True)]


def _joined(blocks: Sequence[tuple[Tensor, ...]]) -> Ranks:
    """The results of `_rank_block` for all blocks of users, as one result."""
    ranks, tied, lowest, highest = (torch.cat(parts).cpu() for parts in zip(*blocks, strict=True))
    _check_finite(lowest.min().item(), highest.max().item())
    return ranks.numpy(), int(tied.sum())


def map_in_threads(work: Callable[[int], Result], blocks: Sequence[int]) -> list[Result]:
    """The results of `work` for all blocks, in order, from as many single-threaded workers as torch has threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, blocks))
    finally:
        torch.set_num_threads(threads)


def _rank_block(
    scores: Tensor, history: Tensor, lengths: Tensor, targets: Tensor, comparisons: Scratch
) -> tuple[Tensor, ...]:
    """Ranks int32 (users,), tied bool (users,), lowest and highest score (1,); overwrites `scores` (users, items)."""
    users = torch.arange(len(lengths), device=scores.device)
    rows = users.repeat_interleave(lengths, output_size=len(history))
    target_scores = scores.gather(1, targets[:, None])
    # masked entries take the target's score for the check of the extremes, and -inf for the ranking
    scores[rows, history] = target_scores[rows, 0]
    lowest, highest = torch.aminmax(scores)  # NaN anywhere makes both NaN
    scores[rows, history] = -torch.inf
    scores.scatter_(1, targets[:, None], target_scores)
    buffer = comparisons.matrix(len(scores), scores.shape[1], scores.device)
    at_least, equal = (_count(compare, scores, target_scores, buffer) for compare in (torch.ge, torch.eq))
    # both counts include the target itself
    return at_least.to(torch.int32), equal > 1, lowest.view(1), highest.view(1)


def _count(comparison: Callable[..., Tensor], scores: Tensor, bound: Tensor, buffer: Tensor) -> Tensor:
    # a float32 sum of zeros and ones is exact below 2**24 items, and on a CPU three times as fast as a sum of booleans
    return comparison(scores, bound, out=buffer).sum(dim=1)


def _check_finite(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise TrainingError(
            f"every candidate's score must be finite; the scores range from {low} to {high}: "
            "the model diverged; lower lr or raise temperature"
        )
