"""The learning curves that a report draws: those of the best models of a session, and of its default."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..memory.records import TrialRecord
from ..tools.cognition import best_first
from . import formats

TOP = 5
SCORED = {"ndcg10": "of the bare model", "judged": "with score priors"}
"""The series of an epoch's record, and which scores each one ranks."""


@dataclass(frozen=True)
class LearningCurve:
    """NDCG@10 after the evaluated epochs of one trained model; `scored` says of which scores."""

    label: str
    epochs: list[int]
    ndcg10: list[float]
    scored: str


def top_curves(
    trials: Sequence[TrialRecord], default: TrialRecord | None, series: Literal["ndcg10", "judged"] = "ndcg10"
) -> list[LearningCurve]:
    """The curves of the `TOP` best trained models, best first, and that of the default.

    Trials that re-score one model share its curve; it is labelled with the best of them. The series "judged" exists
    only in a session that races; a curve without two of its values, or equal to that of the bare model, is left out.
    """
    chosen: dict[str, TrialRecord] = {}
    for trial in best_first(list(trials)):
        if trial.outcome and trial.outcome.curve and len(chosen) < TOP:
            chosen.setdefault(trial.train_hash, trial)
    if default and default.outcome and default.outcome.curve:
        chosen.setdefault(default.train_hash, default)
    shown = [trial for trial in chosen.values() if series == "ndcg10" or _has_judged(trial)]
    return [_curve(trial, default, series) for trial in shown]


def _has_judged(trial: TrialRecord) -> bool:
    """Whether at least two epochs were ranked with score priors, and not as the bare model is."""
    curve = trial.outcome.curve if trial.outcome else []
    judged = [epoch for epoch in curve if epoch.get("judged") is not None]
    return len(judged) > 1 and any(epoch["judged"] != epoch["ndcg10"] for epoch in judged)


def _curve(trial: TrialRecord, default: TrialRecord | None, series: str) -> LearningCurve:
    assert trial.outcome is not None  # finished
    is_default = default is not None and trial.handle == default.handle
    epochs = [epoch for epoch in trial.outcome.curve if epoch.get(series) is not None]
    return LearningCurve(
        label=f"{trial.handle}{', default' if is_default else ''} ({formats.metric(trial.outcome.metrics['ndcg@10'])})",
        epochs=[epoch["epoch"] for epoch in epochs],
        ndcg10=[epoch[series] for epoch in epochs],
        scored=SCORED[series],
    )
