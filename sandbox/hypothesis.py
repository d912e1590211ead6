"""Compare the hypothesis of a trial with the paired difference that the trial measured against its base. Pure."""

from typing import Any, Literal

from ..memory.records import Hypothesis, TrialOutcome
from .statistics import z_score

CLEAR_Z = 1.0  # a difference below one standard error counts as "same"
SIZE_FACTOR = 3.0  # a predicted size within this factor of the measured one counts as correct
Held = Literal["yes", "no", "unclear"]


def outcome_of(
    hypothesis: Hypothesis, outcome: TrialOutcome, dimensions: set[str], limit: float | None = None
) -> dict[str, Any]:
    """Prediction and measurement side by side; `dimensions` are the dimensions of the knobs that the trial changed.

    limit: of a stopped trial, the upper bound of the difference to its base; below 0 the change made it worse.
    """
    happened = "worse" if limit is not None and limit < 0 else _measured_direction(outcome)
    return {
        "dimension": hypothesis.dimension,
        "dimension_changed": hypothesis.dimension in dimensions,
        "predicted": hypothesis.direction,
        "happened": happened,
        "size_predicted": hypothesis.size,
        "size_measured": outcome.base_delta,
        "held": _held(hypothesis, happened, outcome.base_delta),
    }


def _measured_direction(outcome: TrialOutcome) -> str:
    if outcome.base_delta is None or outcome.base_delta_se is None:
        return "unmeasured"
    z = z_score(outcome.base_delta, outcome.base_delta_se)
    return "same" if abs(z) < CLEAR_Z else "better" if z > 0 else "worse"


def _held(hypothesis: Hypothesis, happened: str, measured: float | None) -> Held:
    """Whether the prediction held.

    yes       the direction is right, and the size, if one was predicted, is right within a factor of three
    no        the direction is wrong
    unclear   the difference is within noise, the size is off, or nothing was predicted or measured
    Only the absolute value of a predicted size counts; its sign is ignored.
    """
    if happened == "unmeasured" or hypothesis.direction == "unknown":
        return "unclear"
    if happened != hypothesis.direction:
        return "unclear" if happened == "same" else "no"
    if hypothesis.size and measured and happened != "same":
        ratio = abs(measured / hypothesis.size)
        return "yes" if 1 / SIZE_FACTOR <= ratio <= SIZE_FACTOR else "unclear"
    return "yes"
