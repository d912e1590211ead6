"""Racing: whether a trial that is still training may stop, because it would not be kept. Pure functions, no I/O.

This module imports numpy and pydantic only: the worker applies the rule, and the server prepares its `RaceContext`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from .metrics import ndcg_per_user

LADDER = (2, 3, 5, 8, 12, 18, 27, 40, 60, 90)
"""The epochs after which the rule is applied: each about 1.5 times the one before."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class KnownCurve(_Frozen):
    """The learning curve of a trial that ran to its end: validation NDCG@10 of the bare model by epoch."""

    source: str  # "t003" of this session, or "beauty-sasrec-1/t004"
    epochs: list[int]  # the evaluated epochs, ascending
    ndcg10: list[float]  # of the same length
    same_session: bool = True


class RaceContext(_Frozen):
    """What the rule knows when the trial starts."""

    incumbent: str  # its handle
    incumbent_curve: KnownCurve
    keep_z: float
    family: str  # what the trials of the candidate's family have in common
    curves: list[KnownCurve]  # of the candidate's family
    max_epochs: int  # of the candidate


class StopCause(_Frozen):
    """Why a trial was stopped, in numbers. NDCG@10 is that of the bare model on validation."""

    epoch: int  # after which it was stopped
    ndcg10: float  # best so far
    bound: float  # upper bound of the best NDCG@10 at the end of the trial
    incumbent: str
    incumbent_at_epoch: float  # the incumbent's best until the same epoch
    incumbent_ndcg10: float  # the incumbent's best
    z_at_epoch: float  # paired over users, against the incumbent at the same epoch
    family: str
    sources: list[str]  # trials whose curves the bound rests on
    sentence: str


def decide(
    epochs: Sequence[int],
    ranks: Sequence[NDArray[np.uint8]],
    incumbent_ranks: NDArray[np.uint8],
    context: RaceContext,
) -> StopCause | None:
    """Why the candidate should stop after its last epoch; None if it may still be kept, or no rung is reached.

    epochs: the candidate's evaluated epochs; ranks: its clipped ranks (num_users,) after each of them.
    incumbent_ranks: (num_epochs, num_users), after each epoch of `context.incumbent_curve`.
    """
    if not _is_rung(epochs) or not context.curves:
        return None
    ndcg10 = [float(ndcg_per_user(row).mean()) for row in ranks]
    best = best_so_far(ndcg10)
    incumbent = context.incumbent_curve
    same = best_so_far([value for epoch, value in zip(incumbent.epochs, incumbent.ndcg10, strict=True)
                        if epoch <= epochs[-1]] or incumbent.ndcg10[:1])
    z = _z(ranks[best], incumbent_ranks[same])
    bound = ndcg10[best] * max(_growth(curve, epochs[-1]) for curve in context.curves)
    final = max(incumbent.ndcg10)
    if z > -context.keep_z or bound >= final:
        return None
    return StopCause(
        epoch=epochs[-1],
        ndcg10=ndcg10[best],
        bound=bound,
        incumbent=context.incumbent,
        incumbent_at_epoch=incumbent.ndcg10[same],
        incumbent_ndcg10=final,
        z_at_epoch=z,
        family=context.family,
        sources=[curve.source for curve in context.curves],
        sentence=(
            f"stopped after epoch {epochs[-1]} at NDCG@10 {ndcg10[best]:.4f}: curves of its family reach at most "
            f"{bound:.4f} from there, and {context.incumbent} has {final:.4f}"
        ),
    )


def _is_rung(epochs: Sequence[int]) -> bool:
    """Whether the last evaluated epoch is the first one at or after an epoch of the ladder."""
    before = epochs[-2] if len(epochs) > 1 else 0
    return any(before < rung <= epochs[-1] for rung in LADDER)


def _growth(curve: KnownCurve, epoch: int) -> float:
    """How much larger the best of a complete curve is than the best of its epochs until `epoch`."""
    until = [value for at, value in zip(curve.epochs, curve.ndcg10, strict=True) if at <= epoch]
    return max(curve.ndcg10) / max(until) if until and max(until) > 0 else math.inf


def _z(ranks: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """The mean paired difference of NDCG@10 over users, in standard errors."""
    difference = ndcg_per_user(ranks) - ndcg_per_user(others)
    se = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return float(difference.mean()) / se if se else 0.0


def best_so_far(ndcg10: Sequence[float]) -> int:
    """The index of the largest value, the first of equal ones."""
    return max(range(len(ndcg10)), key=lambda index: (ndcg10[index], -index))
