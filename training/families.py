"""Which learning curves are alike: the family of a trial, and the race that the curves of its family allow.

A family is decided by what changes the shape of a learning curve and not only its height: the backbone, the kind of
loss, the scores, and whether the model has teachers. Inside a family, the distance says how much slower than the known
trial a candidate may be, by learning rate, batch size, warm-up, dropout, temperature, size and so on. Pure functions,
without torch.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..models.config import TrialConfig, teachers_of
from .racing import SMALLEST, KnownCurve, RaceContext
from .schedule import lr_factor

KIND_OF_LOSS = {"full_softmax": "softmax over all items", "sampled_softmax": "sampled softmax"}  # the others: binary
FARTHEST = 4.0
"""Trials at a larger distance are not of one family."""
OTHER_DATASET = 2.0
"""A curve of another dataset is this much farther away for each unit that the similarity is below 1."""
LONG_AVERAGE = 0.9  # weight averages with a larger decay lag behind the weights
FASTER = 0.25
"""A candidate that is faster than the known trial counts as this share of one that is as much slower."""
Distance = Callable[[TrialConfig, TrialConfig], float]

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
    dataset: str = ""  # of a run on another dataset: which one


def race_of(
    candidate: TrialConfig,
    num_users: int,
    incumbent: Run,
    runs: Sequence[Run],
    keep_z: float,
    popularity: float = 0.0,
    same_scores: bool = True,
    incumbent_epochs: Sequence[int] = (),
) -> RaceContext | None:
    """The race of `candidate` against `incumbent`; None if it must run to its end.

    That is so if no trial of its family has run to its end: on this dataset, or `CURVES_ELSEWHERE` on similar ones.
    `runs` may contain the incumbent. Curves of another dataset are scaled as if the best of its `runs` were as good as
    the incumbent. `popularity` is the NDCG@10 of ranking by popularity alone; `same_scores` and `incumbent_epochs` are
    as in `RaceContext`.
    """
    scales = _scales(incumbent, runs)
    curves = [
        known_curve(run, candidate, 1.0 if run.similarity == 1 else scales[run.dataset])
        for run in runs
        if run.similarity >= SIMILAR and alike(candidate, run.config)
    ]
    if not any(curve.similarity == 1 for curve in curves) and len(curves) < CURVES_ELSEWHERE:
        return None
    return RaceContext(
        incumbent=incumbent.source,
        incumbent_curve=known_curve(incumbent, candidate),
        incumbent_parameters=incumbent.parameters,
        keep_z=keep_z,
        same_scores=same_scores,
        incumbent_epochs=list(incumbent_epochs),
        family=describe(candidate),
        curves=sorted(curves, key=lambda curve: (curve.similarity < 1, curve.distance))[:MAX_CURVES],
        progress=progress(candidate, num_users, range(1, candidate.epochs + 1)),
        popularity=popularity,
        decays=candidate.schedule != "constant",
    )


def alike(candidate: TrialConfig, known: TrialConfig) -> bool:
    """Whether the curve of `known` says how the candidate's will go on."""
    same = candidate.backbone == known.backbone and candidate.scores == known.scores
    same = same and bool(teachers_of(candidate)) == bool(teachers_of(known))
    return same and kind_of_loss(candidate) == kind_of_loss(known) and distance(candidate, known) <= FARTHEST


def kind_of_loss(config: TrialConfig) -> str:
    """Softmax over all items, sampled softmax, or binary."""
    return KIND_OF_LOSS.get(config.loss, "binary")


def distance(candidate: TrialConfig, known: TrialConfig) -> float:
    """How much slower than `known` the candidate may learn, or how different its curve may be otherwise; 0 = equal."""
    return sum(term(candidate, known) for term in _TERMS)


def describe(config: TrialConfig) -> str:
    """A family in a few words for people and agents."""
    taught = ", with teachers" if teachers_of(config) else ""
    return f"{config.backbone}, {kind_of_loss(config)}, {config.scores} scores{taught}"


