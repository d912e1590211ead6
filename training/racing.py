"""Racing: whether a trial that is still training may stop, because it would not be kept. Pure functions, no I/O.

This module imports numpy and pydantic only: the worker applies the rule, and the server prepares its `RaceContext`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from .metrics import ndcg_per_user

LADDER = (2, 3, 4, 5, 7, 9, 12, 15, 19, 24, 30, 38, 48, 60, 76, 95)
"""The epochs after which the rule is applied: each about 1.25 times the one before."""

EpochRanks = NDArray[np.uint8]
"""Ranks (num_users,) of the bare model, those above 255 as 255."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class KnownCurve(_Frozen):
    """The learning curve of a trial that ran to its end: validation NDCG@10 of the bare model by epoch."""

    source: str  # "t003" of this session, or "beauty-sasrec-1/t004"
    epochs: list[int]  # the evaluated epochs, ascending
    ndcg10: list[float]  # after each of `epochs`
    progress: list[float]  # until the end of each of `epochs`: the sum of the learning rates of all steps
    final: float  # its best NDCG@10, or what it would have reached in as many epochs as the candidate has
    max_epochs: int  # that its configuration allows
    distance: float = 0.0  # to the candidate's configuration: 0 = equally fast, 1 = barely of its family
    similarity: float = 1.0  # of the profiles of the datasets: 1 = the same dataset


class RaceContext(_Frozen):
    """What the rule knows when the trial starts."""

    incumbent: str  # its handle
    incumbent_curve: KnownCurve
    incumbent_parameters: int
    keep_z: float
    family: str  # what the trials of the candidate's family have in common, in words
    curves: list[KnownCurve]  # of the candidate's family, the most alike first; at least one
    progress: list[float]  # of the candidate, for epochs 1, 2, ... until its last
    decays: bool = False  # whether the learning rates of the family decay to 0 at the end


class StopCause(_Frozen):
    """Why a trial was stopped, in numbers. NDCG@10 is that of the bare model on validation."""

    epoch: int  # after which it was stopped
    ndcg10: float  # best so far
    bound: float  # upper bound of the best NDCG@10 at the end of the trial
    needed: float  # what it would have needed to be kept
    incumbent: str
    incumbent_at_epoch: float  # the incumbent's best until the same epoch
    incumbent_ndcg10: float  # the incumbent's best
    z_at_epoch: float  # paired over users, against the incumbent's best until the same epoch
    family: str
    sources: list[str]  # trials whose curves the bound rests on
    sentence: str


class Needed(_Frozen):
    """The paired comparison with the incumbent: what the candidate needs at its end, and how it stands now."""

    ndcg10: float  # the least final NDCG@10 with which the candidate can be kept
    incumbent_at_epoch: float
    z_at_epoch: float


def decide(
    epochs: Sequence[int],
    ranks: Sequence[EpochRanks],
    parameters: int,
    incumbent_ranks: NDArray[np.uint8],
    context: RaceContext,
) -> StopCause | None:
    """Why the candidate should stop after its last epoch; None if it may still be kept, or if this epoch is no rung.

    epochs: the candidate's evaluated epochs, ascending; ranks: its ranks after each of them; parameters: its number of
    weights. incumbent_ranks: (num_epochs, num_users), after each epoch of `context.incumbent_curve`.
    """
    if not is_rung(epochs):
        return None
    ndcg10 = [mean_ndcg10(row) for row in ranks]
    bound = upper_bound(epochs, ndcg10, context)
    needed = compare_with_incumbent(epochs[-1], ranks[best_of(ndcg10)], parameters, incumbent_ranks, context)
    if bound >= needed.ndcg10 or needed.z_at_epoch > -context.keep_z:
        return None
    best, final = max(ndcg10), max(context.incumbent_curve.ndcg10)
    sources = [curve.source for curve in context.curves]
    return StopCause(
        epoch=epochs[-1],
        ndcg10=best,
        bound=bound,
        needed=needed.ndcg10,
        incumbent=context.incumbent,
        incumbent_at_epoch=needed.incumbent_at_epoch,
        incumbent_ndcg10=final,
        z_at_epoch=needed.z_at_epoch,
        family=context.family,
        sources=sources,
        sentence=(
            f"stopped after epoch {epochs[-1]} of {len(context.progress)} at NDCG@10 {best:.4f} (z = "
            f"{needed.z_at_epoch:+.1f} against {context.incumbent} there): by the curves of {_listed(sources)} it "
            f"would end at {bound:.4f} at most, and a keep needs {needed.ndcg10:.4f}"
        ),
    )


