"""What a closed session passes on, computed from its trials: selection, effects, good configurations, curves.

`finalize` stores all of it before the test set is opened, so it contains validation figures only.
"""

from typing import Any

from ..data.errors import SessionError
from ..memory.records import ConfigurationRecord, CurveRecord, EffectRecord, SessionRecord, TrialRecord
from ..sandbox.effects import coverage, knob_effects
from ..sandbox.joint import evidence
from ..sandbox.regime import regime
from .sync import default_trial
from .workspace import Workspace

KEPT_CONFIGURATIONS = 5


def select(trials: list[TrialRecord]) -> TrialRecord:
    """The finished trial with the best validation NDCG@10; the earliest one on a tie. SessionError if none finished."""
    finished = best_first(trials)
    if not finished:
        raise SessionError("no trial has finished, so there is nothing to select; run_trial with changes={} first")
    return finished[0]


def computed_summary(
    ws: Workspace, session: SessionRecord, trials: list[TrialRecord], selected: TrialRecord
) -> dict[str, Any]:
    """The computed part of the Cognition Summary: selection, knob effects with n and intervals, regime, coverage."""
    space = ws.session_protocol(session).space
    reflections = ws.memory.reflections.all(session.id)
    return {
        "selected": selected.handle,
        "settings": ws.settings_of(session, selected),
        "validation": selected.outcome.metrics if selected.outcome else {},
        "gain": _gain(selected, default_trial(ws, session, trials)),
        "effects": knob_effects(trials, space.default(session.backbone)),
        "regime": regime(session.profile),
        "coverage": coverage(trials, space, session.backbone),
        "trials": len(trials),
        "reflections": {
            check: sum(r.check == check for r in reflections) for check in ("supported", "contradicted", "unsupported")
        },
    }


def good_configurations(
    ws: Workspace, session: SessionRecord, trials: list[TrialRecord]
) -> list[ConfigurationRecord]:
    """The session's `KEPT_CONFIGURATIONS` best configurations, for the portfolios of later sessions.

    They hold what the session chose: a value that its page fixed is no recommendation to a session that may vary it.
    Ensembles are left out: other sessions cannot repeat them.
    """
    default = default_trial(ws, session, trials)
    space = ws.session_protocol(session).space
    return [
        ConfigurationRecord(
            session=session.id,
            trial=trial.handle,
            dataset=session.dataset,
            dataset_id=session.dataset_id,
            backbone=session.backbone,
            config=space.chosen(trial.config),
            config_hash=trial.config_hash,
            ndcg=_ndcg(trial),
            gain=_gain(trial, default),
        )
        for trial in best_first([trial for trial in trials if not trial.uses_models])[:KEPT_CONFIGURATIONS]
    ]


def session_effects(ws: Workspace, session: SessionRecord, trials: list[TrialRecord]) -> list[EffectRecord]:
    """The effect of each knob value over the default (`joint.evidence`), as weighted sums that add up over sessions."""
    default = ws.session_protocol(session).space.default(session.backbone)
    return [
        EffectRecord(
            session=session.id,
            dataset=session.dataset,
            dataset_id=session.dataset_id,
            backbone=session.backbone,
            knob=found.knob,
            value=found.value,
            n=found.n,
            weight=found.se**-2,
            weighted=found.effect * found.se**-2,
        )
        for found in evidence(trials, default)
    ]


def complete_curves(session: SessionRecord, trials: list[TrialRecord]) -> list[CurveRecord]:
    """The learning curves of the trials that trained to their end, one per trained model; none of a replay or of
    students, whose teachers are trials of this session."""
    if session.replay or not session.profile.get("users"):
        return []
    whole = [trial for trial in trials if trial.status == "finished" and trial.ended_after is None]
    complete = [trial for trial in whole if not trial.uses_models]
    first = {trial.train_hash: trial for trial in reversed(complete)}
    return [
        CurveRecord(
            session=session.id,
            trial=trial.handle,
            dataset=session.dataset,
            dataset_id=session.dataset_id,
            backbone=session.backbone,
            users=session.profile["users"],
            config=trial.config,
            epochs=[epoch["epoch"] for epoch in trial.outcome.curve],
            ndcg10=[epoch["ndcg10"] for epoch in trial.outcome.curve],
        )
        for trial in sorted(first.values(), key=lambda trial: trial.number)
        if trial.outcome and trial.outcome.curve
    ]


def best_first(trials: list[TrialRecord]) -> list[TrialRecord]:
    """The finished trials by validation NDCG@10, the best first; the earlier one first on a tie."""
    finished = [trial for trial in trials if trial.status == "finished"]
    return sorted(finished, key=lambda trial: (-_ndcg(trial), trial.number))


def _gain(trial: TrialRecord, default: TrialRecord | None) -> float | None:
    """Relative gain in NDCG@10 over the default configuration; None if the default was not measured."""
    if default is None or _ndcg(default) <= 0:
        return None
    return _ndcg(trial) / _ndcg(default) - 1


def _ndcg(trial: TrialRecord) -> float:
    return trial.outcome.metrics["ndcg@10"] if trial.outcome else 0.0
