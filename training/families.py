"""Which learning curves are alike: the family of a trial, and the race that the curves of its family allow.

A family is decided by what changes the shape of a learning curve and not only its height. Two shapes are alike when
both trials have the same kind of loss, scores, schedule and so on, and when neither is much slower than the other
according to learning rate, batch size, warm-up, dropout, temperature and size. Pure functions, without torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..models.config import SCORING_KNOBS, TrialConfig
from .racing import KnownCurve, RaceContext
from .schedule import lr_factor

SAME = ("backbone", "loss", "scores", "supervision", "augmentation", "negative_sharing", "tie_embeddings", "causal")
"""Knobs that must be equal in a family."""
RATIOS = {"pace": 3.5, "temperature": 1.6, "hidden_dim": 2.1, "num_blocks": 2.1, "num_negatives": 5.1}
"""Knobs that may differ by a factor up to this; the pace is the learning rate per user: lr / batch_size."""
STEPS = {"warmup_epochs": 2.5, "dropout": 0.25, "embedding_dropout": 0.25, "attention_dropout": 0.35, "token_dropout": 0.15,
         "weight_decay": 0.1}
"""Knobs that may differ by a difference up to this."""
PRIOR_WEIGHTS = ("popularity_weight", "transition_weight", "cooccurrence_weight")
LONG_AVERAGE = 0.9
"""Weight averages with a larger decay lag behind the weights: a family of their own."""
SIMILAR = 0.5
"""The curves of another dataset count if its profile is at least this similar."""
CURVES_ELSEWHERE = 2
"""So many curves of other datasets stand for the one run of a family that this dataset does not have."""
TAIL = 1.5  # the slope at the end of a curve is measured over its last factor of epochs
SAMPLES = 64  # learning rates per epoch from which its mean is computed
MAX_CURVES = 12


@dataclass(frozen=True, eq=False)
class Run:
    """A trial that was trained to its end. `ndcg10` is that of the bare model after each of `epochs`."""

    source: str
    config: TrialConfig
    epochs: Sequence[int]
    ndcg10: Sequence[float]
    num_users: int
    parameters: int = 0
    similarity: float = 1.0  # of the profile of its dataset; 1 = the same dataset


def race_of(
    candidate: TrialConfig, num_users: int, incumbent: Run, runs: Sequence[Run], keep_z: float
) -> RaceContext | None:
    """The race of `candidate` against `incumbent`; None if it must run to its end.

    That is so if the scoring knobs differ, because learning curves are those of the bare model, and if no trial of its
    family has run to its end: on this dataset, or `CURVES_ELSEWHERE` on similar ones. `runs` may contain the incumbent.
    """
    if any(getattr(candidate, knob) != getattr(incumbent.config, knob) for knob in SCORING_KNOBS):
        return None
    family = sorted(
        (run for run in runs if run.similarity >= SIMILAR and alike(candidate, run.config)),
        key=lambda run: (-run.similarity, distance(candidate, run.config)),
    )
    if not any(run.similarity == 1 for run in family) and len(family) < CURVES_ELSEWHERE:
        return None
    return RaceContext(
        incumbent=incumbent.source,
        incumbent_curve=known_curve(incumbent, candidate),
        incumbent_parameters=incumbent.parameters,
        keep_z=keep_z,
        has_priors=any(getattr(candidate, weight) > 0 for weight in PRIOR_WEIGHTS),
        family=describe(candidate),
        curves=[known_curve(run, candidate) for run in family[:MAX_CURVES]],
        progress=progress(candidate, num_users, range(1, candidate.epochs + 1)),
        decays=candidate.schedule != "constant",
    )


def alike(one: TrialConfig, other: TrialConfig) -> bool:
    """Whether two trials are of one family; symmetric."""
    same = all(getattr(one, knob) == getattr(other, knob) for knob in SAME)
    schedules = (one.schedule == "constant") == (other.schedule == "constant")
    averages = (one.ema_decay > LONG_AVERAGE) == (other.ema_decay > LONG_AVERAGE)
    return bool(same and schedules and averages and distance(one, other) <= 1)


def distance(one: TrialConfig, other: TrialConfig) -> float:
    """The largest difference of two trials in a knob that slows learning down, in units of what a family allows."""
    ratios = (abs(math.log(_value(one, knob) / _value(other, knob))) / math.log(most) for knob, most in RATIOS.items())
    steps = (abs(getattr(one, knob) - getattr(other, knob)) / most for knob, most in STEPS.items())
    return float(max(*ratios, *steps))


def describe(config: TrialConfig) -> str:
    """A family in a few words for people and agents."""
    scores = "dot scores" if config.scores == "dot" else f"cosine scores at temperature {config.temperature:g}"
    warmup = f", warm-up of {config.warmup_epochs:g} epochs" if config.warmup_epochs else ""
    return f"{config.loss}, {scores}, lr near {config.lr:.1g}, schedule {config.schedule}{warmup}"


def known_curve(run: Run, candidate: TrialConfig) -> KnownCurve:
    """The curve of `run`, as a candidate with another number of epochs and another schedule is compared with it."""
    return KnownCurve(
        source=run.source,
        epochs=list(run.epochs),
        ndcg10=list(run.ndcg10),
        progress=progress(run.config, run.num_users, run.epochs),
        final=_final(run, candidate),
        max_epochs=run.config.epochs,
        distance=distance(run.config, candidate),
        similarity=run.similarity,
    )


def progress(config: TrialConfig, num_users: int, epochs: Sequence[int]) -> list[float]:
    """The sum of the learning rates of all steps until the end of each of `epochs`, which are ascending."""
    samples = np.arange(epochs[-1] * SAMPLES)
    factors = np.array([lr_factor(config, int(step), SAMPLES) for step in samples]).reshape(-1, SAMPLES).mean(axis=1)
    sums = np.cumsum(factors) * config.lr * math.ceil(num_users / config.batch_size)
    return [float(sums[epoch - 1]) for epoch in epochs]


def _final(run: Run, candidate: TrialConfig) -> float:
    """The best of a curve; if it still rose when its epochs were used up, its extrapolation to the candidate's."""
    best = max(run.ndcg10)
    last = run.epochs[-1]
    if last < run.config.epochs or candidate.epochs <= last or run.config.schedule != "constant":
        return best
    before = max((y for epoch, y in zip(run.epochs, run.ndcg10, strict=True) if epoch <= last / TAIL), default=best)
    if before <= 0:
        return best
    return min(1.0, best * math.exp(math.log(best / before) * math.log(candidate.epochs / last) / math.log(TAIL)))


def _value(config: TrialConfig, knob: str) -> float:
    return config.lr / config.batch_size if knob == "pace" else float(getattr(config, knob))
