"""Racing: whether a trial that is still training may stop, because it would not be kept. Pure functions, no I/O.

This module imports numpy and pydantic only: the worker applies the rule, and the server prepares its `RaceContext`.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from .metrics import ndcg_per_user

LADDER = (3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20, 23, 26, 30, 34, 39, 45, 52, 60, 69, 79, 91)
"""The epochs after which the rule is applied: from the twelfth on each about 1.15 times the one before."""
SPAN = 2.0
"""A trial's own rise is measured since epoch e / SPAN: the exponent with which NDCG@10 grew with the progress."""
FADE = 0.3
"""The exponent fades with the logarithm of the progress at this rate."""
FLATTEST, STEEPEST = 0.1, 1.5
"""The exponent is taken to be at least and at most this; STEEPEST if the curve may not have begun to rise."""
LOW_SHARE, LOW_POPULARITY = 0.5, 1.5
"""A curve may not have begun to rise below this share of the incumbent's best, or this multiple of popularity alone."""
LEAST_ELASTICITY = 0.07
"""The least elasticity of the judged NDCG@10 in the bare one."""
OWN_ERROR, OWN_EARLY_ERROR = 0.03, 0.3
"""Margin of the logarithm of the bound from the own rise: constant, and divided by the epoch."""
STEP = 1.5
"""Slopes are measured over a factor of epochs: how much the logarithm of NDCG@10 has grown since epoch e / STEP."""
DECAY = 0.6
"""Over each further factor STEP of epochs, a curve is taken to grow by this share of the slope before."""
FAMILY_SHARE = 0.5
"""The weight of the family's growth in the prediction; the rest is the candidate's own slope, extrapolated."""
NEARNESS = 3.0
"""A known curve at distance d counts exp(-NEARNESS * d)."""
ERROR, EARLY_ERROR, FAR_ERROR, LOW_ERROR = 0.05, 0.3, 0.1, 0.3
"""Margin of the logarithm of the bound: constant, divided by the epoch, times the distance, and if still far below."""
ELSEWHERE_ERROR = 0.2
"""Added to the margin if the family has run on other datasets only."""
FULL_ERROR = 1.1
"""The margin counts in full if this much is left of the logarithm of the epochs, a factor of three; else its root."""
LOW = 0.35
"""Below this share of the family's final NDCG@10 a curve may not have begun to rise: `LOW_ERROR` is added."""
WEAK = 0.5
"""Known curves that end below this share of the incumbent say nothing about a candidate that would be kept."""

SMALLEST = 1e-6

EpochRanks = NDArray[np.uint8]
"""Ranks (num_users,), those above 255 as 255."""


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
    same_scores: bool = True  # whether the incumbent's epochs are compared by judged ranks; False: by bare ones
    incumbent_epochs: list[int] = []  # whose ranks are known; empty = all of its curve
    family: str  # what the trials of the candidate's family have in common, in words
    curves: list[KnownCurve]  # of the candidate's family, the most alike first; at least one
    progress: list[float]  # of the candidate, for epochs 1, 2, ... until its last
    popularity: float = 0.0  # NDCG@10 of ranking by popularity alone, where curves often rest before they rise
    decays: bool = False  # whether the learning rates of the family decay to 0 at the end
    stops: bool = True  # False: a trial that cannot be kept is reported, and goes on


class StopCause(_Frozen):
    """Why a trial was stopped, in numbers: validation NDCG@10 with the score priors, by which trials are judged."""

    epoch: int  # after which it was stopped
    ndcg10: float  # of the weights that are best so far
    bound: float  # upper bound of the NDCG@10 at the end of the trial
    needed: float  # what it would have needed to be kept
    incumbent: str
    incumbent_at_epoch: float  # the incumbent's best until the same epoch; of the bare model if not `same_scores`
    incumbent_ndcg10: float  # the incumbent's
    z_at_epoch: float  # paired over users, against the incumbent's best until the same epoch
    same_scores: bool = True  # whether `z_at_epoch` compares judged ranks; False: those of the bare models
    se: float = 0.0  # of the present difference from the incumbent's `incumbent_ndcg10`
    family: str
    sources: list[str]  # trials whose curves the bound rests on
    sentence: str


class Needed(_Frozen):
    """The paired comparison with the incumbent: what the candidate needs at its end, and how it stands now."""

    ndcg10: float  # the least final NDCG@10 with which the candidate can be kept
    se: float  # of the present difference from the incumbent's final ranks
    incumbent_at_epoch: float
    z_at_epoch: float


