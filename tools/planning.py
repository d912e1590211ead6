"""What a call of run_trial or sweep would do, and which of its arguments have no effect. Nothing is started."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..memory.records import SessionRecord, TrialRecord
from ..models.config import TrialConfig, train_hash
from ..sandbox.action_space import inert_changes
from ..sandbox.program import Admission, Heuristic, applying_heuristics
from .estimating import estimate_for
from .guidance import budget_of
from .results import TrialObservation, TrialPlan
from .workspace import Workspace

WOULD: Mapping[str, Literal["start", "return", "refuse"]] = {
    "admitted": "start", "duplicate": "return", "refused": "refuse"
}  # fmt: skip
IGNORED_LENGTH = 300  # so that the observation stays short


def ignored_changes(base_handle: str, base: TrialConfig, config: TrialConfig, changes: Mapping[str, Any]) -> str:
    """The changes that have no effect, each with the reason; empty if all have one."""
    inert = inert_changes(config, changes)
    found = [f"{knob} has no effect: {reason}" for knob, reason in inert.items()]
    same = [knob for knob in changes if knob not in inert and getattr(config, knob) == getattr(base, knob)]
    found += [f"{knob}={_shown(getattr(config, knob))} is the value of {base_handle} already" for knob in same]
    return "; ".join(found)[:IGNORED_LENGTH]


def _shown(value: Any) -> str:
    """The value of a knob as a client writes it."""
    return "none" if value == "" else json.dumps(value)


def planned(
    ws: Workspace,
    session: SessionRecord,
    trials: Sequence[TrialRecord],
    configs: Sequence[TrialConfig],
    admission: Admission,
    heuristics: Sequence[Heuristic],
    base: tuple[str, TrialConfig],
    changes: Mapping[str, Any],
) -> TrialObservation:
    """The observation of a trial that was only asked about.

    configs: of a sweep, those of its new settings. heuristics: on the changed knobs.
    """
    config, budget = configs[0], budget_of(session, list(trials))
    matching = applying_heuristics(heuristics, base[1], config)
    estimate = None if admission.kind == "duplicate" else estimate_for(ws, session, config, trials)
    starts = admission.kind == "admitted"
    seconds = estimate.seconds if starts and estimate and estimate.seconds is not None else 0.0
    plan = TrialPlan(
        would=WOULD[admission.kind],
        reason=admission.reason,
        rescores=bool(config.ensemble) or _is_trained(trials, config),
        settings=len(configs) if len(configs) > 1 else None,
        heuristics=[f"{each.rule_id}: {each.condition} ({each.statement})" for each in matching],
        trials_left=budget.trials_max - budget.trials_used - starts,
        train_seconds_left=round(budget.train_seconds_max - budget.train_seconds_used - seconds, 1),
    )
    return TrialObservation(
        session=session.id,
        trial=admission.trial or "",
        status="planned",
        duplicate=admission.kind == "duplicate",
        changes=dict(changes),
        base=base[0],
        estimate=estimate,
        plan=plan,
        budget=budget,
        next=_next(admission, plan),
    )


def with_estimate(
    ws: Workspace,
    session: SessionRecord,
    observed: TrialObservation,
    config: TrialConfig,
    trials: Sequence[TrialRecord],
) -> TrialObservation:
    """The answer of the call that has started a trial: while it runs, with what it will take.

    trials: those of the session before it.
    """
    if observed.status != "running":
        return observed
    return observed.model_copy(update={"estimate": estimate_for(ws, session, config, trials)})


def _is_trained(trials: Sequence[TrialRecord], config: TrialConfig) -> bool:
    """Whether a finished trial has the model, so that only its scoring is new."""
    return any(trial.status == "finished" and trial.train_hash == train_hash(config) for trial in trials)


def _next(admission: Admission, plan: TrialPlan) -> str:
    if admission.kind == "refused":
        return f"Nothing was started. It would be refused: {admission.reason}."
    if admission.kind == "duplicate":
        return f"Nothing was started. {admission.reason}."
    more = " It is expected to use more training seconds than are left." if plan.train_seconds_left < 0 else ""
    return f"Nothing was started or recorded. The same call without dry_run starts the trial.{more}"
