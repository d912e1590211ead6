"""The learning curves that a report draws: those of the best models of a session, and of its default."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..memory.records import TrialRecord
from ..tools.cognition import best_first
from . import formats

TOP = 5
BARE = "of the bare model"


@dataclass(frozen=True)
class LearningCurve:
    """NDCG@10 after each evaluated epoch of one trained model; `scored` says of which scores."""

    label: str
    epochs: list[int]
    ndcg10: list[float]
    scored: str


def top_curves(trials: Sequence[TrialRecord], default: TrialRecord | None) -> list[LearningCurve]:
    """The curves of the `TOP` best trained models, best first, and that of the default.

    Trials that re-score one model share its curve; it is labelled with the best of them.
    """
    chosen: dict[str, TrialRecord] = {}
    for trial in best_first(list(trials)):
        if trial.outcome and trial.outcome.curve and len(chosen) < TOP:
            chosen.setdefault(trial.train_hash, trial)
    if default and default.outcome and default.outcome.curve:
        chosen.setdefault(default.train_hash, default)
    return [_curve(trial, default) for trial in chosen.values()]


def _curve(trial: TrialRecord, default: TrialRecord | None) -> LearningCurve:
    assert trial.outcome is not None  # finished
    is_default = default is not None and trial.handle == default.handle
    return LearningCurve(
        label=f"{trial.handle}{', default' if is_default else ''} ({formats.metric(trial.outcome.metrics['ndcg@10'])})",
        epochs=[epoch["epoch"] for epoch in trial.outcome.curve],
        ndcg10=[epoch["ndcg10"] for epoch in trial.outcome.curve],
        scored=BARE,
    )
