"""Trials that were ended on request before their training was over: values like any other, and not the last word. Pure.

Such a trial is judged with the weights that it had. Its configuration may be run again: the new trial continues the
training, and from then on the earlier one answers no request.
"""

from collections.abc import Sequence

from ..memory.records import TrialRecord
from ..models.config import TrialConfig, train_hash
from .action_space import effective


def has_complete_model(trials: Sequence[TrialRecord], config: TrialConfig) -> bool:
    """Whether a trial has trained the model of `config` to its end."""
    return any(trial.ended_after is None for trial in _finished(trials, config))


def trains_on(trials: Sequence[TrialRecord], config: TrialConfig) -> bool:
    """Whether running `config` continues the training of a trial that was ended early, instead of re-scoring its model.

    That is so for the configuration of that trial itself. Another one, with other scoring knobs, scores what is there.
    """
    if has_complete_model(trials, config):
        return False
    settings = effective(config)
    return any(not _is_rescored(t) and effective(t.configuration) == settings for t in _finished(trials, config))


def may_run_again(trial: TrialRecord, trials: Sequence[TrialRecord], config: TrialConfig) -> bool:
    """Whether `config`, which `trial` has measured, has another value now: that of a model which has trained longer."""
    return trial.ended_after is not None and (has_complete_model(trials, config) or trains_on(trials, config))


def _finished(trials: Sequence[TrialRecord], config: TrialConfig) -> list[TrialRecord]:
    wanted = train_hash(config)
    return [trial for trial in trials if trial.status == "finished" and trial.train_hash == wanted]


def _is_rescored(trial: TrialRecord) -> bool:
    return bool(trial.outcome and trial.outcome.details.get("rescored"))