def known_curve(run: Run, candidate: TrialConfig, scale: float = 1.0) -> KnownCurve:
    """The curve of `run` times `scale`, as a candidate with its own number of epochs is compared with it."""
    return KnownCurve(
        source=run.source,
        epochs=list(run.epochs),
        ndcg10=[min(1.0, scale * value) for value in run.ndcg10],
        progress=progress(run.config, run.num_users, run.epochs),
        final=min(1.0, scale * _final(run, candidate)),
        max_epochs=run.config.epochs,
        distance=distance(candidate, run.config) + OTHER_DATASET * (1 - run.similarity),
        similarity=run.similarity,
    )


def _scales(incumbent: Run, runs: Sequence[Run]) -> dict[str, float]:
    """For each other dataset: the incumbent's best NDCG@10 over that of the best of its runs."""
    best: dict[str, float] = {}
    for run in runs:
        if run.similarity < 1:
            best[run.dataset] = max([*run.ndcg10, best.get(run.dataset, SMALLEST)])
    return {dataset: max(incumbent.ndcg10) / value for dataset, value in best.items()}


def progress(config: TrialConfig, num_users: int, epochs: Sequence[int]) -> list[float]:
    """The sum of the learning rates of all steps until the end of each of `epochs`, which are ascending."""
    sums = _sums(config, math.ceil(num_users / config.batch_size), epochs[-1])
    return [sums[epoch - 1] for epoch in epochs]


@functools.lru_cache(maxsize=512)
def _sums(config: TrialConfig, steps: int, epochs: int) -> tuple[float, ...]:
    """The sum of the learning rates of all steps until the end of epochs 1, 2, ..., with so many steps in each."""
    samples = np.arange(epochs * SAMPLES)
    factors = np.array([lr_factor(config, int(step), SAMPLES) for step in samples]).reshape(-1, SAMPLES).mean(axis=1)
    return tuple((np.cumsum(factors) * config.lr * steps).tolist())


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


def _slower(value: Callable[[TrialConfig], float], unit: float) -> Distance:
    """A term for a value that slows learning down: 1 if the candidate's is larger by `unit`."""

    def term(candidate: TrialConfig, known: TrialConfig) -> float:
        difference = (value(candidate) - value(known)) / unit
        return max(difference, -FASTER * difference)

    return term


def _other(value: Callable[[TrialConfig], object], cost: float) -> Distance:
    """A term that is `cost` if the two values are not equal."""
    return lambda candidate, known: cost * (value(candidate) != value(known))


_TERMS: tuple[Distance, ...] = (
    _slower(lambda config: -math.log(config.lr / config.batch_size), math.log(4)),
    _slower(lambda config: config.warmup_epochs, 5.0),
    _slower(lambda config: config.dropout, 0.4),
    _slower(lambda config: config.embedding_dropout, 0.4),
    _slower(lambda config: config.attention_dropout, 0.5),
    _slower(lambda config: config.token_dropout, 0.3),
    _slower(lambda config: config.num_blocks, 3.0),
    _slower(lambda config: -math.log(config.num_negatives) if config.loss != "full_softmax" else 0.0, math.log(10)),
    _slower(lambda config: config.ema_decay > LONG_AVERAGE, 1.0),
    lambda candidate, known: abs(math.log(candidate.temperature / known.temperature)) / math.log(2.5),
    lambda candidate, known: abs(math.log(candidate.hidden_dim / known.hidden_dim)) / math.log(8),
    lambda candidate, known: abs(candidate.weight_decay - known.weight_decay) / 0.2,
    _other(lambda config: config.schedule == "constant", 0.5),
    _other(lambda config: config.loss, 0.5),
    _other(lambda config: config.supervision, 1.0),
    _other(lambda config: config.augmentation, 0.5),
    _other(lambda config: config.negative_sharing if config.loss != "full_softmax" else "", 0.5),
    _other(lambda config: config.tie_embeddings, 0.5),
    _other(lambda config: config.causal, 1.0),
)