def decide(
    epochs: Sequence[int],
    bare: Sequence[EpochRanks],
    judged: Mapping[int, EpochRanks],
    parameters: int,
    incumbent_ranks: NDArray[np.uint8],
    context: RaceContext,
) -> StopCause | None:
    """Why the candidate should stop after its last epoch; None if it may still be kept, or if this epoch is no rung.

    epochs: the candidate's evaluated epochs, ascending; bare: its ranks after each of them, without score priors;
    judged: those with its score priors, by epoch: all of `epochs` or some, and only these can be rungs. parameters: its
    number of weights. incumbent_ranks: (num_rows + 1, num_users), after each of the incumbent's epochs, judged or bare
    as `context.same_scores` says, and last those by which it was judged.
    """
    if epochs[-1] not in judged or not is_rung(list(judged)):
        return None
    model = dict(zip(epochs, map(mean_ndcg10, bare), strict=True))
    scored = {epoch: mean_ndcg10(row) for epoch, row in judged.items()}
    best = best_until(epochs[-1], model, list(judged))
    bound = judged_bound(model, scored, context)
    compared = judged[best] if context.same_scores else bare[best_of(list(model.values()))]
    needed = compare_with_incumbent(epochs[-1], compared, judged[best], parameters, incumbent_ranks, context)
    if not hopeless(bound, needed.ndcg10, needed.z_at_epoch):
        return None
    sources = [known.source for known in context.curves]
    return StopCause(
        epoch=epochs[-1],
        ndcg10=scored[best],
        bound=bound,
        needed=needed.ndcg10,
        incumbent=context.incumbent,
        incumbent_at_epoch=needed.incumbent_at_epoch,
        incumbent_ndcg10=mean_ndcg10(incumbent_ranks[-1]),
        z_at_epoch=needed.z_at_epoch,
        same_scores=context.same_scores,
        se=needed.se,
        family=context.family,
        sources=sources,
        sentence=(
            f"stopped after epoch {epochs[-1]} of {len(context.progress)} at NDCG@10 {scored[best]:.4f}"
            f"{'' if scored == model else ' with score priors'} (z = {needed.z_at_epoch:+.1f} against "
            f"{context.incumbent} there{'' if context.same_scores else ', both bare'}): by {_grounds(sources)} it "
            f"is expected to end at {bound:.4f} at most, and a keep needs {needed.ndcg10:.4f}"
        ),
    )


def hopeless(bound: float, needed: float, z_at_epoch: float) -> bool:
    """Whether a candidate cannot reach what it needs, and is behind the incumbent at the same epoch as well."""
    return bound < needed and z_at_epoch < 0


def is_rung(epochs: Sequence[int]) -> bool:
    """Whether the last of the evaluated epochs is the first one at or after an epoch of the ladder."""
    before = epochs[-2] if len(epochs) > 1 else 0
    return any(before < rung <= epochs[-1] for rung in LADDER)


def compare_with_incumbent(
    epoch: int,
    compared: EpochRanks,
    judged: EpochRanks,
    parameters: int,
    incumbent_ranks: NDArray[np.uint8],
    context: RaceContext,
) -> Needed:
    """What a candidate needs at its end, and its z against the incumbent at the same epoch.

    `compared` and `judged` are its ranks after its best epoch until `epoch`: of the kind of the incumbent's epochs, and
    those by which it would be judged now. It is kept if its paired difference is at least `keep_z` standard errors, or,
    if it has fewer weights, if it is no more than that below. The standard error is that of the present difference.
    """
    known = context.incumbent_curve
    rows = context.incumbent_epochs or known.epochs
    same = rows.index(best_until(epoch, dict(zip(known.epochs, known.ndcg10, strict=True)), rows))
    theirs = ndcg_per_user(incumbent_ranks[same])
    final = ndcg_per_user(incumbent_ranks[-1])
    at_epoch = ndcg_per_user(compared) - theirs
    error, now = standard_error(ndcg_per_user(judged) - final), standard_error(at_epoch)
    return Needed(
        ndcg10=float(final.mean()) - errors_below(parameters, context) * context.keep_z * error,
        se=error,
        incumbent_at_epoch=float(theirs.mean()),
        z_at_epoch=float(at_epoch.mean()) / now if now else 0.0,
    )


def errors_below(parameters: int, context: RaceContext) -> float:
    """How many times `keep_z` standard errors a candidate may end below the incumbent and yet be kept."""
    return 1.0 if parameters < context.incumbent_parameters else -1.0


