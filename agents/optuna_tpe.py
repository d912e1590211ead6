"""TPE, the tree-structured Parzen estimator of Optuna (Bergstra et al. 2011; Watanabe, arXiv 2304.11127).

Multivariate, because Optuna's documentation reports it to outperform independent sampling, and with `group=True`, its
setting for conditional spaces: knobs without effect in a configuration are neither asked for nor told, and each set of
knobs that always occur together has its own joint density. Everything else is Optuna's default, including ten random
trials before the first model; seeded trials count towards the ten. A trial that was stopped early is a pruned trial: it
ranks behind all that have a value. While trials run, its constant liar counts them among the bad ones, which keeps
proposals away from them.
"""

import warnings
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ..models.config import KNOBS
from ..models.knobs.declaration import Value
from ..sandbox.action_space import inert_changes
from ..tools.views import KnobValues
from .history import History
from .optuna_study import Told, decoded, distribution_of, encoded, study_of
from .sampler import DrawingSampler, observations, repaired
from .space import Space

REDRAWS = 3
"""Rejected draws per step. After them, knobs of a refused combination are put back to their defaults (`repaired`): of
random configurations of all knobs the engine accepts one in six, and each draw estimates all densities anew."""
MAX_DRAWS = 10


class TPE(DrawingSampler):
    """Optuna's multivariate TPE, defined by run."""

    method: ClassVar[str] = "drawn by Optuna's TPE"

    def draws(self, history: History, generator: np.random.Generator) -> Iterator[KnobValues]:
        """Configurations by expected improvement. A rejected one stays running in the study, which repels the next."""
        running = [trial.settings for trial in history.trials if trial.status == "running"]
        with warnings.catch_warnings():  # of the group and the liar
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            seed = int(generator.integers(2**31))
            sampler = optuna.samplers.TPESampler(seed=seed, group=True, constant_liar=bool(running))
        space = history.space
        distributions = {name: distribution_of(knob) for name, knob in space.knobs.items()}
        told = [Told(_acting(o.settings, space), o.score, o.pruned) for o in observations(history)]
        study = study_of(sampler, told, distributions, [_acting(settings, space) for settings in running])
        for attempt in range(MAX_DRAWS):
            settings = _asked(study.ask(), space)
            yield settings if attempt < REDRAWS else repaired(settings, space, generator)


def _acting(settings: KnobValues, space: Space) -> dict[str, Value]:
    """The parameters of a trial: all knobs that have an effect in its configuration."""
    values, config = space.complete(settings), space.config(settings)
    inert = inert_changes(config, values) if config else {}
    return {
        name: encoded(knob, values[name], distribution_of(knob))
        for name, knob in space.knobs.items()
        if name not in inert
    }


def _asked(trial: optuna.Trial, space: Space) -> KnobValues:
    """Ask for the knobs that always have an effect, then for those that have one with the values so far.

    Where a conditional knob depends on another, the other one is declared first. Where the engine refuses the
    combination, the rest is left out.
    """
    settings: KnobValues = {}
    for name, knob in space.knobs.items():
        if KNOBS[name].inert is None:
            settings[name] = decoded(knob, _suggested(trial, name, space))
    for name, knob in space.knobs.items():
        if KNOBS[name].inert is None:
            continue
        config = space.config(settings)
        if config is None:
            return settings
        if not inert_changes(config, {name: None}):
            settings[name] = decoded(knob, _suggested(trial, name, space))
    return settings


def _suggested(trial: optuna.Trial, name: str, space: Space) -> Value:
    match distribution_of(space.knobs[name]):
        case CategoricalDistribution(choices=choices):
            value: Any = trial.suggest_categorical(name, choices)
        case IntDistribution(low=low, high=high, log=log):
            value = trial.suggest_int(name, low, high, log=log)
        case FloatDistribution(low=low, high=high, log=log):
            value = trial.suggest_float(name, low, high, log=log)
    return cast(Value, value)
