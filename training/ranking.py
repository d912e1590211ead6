"""The rank of each user's target among the whole catalogue: history masked, ties counted against the model.

    rank = 1 + #(candidates scored above the target) + #(other candidates scored exactly like it)

Candidates are all items but those of the user's history; the target itself is always a candidate, also when the user
has had it before. Scores stay float32, users go in blocks, no Python runs per user, and what blocks find stays on the
device until the end. On a CPU each of torch's threads takes whole blocks: half the steps of one cannot be shared.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import TrainingError

BLOCK_USERS = 256

ScoreBlock = Callable[[int, int], Tensor]
"""`score_block(first, last)` scores users first..last-1: float32 (last - first, num_items), contiguous, overwritten.

It is called from several threads at once.
"""


def rank_targets(
    score_block: ScoreBlock,
    items: Tensor,
    offsets: Tensor,
    targets: Tensor,
    block_users: int = BLOCK_USERS,
) -> tuple[NDArray[np.int32], int]:
    """Ranks int32 (num_users,) of `targets`, and the number of users whose target tied with another candidate.

    Histories to mask: `items` integer (num_events,) and `targets` integer (num_users,) on the device of the scores,
    `offsets` int64 (num_users + 1,) on the CPU. TrainingError if a candidate's score is NaN or infinite.
    """
    lengths = offsets.diff().to(targets.device)

    @torch.inference_mode()  # the mode is set for each thread on its own
    def rank_block(first: int) -> tuple[Tensor, ...]:
        last = min(first + block_users, len(targets))
        history = items[int(offsets[first]) : int(offsets[last])].long()
        scores = score_block(first, last)
        return _rank_block(scores, history, lengths[first:last], targets[first:last].long())

    blocks = range(0, len(targets), block_users)
    found = _each_on_one_thread(rank_block, blocks) if targets.device.type == "cpu" else map(rank_block, blocks)
    ranks, tied, lowest, highest = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    _check_finite(lowest.min().item(), highest.max().item())
    return ranks.numpy(), int(tied.sum())


def _each_on_one_thread(work: Callable[[int], tuple[Tensor, ...]], blocks: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """What `work` says of every block, in order; as many at a time as torch has threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, blocks))
    finally:
        torch.set_num_threads(threads)


def _rank_block(scores: Tensor, history: Tensor, lengths: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Ranks int32 (users,), whether tied (users,), lowest and highest score (1,); destroys `scores` (users, items)."""
    users = torch.arange(len(lengths), device=scores.device)
    rows = users.repeat_interleave(lengths, output_size=len(history))
    target_scores = scores.gather(1, targets[:, None])
    # masked entries borrow the target's score while we look for extremes, then leave the competition
    scores[rows, history] = target_scores[rows, 0]
    lowest, highest = torch.aminmax(scores)  # NaN anywhere makes both NaN
    scores[rows, history] = -torch.inf
    scores.scatter_(1, targets[:, None], target_scores)
    buffer = torch.empty_like(scores)
    at_least, equal = (_count(compare, scores, target_scores, buffer) for compare in (torch.ge, torch.eq))
    # the target is at least, and equal to, itself
    return at_least.to(torch.int32), equal > 1, lowest.view(1), highest.view(1)


def _count(comparison: Callable[..., Tensor], scores: Tensor, bound: Tensor, buffer: Tensor) -> Tensor:
    # 0.0 and 1.0 in float32 and their sum: three times as fast on CPU as summing booleans, exact below 2**24 items
    return comparison(scores, bound, out=buffer).sum(dim=1)


def _check_finite(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise TrainingError(
            f"every candidate's score must be finite; the scores reach from {low} to {high}: "
            "the model diverged, lower lr or raise temperature"
        )