def judged_bound(bare: Mapping[int, float], judged: Mapping[int, float], context: RaceContext) -> float:
    """Upper bound of the judged NDCG@10 at the end of the trial, from the `upper_bound` of the bare one.

    The logarithm of the judged NDCG@10 is taken to grow in proportion to that of the bare one: score priors rank well
    from the first epoch on, so that a model which doubles adds a few per cent. Without priors both bounds are equal.
    bare, judged: NDCG@10 by epoch, ascending.
    """
    values = list(bare.values())
    bound, now = upper_bound(list(bare), values, context), max(values)
    if now <= 0:
        return 1.0
    share = 1.0 if _is_low(values, context) else elasticity(bare, judged)
    return min(1.0, max(judged.values()) * math.pow(bound / now, share))


def elasticity(bare: Mapping[int, float], judged: Mapping[int, float]) -> float:
    """By how many per cent the best judged NDCG@10 grew, since epoch e / SPAN, for one per cent of the bare one.

    At least LEAST_ELASTICITY, and at most 1, which is also its value if the bare model did not grow.
    """
    last = max(judged)
    since = max(min(judged), last / SPAN)
    ours, models = (_growth(values, since, last) for values in (judged, bare))
    return min(1.0, max(LEAST_ELASTICITY, ours / models)) if models > 0 else 1.0


def _growth(ndcg10: Mapping[int, float], since: float, until: float) -> float:
    """The growth of the logarithm of the best NDCG@10 between two epochs."""
    epochs, values = list(ndcg10), list(ndcg10.values())
    return math.log(_level(epochs, values, until) / _level(epochs, values, since))


def upper_bound(epochs: Sequence[int], ndcg10: Sequence[float], context: RaceContext) -> float:
    """Upper bound of the best NDCG@10 at the end of the trial: the smaller one of `own_bound` and `family_bound`.

    Of a curve that may not have begun to rise, the family says too little: trials of one family begin at other times.
    """
    own = own_bound(epochs, ndcg10, context)
    return own if _is_low(ndcg10, context) else min(own, family_bound(epochs, ndcg10, context))


def own_bound(epochs: Sequence[int], ndcg10: Sequence[float], context: RaceContext) -> float:
    """Upper bound of the best NDCG@10 at the end of the trial, from its own curve.

    NDCG@10 is taken to grow as a power of the progress, the sum of the learning rates of all steps, with an exponent
    that fades exponentially in the logarithm of the progress. While the curve is low it may not have begun to rise, so
    that its present exponent says nothing: then the steepest one counts.
    """
    epoch, best = epochs[-1], max(ndcg10)
    if best <= 0:
        return 1.0
    left = math.log(context.progress[-1] / context.progress[epoch - 1])
    risen = min(max(FLATTEST, _exponent(epochs, ndcg10, context)), STEEPEST)
    exponent = STEEPEST if _is_low(ndcg10, context) else risen
    growth = exponent * (1 - math.exp(-FADE * left)) / FADE
    return min(1.0, best * math.exp(growth + OWN_ERROR + OWN_EARLY_ERROR / epoch))


def _is_low(ndcg10: Sequence[float], context: RaceContext) -> bool:
    """Whether a curve may not have begun to rise."""
    return max(ndcg10) < max(LOW_SHARE * context.incumbent_curve.final, LOW_POPULARITY * context.popularity)


def _exponent(epochs: Sequence[int], ndcg10: Sequence[float], context: RaceContext) -> float:
    """The exponent with which the best NDCG@10 grew with the progress since epoch e / SPAN."""
    since = max(1.0, epochs[-1] / SPAN)
    risen = math.log(_level(epochs, ndcg10, epochs[-1]) / _level(epochs, ndcg10, since))
    progress = np.interp(since, np.arange(1, len(context.progress) + 1), context.progress)
    return risen / math.log(context.progress[epochs[-1] - 1] / progress)