def is_rung(epochs: Sequence[int]) -> bool:
    """Whether the last of the evaluated epochs is the first one at or after an epoch of the ladder."""
    before = epochs[-2] if len(epochs) > 1 else 0
    return any(before < rung <= epochs[-1] for rung in LADDER)


def compare_with_incumbent(
    epoch: int, ranks: EpochRanks, parameters: int, incumbent_ranks: NDArray[np.uint8], context: RaceContext
) -> Needed:
    """What a candidate with its best `ranks` until `epoch` needs, and its z against the incumbent at the same epoch.

    A candidate is kept if its paired difference is at least `keep_z` standard errors, or, if it has fewer weights, if
    it is no more than that below. The standard error is that of the present difference from the incumbent's best.
    """
    known = context.incumbent_curve
    until = [y for at, y in zip(known.epochs, known.ndcg10, strict=True) if at <= epoch] or known.ndcg10[:1]
    same, best = best_of(until), best_of(known.ndcg10)
    gains = ndcg_per_user(ranks)
    at_epoch = gains - ndcg_per_user(incumbent_ranks[same])
    error = standard_error(gains - ndcg_per_user(incumbent_ranks[best]))
    sign = -1 if parameters < context.incumbent_parameters else 1
    now = standard_error(at_epoch)
    return Needed(
        ndcg10=known.ndcg10[best] + sign * context.keep_z * error,
        incumbent_at_epoch=until[same],
        z_at_epoch=float(at_epoch.mean()) / now if now else 0.0,
    )


def upper_bound(epochs: Sequence[int], ndcg10: Sequence[float], context: RaceContext) -> float:
    """Upper bound of the best NDCG@10 at the end of the trial, from its curve and the curves of its family."""
    growth = max(growth_of(curve, epochs[-1], context) for curve in context.curves)
    return min(1.0, max(ndcg10) * math.exp(growth + 0.3))


def growth_of(curve: KnownCurve, epoch: int, context: RaceContext) -> float:
    """The logarithm of how much a known curve still grew from where the candidate is after `epoch`.

    Where that is on the known curve is said by the number of epochs, by the sum of learning rates, and if these decay
    by the share of all epochs; the least advanced of these places counts.
    """
    places = [float(epoch), float(np.interp(context.progress[epoch - 1], [0.0, *curve.progress], [0, *curve.epochs]))]
    if context.decays:
        places.append(epoch / len(context.progress) * curve.max_epochs)
    level = _level(curve, min(places))
    return math.log(max(curve.final, level) / level)


def best_of(ndcg10: Sequence[float]) -> int:
    """The index of the largest value, the first of equal ones."""
    return max(range(len(ndcg10)), key=lambda index: (ndcg10[index], -index))


def mean_ndcg10(ranks: EpochRanks) -> float:
    """NDCG@10 of clipped ranks."""
    return float(ndcg_per_user(ranks).mean())


def standard_error(differences: NDArray[np.float64]) -> float:
    """The standard error of the mean of paired differences (num_users,); 0 for fewer than two users."""
    return float(differences.std(ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0


def _level(curve: KnownCurve, place: float) -> float:
    """The best NDCG@10 of a curve until `place` epochs, between epochs interpolated in the logarithm of both."""
    best = np.maximum.accumulate(np.maximum(curve.ndcg10, 1e-6))
    return float(np.exp(np.interp(math.log(max(place, 1e-6)), np.log(curve.epochs), np.log(best))))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
