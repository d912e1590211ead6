"""Compare the hypothesis of a trial with the paired difference that the trial measured against its base. Pure."""

from typing import Any, Literal

from ..memory.records import Hypothesis, TrialOutcome
from .reflection import named_dimensions
from .statistics import z_score

CLEAR_Z = 1.0  # a difference below one standard error counts as "same"
INTERVAL_Z = 1.96  # of the 95 % interval of the measured difference
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
        "dimension_changed": not dimensions.isdisjoint(named_dimensions(hypothesis.dimension)),
        "predicted": hypothesis.direction,
        "happened": happened,
        "size_predicted": hypothesis.size,
        "size_measured": outcome.base_delta,
        "held": _held(hypothesis, happened, outcome),
    }


def _measured_direction(outcome: TrialOutcome) -> str:
    if outcome.base_delta is None or outcome.base_delta_se is None:
        return "unmeasured"
    z = z_score(outcome.base_delta, outcome.base_delta_se)
    return "same" if abs(z) < CLEAR_Z else "better" if z > 0 else "worse"


def _held(hypothesis: Hypothesis, happened: str, outcome: TrialOutcome) -> Held:
    """Whether the prediction held.

    If a size was predicted and the difference was measured, the answer is yes or no: yes if the sign is the predicted
    one and the predicted size lies within the 95 % interval of the measured difference.
    Otherwise the direction counts:

    yes       it is right
    no        it is wrong
    unclear   the difference is within noise, or nothing was predicted or measured
    """
    if hypothesis.size is not None and outcome.base_delta is not None and outcome.base_delta_se is not None:
        return "yes" if _size_held(hypothesis, outcome.base_delta, outcome.base_delta_se) else "no"
    if happened == "unmeasured" or hypothesis.direction == "unknown":
        return "unclear"
    if happened != hypothesis.direction:
        return "unclear" if happened == "same" else "no"
    return "yes"


def _size_held(hypothesis: Hypothesis, measured: float, se: float) -> bool:
    """Whether the measured difference is the predicted one, within its interval.

    "better" and "worse" give a predicted size its sign; "same" predicts no difference, whatever the size; for "unknown"
    the sign of the size counts.
    """
    size = hypothesis.size or 0.0
    predicted = {"better": abs(size), "worse": -abs(size), "same": 0.0, "unknown": size}[hypothesis.direction]
    right_sign = predicted == 0 or (measured > 0) == (predicted > 0)
    return right_sign and abs(measured - predicted) <= INTERVAL_Z * se