def family_bound(epochs: Sequence[int], ndcg10: Sequence[float], context: RaceContext) -> float:
    """Upper bound of the best NDCG@10 at the end of the trial, from its own curve and the curves of its family.

    The logarithm of the growth still to come is predicted twice: as the growth that the family still had at this place,
    and from the candidate's own slope, extrapolated as a geometric series. The bound is the mean of both, plus a margin
    that shrinks with the epochs (docs/racing.md has the errors measured on recorded curves). A candidate that is still
    low may not have begun to rise, and a decaying learning rate brings a late gain: then it grows at least as the
    family did. The bound is 1 if the family says nothing.
    """
    epoch, best = epochs[-1], max(ndcg10)
    known = [curve for curve in context.curves if curve.final >= WEAK * context.incumbent_curve.final]
    here = [curve for curve in known if curve.similarity == 1]
    known = here or known
    if not known or best <= 0:
        return 1.0
    family = _family_growth(known, epoch, context)
    left = math.log(len(context.progress) / epoch)
    own = _slope(epochs, ndcg10, epoch) * _geometric_sum(left / math.log(STEP))
    part = min(1.0, left / FULL_ERROR)
    growth = own + FAMILY_SHARE * part * (family - own)
    low = best < LOW * max(curve.final for curve in known)
    if low or context.decays:
        growth = max(growth, family)
    margin = ERROR + EARLY_ERROR / epoch + FAR_ERROR * min(curve.distance for curve in known) + LOW_ERROR * low
    margin += 0 if here else ELSEWHERE_ERROR
    return min(1.0, best * math.exp(growth + margin * math.sqrt(part)))


def growth_of(curve: KnownCurve, epoch: int, context: RaceContext) -> float:
    """The logarithm of how much a known curve grew from where the candidate is after `epoch` to where it will end.

    Where that is on the known curve is said by the number of epochs, by the sum of learning rates, and if these decay
    by the share of all epochs; the way with the largest growth counts.
    """
    last = len(context.progress)
    ways = [_place_by_epoch, _place_by_progress] + ([_place_by_share] if context.decays else [])
    levels = [[_reached(curve, way(curve, at, context)) for at in (epoch, last)] for way in ways]
    return max(math.log(max(end, now) / now) for now, end in levels)


def _place_by_epoch(curve: KnownCurve, epoch: int, context: RaceContext) -> float:
    return float(epoch)


def _place_by_progress(curve: KnownCurve, epoch: int, context: RaceContext) -> float:
    progress = context.progress[epoch - 1]
    if progress > curve.progress[-1]:
        return math.inf
    return float(np.interp(progress, [0.0, *curve.progress], [0, *curve.epochs]))


def _place_by_share(curve: KnownCurve, epoch: int, context: RaceContext) -> float:
    return epoch / len(context.progress) * curve.max_epochs


def _reached(curve: KnownCurve, place: float) -> float:
    """The best NDCG@10 of a known curve until `place`; from its last epoch on, its final."""
    return curve.final if place >= curve.epochs[-1] else _level(curve.epochs, curve.ndcg10, place)


def _family_growth(curves: Sequence[KnownCurve], epoch: int, context: RaceContext) -> float:
    """The mean growth of the known curves, those of near configurations first."""
    weights = np.exp([-NEARNESS * curve.distance for curve in curves])
    return float(np.average([growth_of(curve, epoch, context) for curve in curves], weights=weights))


def _slope(epochs: Sequence[int], ndcg10: Sequence[float], place: float) -> float:
    """How much the logarithm of the best NDCG@10 has grown over the last factor STEP of epochs."""
    return math.log(_level(epochs, ndcg10, place) / _level(epochs, ndcg10, place / STEP))


def _geometric_sum(count: float) -> float:
    """DECAY + DECAY^2 + ... + DECAY^count, for any count >= 0."""
    return float((DECAY - DECAY ** (count + 1)) / (1 - DECAY))


def best_until(epoch: int, ndcg10: Mapping[int, float], among: Sequence[int]) -> int:
    """The epoch `among` those until `epoch` with the largest NDCG@10; the first of equal ones, or of all if none is."""
    until = [at for at in among if at <= epoch] or among[:1]
    return until[best_of([ndcg10[at] for at in until])]


def best_of(ndcg10: Sequence[float]) -> int:
    """The index of the largest value, the first of equal ones."""
    return max(range(len(ndcg10)), key=lambda index: (ndcg10[index], -index))


def mean_ndcg10(ranks: EpochRanks) -> float:
    """NDCG@10 of clipped ranks."""
    return float(ndcg_per_user(ranks).mean())


def standard_error(differences: NDArray[np.float64]) -> float:
    """The standard error of the mean of paired differences (num_users,); 0 for fewer than two users."""
    return float(differences.std(ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0


def _level(epochs: Sequence[int], ndcg10: Sequence[float], place: float) -> float:
    """The best NDCG@10 until `place`, interpolated in the logarithm of both between evaluated epochs."""
    best = np.maximum.accumulate(np.maximum(ndcg10, SMALLEST))
    return float(np.exp(np.interp(math.log(max(place, SMALLEST)), np.log(epochs), np.log(best))))


def _grounds(names: Sequence[str]) -> str:
    """What the bound rests on, in words."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"its own curve and those of {', '.join(names[:3])}{more}"
