"""The outcome of a trial that racing has stopped: bounds of the NDCG@10 that it would have reached, and the cause."""

from collections.abc import Sequence

from ..data.errors import TrialError
from ..memory.records import TrialOutcome, TrialRecord
from ..models.config import TrialConfig, has_priors
from ..sandbox.costs import saved_seconds
from ..sandbox.rule_evidence import bound_delta, bound_z
from ..training.racing import StopCause
from ..training.spec import TrialResult
from .results import StoppedTrial

KEPT_DETAILS = {"model_ndcg10", "best_epoch", "device", "engine"}


def stopped_outcome(
    record: TrialRecord, result: TrialResult, trials: Sequence[TrialRecord], wall_seconds: float
) -> TrialOutcome:
    """The outcome of `record` from a result with status "stopped"; it has no metrics. `trials`: those of its session.

    Raises TrialError if the result gives no cause.
    """
    cause = result.stopped
    if cause is None:
        raise TrialError(f"{record.handle} was stopped without a cause; run the same trial again")
    curve = [epoch.model_dump() for epoch in result.curve]
    return TrialOutcome(
        status="stopped",
        verdict="discard",
        reason=cause.sentence,
        incumbent_before=cause.incumbent,
        curve=curve,
        details={
            **result.model_dump(include=KEPT_DETAILS),
            "stopped": cause.model_dump(),
            **bounds_of(cause, has_priors(record.configuration)),
            "saved_seconds": saved_seconds(TrialConfig(**record.config), curve, trials),
        },
        parameters=result.parameters,
        train_seconds=result.train_seconds + result.evaluate_seconds,
        wall_seconds=wall_seconds,
    )


def stopped_trial(trial: TrialRecord, trials: Sequence[TrialRecord]) -> StoppedTrial | None:
    """What is known of a stopped trial, against its base among `trials`; None for any other trial."""
    if trial.status != "stopped" or trial.outcome is None:
        return None
    details = trial.outcome.details
    return StoppedTrial(
        epoch=details["stopped"]["epoch"],
        epochs=trial.config["epochs"],
        reached=details["stopped"]["ndcg10"],
        at_most=trial.bound,
        base_delta_at_most=bound_delta(trial, trials),
        base_z_at_most=bound_z(trial, trials),
        saved_seconds=round(details["saved_seconds"], 1),
    )


def bounds_of(cause: StopCause, scored: bool) -> dict[str, float | None]:
    """`floor` and `bound` of the NDCG@10 that is judged, and `bound_se`, the error of a comparison with the bound.

    The weights of the best epoch of the bare model are kept, so that the trial ends no lower than it stood. With score
    priors (`scored`), better weights may be judged lower, by less than a standard error in the recorded trials.
    """
    error = cause.se or None
    return {"floor": max(0.0, cause.ndcg10 - cause.se * scored), "bound": cause.bound, "bound_se": error}
