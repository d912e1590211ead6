"""Name a pair of knobs that interact, only where the trials of a session demand it. Pure numpy.

Trials are fitted by generalised least squares with one free coefficient for every value of every knob, without a
prior. What no additive model can fit is the residual, whose weighted sum of squares has a chi-square distribution with
n - rank degrees of freedom if effects are additive. An interaction is named if that is rejected at LEVEL, if one pair
explains the residual (its own test is significant at LEVEL after Bonferroni's correction for all pairs, and what is
left is not rejected), and if no other pair explains it about as well. Sessions in which every trial changed something
new have no degrees of freedom: then nothing is named.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .observations import Floats

LEVEL = 0.01
MARGIN = 4.0  # the pair's chi-square must exceed that of every other pair by this much
INDEPENDENT = 1e-6  # a column is testable if more than this share of it is outside of the additive model


class Interaction(NamedTuple):
    """Two knobs whose joint change has an effect beyond the sum of both, relative to the first trial's NDCG@10."""

    knobs: tuple[str, str]
    effect: float
    se: float
    p: float  # of the pair, after the correction for all pairs


class LackOfFit(NamedTuple):
    """The best pair, and whether the trials demand it."""

    best: Interaction
    demanded: bool


def lack_of_fit(
    relative: Floats, covariance: Floats, trial_steps: Sequence[Mapping[str, tuple[Any, Any]]]
) -> LackOfFit | None:
    """Test the additive model against every pair of knobs; None if the trials cannot test it.

    relative (n,): NDCG@10 relative to the first trial; covariance (n, n) of its errors; trial_steps: what each trial
    changed over the first one.
    """
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    basis = _column_space(whiten @ _additive_design(trial_steps))
    degrees = len(relative) - basis.shape[1]
    if degrees < 1:
        return None
    residual = _outside(basis, whiten @ relative)
    tested = sorted(_tested_pairs(basis, whiten, residual, trial_steps), reverse=True)
    if not tested:
        return None
    misfit, (explained, pair, effect, se) = float(residual @ residual), tested[0]
    p = min(1.0, len(tested) * chi_square_tail(explained, 1))
    is_rejected = chi_square_tail(misfit, degrees) <= LEVEL
    is_enough = degrees == 1 or chi_square_tail(misfit - explained, degrees - 1) > LEVEL
    is_distinct = len(tested) == 1 or explained - tested[1][0] >= MARGIN
    return LackOfFit(Interaction(pair, effect, se, p), is_rejected and p <= LEVEL and is_enough and is_distinct)


def together(pair: tuple[str, str], trial_steps: Sequence[Mapping[str, Any]]) -> Floats:
    """1 for trials in which both knobs differ from the first trial, otherwise 0."""
    return np.array([float(all(knob in steps for knob in pair)) for steps in trial_steps])


def chi_square_tail(value: float, degrees: int) -> float:
    """P(chi-square with `degrees` degrees of freedom > value), by the recursion over degrees in steps of two."""
    half = max(value, 0.0) / 2
    tail = math.erfc(math.sqrt(half)) if degrees % 2 else math.exp(-half)
    for k in range(1 if degrees % 2 else 2, degrees, 2):
        tail += math.exp(k / 2 * math.log(half) - half - math.lgamma(k / 2 + 1)) if half else 0.0
    return tail


def _additive_design(trial_steps: Sequence[Mapping[str, tuple[Any, Any]]]) -> Floats:
    """A column of ones, and one for every value of every knob other than the first trial's."""
    values = dict.fromkeys((knob, after) for steps in trial_steps for knob, (_, after) in steps.items())
    columns = {value: place for place, value in enumerate(values, 1)}
    design = np.zeros((len(trial_steps), len(columns) + 1))
    design[:, 0] = 1.0
    for row, steps in enumerate(trial_steps):
        for knob, (_, after) in steps.items():
            design[row, columns[knob, after]] = 1.0
    return design


def _column_space(matrix: Floats) -> Floats:
    """An orthonormal basis (n, rank) of the columns."""
    left, sizes, _ = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(left[:, sizes > sizes[0] * 1e-9])


def _outside(basis: Floats, vector: Floats) -> Floats:
    return np.asarray(vector - basis @ (basis.T @ vector))


def _tested_pairs(
    basis: Floats, whiten: Floats, residual: Floats, trial_steps: Sequence[Mapping[str, Any]]
) -> Iterable[tuple[float, tuple[str, str], float, float]]:
    """(chi-square, pair, effect, se) of every pair whose joint change the additive model cannot imitate."""
    for pair in itertools.combinations(sorted({knob for steps in trial_steps for knob in steps}), 2):
        column = whiten @ together(pair, trial_steps)
        own = _outside(basis, column)
        size = float(own @ own)
        if size > INDEPENDENT * float(column @ column):
            slope = float(own @ residual) / size
            yield slope**2 * size, pair, slope, size**-0.5
