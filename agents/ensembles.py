"""When the engineer uses its best models together, and which of them. Pure functions.

The models are the best of the session and up to two of other sessions on the same data, which the server names
(`StateView.other_members`); those of the other backbone come first, because their errors differ most. First a student
learns from them (`teachers`), as a model of its own; then an ensemble scores the best models, the student among them.

Neither explains anything about a knob, and an ensemble can only be improved on by another one. They are therefore the
last trials of a session: when few are left, when no other move is, or when the session would end by its patience.
"""

import math
from collections.abc import Iterator

from ..memory.records import Hypothesis
from ..models.config import continuation_hash, make_config
from ..models.knobs.trial_names import ENSEMBLE, MAX_MEMBERS, MIN_MEMBERS, TEACHERS, joined
from .base import RunTrial
from .history import History, PastTrial
from .sweeps import is_due, is_scoring

WITHIN = 0.1
"""Members reach at least this share less than the best one: a much weaker model pulls the mean down."""
MAX_OTHERS = 2
"""Members from other sessions, so that the session's own best two models stay in an ensemble of four."""
ENSEMBLE_GAIN = 0.02
"""Expected gain over the best single model, as a share of its NDCG@10."""
TRIALS_AT_END = 2
"""With so many trials left, the ensemble is tried, so that its score priors can be swept in the last one."""
STUDENT_GAIN = 0.02
"""Expected gain of a student over the best single model, as a share of its NDCG@10."""
STUDENT_DROPOUTS = {"dropout": 0.2, "embedding_dropout": 0.3, "attention_dropout": 0.2}
"""At most: soft targets leave less to overfit."""
STUDENT_EPOCHS = 0.5
"""Share of the epochs that the best model has trained: a student learns faster. Its rate decays over them."""


def planned_end(history: History) -> RunTrial | None:
    """The student in the last trial but two; then the ensemble, unless the sweep of a new model comes first."""
    left = history.trials_left
    if left == TRIALS_AT_END + 1:
        return planned_student(history)
    is_time = left == 1 or (0 < left <= TRIALS_AT_END and not is_due(history))
    return planned_ensemble(history) if is_time else None


def planned_student(history: History) -> RunTrial | None:
    """A student of the best models over the best one that was taught by none; None for fewer than two, or if one was
    tried, or if its softmax is not the full one."""
    own = [trial for trial in _best_of_each_model(history) if not trial.uses_models]
    names = best_models(history, MAX_MEMBERS)
    if not own or len(names) < MIN_MEMBERS or history.trials_left <= 0 or _was_tried(history, TEACHERS):
        return None
    settings = history.space.complete(own[0].settings)
    less = {name: most for name, most in STUDENT_DROPOUTS.items() if settings.get(name, 0.0) > most}
    epochs = max(1, math.ceil(STUDENT_EPOCHS * (own[0].best_epoch or settings.get("epochs", 1))))
    changes = {TEACHERS: joined(names), **less, "epochs": epochs, "patience": epochs, "schedule": "cosine"}
    changes = {name: value for name, value in changes.items() if settings.get(name) != value}
    if not history.space.allows(changes, own[0].settings):
        return None
    reason = "a model that learns the predictions of several models can be as good as all of them together"
    size = round(STUDENT_GAIN * (own[0].ndcg or 0.0), 5)
    hypothesis = Hypothesis(dimension="supervision", direction="better", size=size, reason=reason)
    return RunTrial(changes, own[0].trial, hypothesis)


def best_models(history: History, most: int) -> list[str]:
    """The names of the best trained models of the session and of others on the same data, the best first."""
    others = _others(history)
    own = [trial.trial for trial in _best_of_each_model(history)]
    return [*own[: max(1, most - len(others))], *others][:most]


def planned_ensemble(history: History) -> RunTrial | None:
    """The ensemble of the best models over the best trial; None if too few are as good, or if one was tried."""
    if not history.space.offers_ensembles or history.incumbent is None or history.trials_left <= 0:
        return None
    names = best_models(history, MAX_MEMBERS)
    if len(names) < MIN_MEMBERS or _was_tried(history, ENSEMBLE):
        return None
    reason = "the errors of different models partly cancel; scoring them together costs no training"
    size = round(ENSEMBLE_GAIN * (history.incumbent.ndcg or 0.0), 5)
    hypothesis = Hypothesis(dimension="scoring", direction="better", size=size, reason=reason)
    return RunTrial({ENSEMBLE: joined(names)}, history.incumbent.trial, hypothesis)


def _was_tried(history: History, knob: str) -> bool:
    tried = [trial.changes for trial in history.trials] + [refusal.changes for refusal in history.situation.refused]
    return any(knob in changes for changes in tried)


def _others(history: History) -> list[str]:
    """The names of the best members from other sessions that are nearly as good as the best trial of this one.

    None before the session has trained a change of its own: it would measure the other session's model.
    """
    if not any(trial.changes and not is_scoring(trial.changes) for trial in history.finished):
        return []
    best = max((t.ndcg or 0.0 for t in history.finished if not t.is_ensemble), default=0.0)
    backbone = history.situation.brief.backbone
    good = [one for one in history.situation.state.other_members if one.ndcg >= (1 - WITHIN) * best]
    return [one.trial for one in sorted(good, key=lambda one: (one.backbone == backbone, -one.ndcg))][:MAX_OTHERS]


def _best_of_each_model(history: History) -> Iterator[PastTrial]:
    """The best trial of each trained model that is nearly as good as the best one, the best first."""
    ranked = sorted((t for t in history.finished if not t.is_ensemble), key=lambda trial: -(trial.ndcg or 0.0))
    models = set()
    for trial in ranked:
        good = (trial.ndcg or 0.0) >= (1 - WITHIN) * (ranked[0].ndcg or 0.0)
        model = _weights_of(trial, history)
        if good and model not in models:
            models.add(model)
            yield trial


def _weights_of(trial: PastTrial, history: History) -> tuple[str, int | None]:
    """What trials of equal weights share: a longer training with the same best epoch has the weights of the shorter."""
    config = make_config(history.space.backbone, **history.space.complete(trial.settings))
    return continuation_hash(config), trial.best_epoch
