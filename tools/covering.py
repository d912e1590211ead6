"""What the evidence of a discard heuristic covers: which sessions it may refuse trials in, and over which bases. Pure.

A loss that was measured once, on one dataset and among the few settings that a session offered, is advice. It refuses
trials of other datasets only if two datasets agree or the loss is large, only over bases that the sessions of its
evidence could have had, and only values between those that were tried.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.config import SCORING_KNOBS
from ..models.knobs.declaration import Value
from ..sandbox.conditions import Condition

MIN_DATASETS = 2
"""So many datasets that agree make a heuristic refuse trials on further ones."""
LARGE_LOSS, CLEAR_Z = 0.1, 2.0
"""A smaller number of datasets suffices for a loss of this share of NDCG@10, as many standard errors below zero."""

Offered = frozenset[str] | None
"""The knobs that a session could vary; None where it is not known, or where it could vary all of them."""


@dataclass(frozen=True)
class Evidence:
    """Where a discard heuristic was learnt.

    own: on the data of the present session, or stated by a person. datasets: how many datasets support it. offered: of
    each supporting session. tried: the values of the knob that were measured over them, with their effects on NDCG@10,
    (mean, standard error) relative to the default.
    """

    own: bool
    datasets: int
    offered: Sequence[Offered]
    tried: Mapping[Value, tuple[float, float]]


def may_refuse(condition: Condition, evidence: Evidence) -> bool:
    """Whether the evidence suffices for refusing any trial of the session; otherwise the rule is advice."""
    return evidence.own or evidence.datasets >= MIN_DATASETS or _is_large(condition, evidence.tried)


def covers(
    condition: Condition, evidence: Evidence, base: Mapping[str, Any], default: Mapping[str, Any], value: Value
) -> bool:
    """Whether the evidence covers a trial over `base` that gives the condition's knob this value.

    base, default: all settings of the two configurations.
    """
    if evidence.own:
        return True
    company = {name for name, found in base.items() if found != default[name]} - set(SCORING_KNOBS) - {condition.knob}
    known = any(offered is None or company <= offered for offered in evidence.offered)
    return known and _was_tried(condition, evidence.tried, value)


def is_cheap(changes: Collection[str]) -> bool:
    """Whether a trial of these changes re-scores a trained model: seconds, so that no heuristic needs to save them."""
    return all(name in SCORING_KNOBS for name in changes)


def _is_large(condition: Condition, tried: Mapping[Value, tuple[float, float]]) -> bool:
    """Whether the best value that matches the condition is clearly and by far worse than the best one that does not."""
    inside = [effect for value, effect in tried.items() if condition.matches({condition.knob: value})]
    outside = [effect for value, effect in tried.items() if not condition.matches({condition.knob: value})]
    if not inside or not outside:
        return False
    (mean, error), (other, other_error) = max(inside), max(outside)
    loss = other - mean
    return loss >= LARGE_LOSS * (1 + other) and loss >= CLEAR_Z * math.hypot(error, other_error)


def _was_tried(condition: Condition, tried: Mapping[Value, tuple[float, float]], value: Value) -> bool:
    """Whether a value that matches the condition was tried; of numbers, one on either side of it is as good."""
    inside = [found for found in tried if condition.matches({condition.knob: found})]
    if isinstance(value, bool | str):
        return value in inside
    numbers = [float(found) for found in inside if not isinstance(found, bool | str)]
    return bool(numbers) and min(numbers) <= value <= max(numbers)
