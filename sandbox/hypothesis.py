"""Where a hypothesis stood: what was predicted of a trial against what it measured over its base. Pure."""

from typing import Any, Literal

from ..memory.records import Hypothesis, TrialOutcome
from .statistics import z_score

CLEAR_Z = 1.0  # closer than one standard error, nothing has happened
FACTOR = 3.0  # a predicted size is right within this factor
Held = Literal["yes", "no", "unclear"]


def outcome_of(hypothesis: Hypothesis, outcome: TrialOutcome, dimensions: set[str]) -> dict[str, Any]:
    """Prediction and measurement side by side; `dimensions` are those of the knobs that the trial changed."""
    happened = _happened(outcome)
    return {
        "dimension": hypothesis.dimension,
        "dimension_changed": hypothesis.dimension in dimensions,
        "predicted": hypothesis.direction,
        "happened": happened,
        "size_predicted": hypothesis.size,
        "size_measured": outcome.base_delta,
        "held": _held(hypothesis, happened, outcome.base_delta),
    }


def _happened(outcome: TrialOutcome) -> str:
    if outcome.base_delta is None or outcome.base_delta_se is None:
        return "unmeasured"
    z = z_score(outcome.base_delta, outcome.base_delta_se)
    return "same" if abs(z) < CLEAR_Z else "better" if z > 0 else "worse"


def _held(hypothesis: Hypothesis, happened: str, measured: float | None) -> Held:
    """yes: the direction, and the size within a factor of three where one was named; unclear: noise, or no prediction.

    A size without its sign is read in the predicted direction.
    """
    if happened == "unmeasured" or hypothesis.direction == "unknown":
        return "unclear"
    if happened != hypothesis.direction:
        return "unclear" if happened == "same" else "no"
    if hypothesis.size and measured and happened != "same":
        ratio = abs(measured / hypothesis.size)
        return "yes" if 1 / FACTOR <= ratio <= FACTOR else "unclear"
    return "yes"
