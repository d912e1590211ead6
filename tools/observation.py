"""Turn the record of a trial into the observation that an agent receives: under 2 KB, measured by the server."""

from typing import Any

from ..memory.figures import mask_unverified, one_digit
from ..memory.records import Hypothesis, SessionRecord, TrialOutcome, TrialRecord
from ..sandbox.effects import base_config, changed_knobs
from ..sandbox.hypothesis import outcome_of
from ..sandbox.rule_evidence import bound_delta
from ..sandbox.statistics import z_score
from ..sandbox.sweeping import sweep_table
from .guidance import budget_of, next_step
from .progress import progress_now
from .results import HypothesisOutcome, SweptSettings, TrialObservation
from .stopping import stopped_trial
from .workspace import Workspace

SLOPE_EPOCHS = 5
TABLE_BYTES = 1000  # of the table of a sweep, so that the observation stays short


def observe(ws: Workspace, session: SessionRecord, handle: str, *, duplicate_reason: str = "") -> TrialObservation:
    """The observation of one trial, from memory.db and the trial's directory.

    `duplicate_reason`: set if the agent requested a duplicate of this trial.
    """
    trials = ws.memory.trials.all(session.id)
    record = ws.memory.trials.get(session.id, handle)
    incumbent = ws.memory.trials.incumbent(session.id)
    observation = TrialObservation(
        session=session.id,
        trial=record.handle,
        status=record.status,
        duplicate=bool(duplicate_reason),
        changes=record.changes,
        base=record.base,
        incumbent=incumbent.handle if incumbent else None,
        budget=budget_of(session, trials),
        next=f"{duplicate_reason} {next_step(ws, session, trials)}".strip(),
    )
    if record.outcome is None:
        progress = progress_now(ws, session, record, incumbent, trials)
        return observation.model_copy(update={"progress": progress.shown()})
    hypothesis = _hypothesis(ws, session, record, trials)
    measured = _measured(record.outcome) | {"hypothesis": hypothesis, "sweep": _swept(record)}
    measured |= {"stopped": stopped_trial(record, trials)}
    return observation.model_copy(update=measured)


def _measured(outcome: TrialOutcome) -> dict[str, Any]:
    return {
        "metrics": outcome.metrics,  # figures are not rounded here, so that they agree with the report
        "metrics_se": {name: float(f"{se:.4g}") for name, se in outcome.details.get("metrics_se", {}).items()},
        "ndcg10_se": outcome.ndcg_se,
        "delta": _difference(outcome.delta, outcome.delta_se),
        "base_delta": _difference(outcome.base_delta, outcome.base_delta_se),
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "machine_fault": bool(outcome.details.get("machine_fault")),
        "lost": bool(outcome.details.get("lost")),
        "curve": summarise_curve(outcome),
        "train_ndcg10": outcome.details.get("train_ndcg10"),
        "parameters": outcome.parameters,
        "seconds": round(outcome.wall_seconds, 1),
        "train_seconds": round(outcome.train_seconds, 1),
        "rescored": bool(outcome.details.get("rescored")),
        "reused_from": outcome.details.get("reused_from"),
    }


def _swept(trial: TrialRecord) -> SweptSettings | None:
    rows = trial.outcome.details.get("sweep") if trial.outcome else None
    if trial.sweep is None or rows is None:
        return None
    table = sweep_table(trial.sweep.settings, rows, TABLE_BYTES)
    return SweptSettings(settings=len(rows), table=table, left_out=trial.sweep.left_out)


def _hypothesis(
    ws: Workspace, session: SessionRecord, trial: TrialRecord, trials: list[TrialRecord]
) -> HypothesisOutcome | None:
    if trial.hypothesis is None or trial.outcome is None:
        return None
    space = ws.session_protocol(session).space
    changed = changed_knobs(trial, base_config(trial, trials, space.default(session.backbone)))
    dimensions = {space.dimension(knob) for knob in changed}
    limit = bound_delta(trial, trials)
    found = outcome_of(trial.hypothesis, trial.outcome, dimensions, limit)
    return HypothesisOutcome(**found | _claims(trial.hypothesis))


def _claims(hypothesis: Hypothesis) -> dict[str, Any]:
    shown = without_figures(hypothesis)
    return {"dimension": shown.dimension, "size_predicted": shown.size}


def without_figures(hypothesis: Hypothesis) -> Hypothesis:
    """The hypothesis as it is returned: its dimension without figures, and its size to one significant digit."""
    shown = {"dimension": mask_unverified(hypothesis.dimension, ()), "size": one_digit(hypothesis.size)}
    return hypothesis.model_copy(update=shown)


def _difference(delta: float | None, se: float | None) -> dict[str, float] | None:
    if delta is None or se is None:
        return None
    return {"delta": delta, "se": se, "z": z_score(delta, se)}


def summarise_curve(outcome: TrialOutcome) -> dict[str, Any]:
    """The learning curve in a few numbers; empty if the trial has none."""
    if not outcome.curve:
        return {}
    first, last = outcome.curve[0], outcome.curve[-1]
    best_epoch = outcome.details.get("best_epoch", last["epoch"])
    tail = [epoch for epoch in outcome.curve if epoch["epoch"] > last["epoch"] - SLOPE_EPOCHS]
    return {
        "epochs": last["epoch"],
        "best_epoch": best_epoch,
        "still_improving": best_epoch == last["epoch"],
        "loss_first": round(first["loss"], 4),
        "loss_last": round(last["loss"], 4),
        "loss_slope": _slope(tail),
        "gap": _gap(outcome),
        **({"ended_on_request": True} if outcome.details.get("ended_after") else {}),
    }


def _slope(tail: list[dict[str, Any]]) -> float:
    """Mean relative change of the loss per epoch: -0.02 means that it still falls by 2 % per epoch."""
    first, last = tail[0], tail[-1]
    if len(tail) < 2 or first["loss"] <= 0:
        return 0.0
    slope: float = (last["loss"] / first["loss"] - 1) / (last["epoch"] - first["epoch"])
    return round(slope, 4)


def _gap(outcome: TrialOutcome) -> float | None:
    """Train minus validation NDCG@10 of the model without score priors: how strongly it overfits its training users."""
    train, model = outcome.details.get("train_ndcg10"), outcome.details.get("model_ndcg10")
    return None if train is None or model is None else round(train - model, 4)
