"""When the engineer scores its best models together, and which of them. Pure functions.

The members are the best models of the session and up to two of other sessions on the same data, which the server names
(`StateView.other_members`); those of the other backbone come first, because their errors differ most.

An ensemble costs no training, but it explains nothing about a knob, and only a new ensemble can improve on it. It is
therefore one of the last trials of a session: when few are left, when no other move is, or when the session would end
by its patience.
"""

from collections.abc import Iterator

from ..memory.records import Hypothesis
from ..models.config import continuation_hash, make_config
from ..models.knobs.ensemble import ENSEMBLE, MAX_MEMBERS, MIN_MEMBERS, joined
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


def is_time(history: History) -> bool:
    """Whether few trials are left, and the sweep of a new model does not come first."""
    left = history.trials_left
    return left == 1 or (0 < left <= TRIALS_AT_END and not is_due(history))


def planned_ensemble(history: History) -> RunTrial | None:
    """The ensemble of the best models over the best trial; None if too few are as good, or if one was tried."""
    if not history.space.offers_ensembles or history.incumbent is None or history.trials_left <= 0:
        return None
    tried = [trial.changes for trial in history.trials] + [refusal.changes for refusal in history.situation.refused]
    others = _others(history)
    own = [trial.trial for trial in _best_of_each_model(history)][: MAX_MEMBERS - len(others)]
    names = [*own, *others]
    if not own or len(names) < MIN_MEMBERS or any(ENSEMBLE in changes for changes in tried):
        return None
    reason = "the errors of different models partly cancel; scoring them together costs no training"
    size = round(ENSEMBLE_GAIN * (history.incumbent.ndcg or 0.0), 5)
    hypothesis = Hypothesis(dimension="scoring", direction="better", size=size, reason=reason)
    return RunTrial({ENSEMBLE: joined(names)}, history.incumbent.trial, hypothesis)


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
