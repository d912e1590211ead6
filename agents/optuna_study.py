"""The trajectory of a session as an Optuna study, rebuilt in every step, and the settings that it asks for.

The search space is the session's action space: ranges, scales and choices as they are, and levels as ordered indices.
"""

from typing import NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from ..models.knobs.declaration import Value
from ..sandbox.action_space import Knob
from .drawing import bounds, choices_of

optuna.logging.set_verbosity(optuna.logging.ERROR)  # a study per step would report itself at every step


def distribution_of(knob: Knob, max_steps: int | None = None) -> BaseDistribution:
    """The distribution of a knob. Integers of more than `max_steps` values count as real numbers."""
    if choices := choices_of(knob):
        return CategoricalDistribution(choices)
    if knob.levels:
        return IntDistribution(0, len(knob.levels) - 1)
    low, high = bounds(knob)
    log = knob.scale == "log" and low > 0
    if knob.type == "int" and (max_steps is None or high - low < max_steps):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def encoded(knob: Knob, value: Value, distribution: BaseDistribution) -> Value:
    """A knob's value as a parameter of its distribution."""
    if knob.levels:
        return knob.levels.index(value)  # type: ignore[arg-type] # levels are numbers
    return float(value) if isinstance(distribution, FloatDistribution) else value


def decoded(knob: Knob, parameter: Value) -> Value:
    """The knob's value that a parameter stands for; real numbers are rounded to the knob's resolution."""
    if knob.levels:
        return knob.levels[int(parameter)]
    return parameter if choices_of(knob) else knob.rounded(float(parameter))


class Told(NamedTuple):
    """A trial of a study: parameters by name, and its score; or, if it was pruned, (step, value then)."""

    parameters: dict[str, Value]
    score: float
    pruned: tuple[int, float] | None = None


def study_of(
    sampler: BaseSampler,
    told: list[Told],
    distributions: dict[str, BaseDistribution],
    running: list[dict[str, Value]] | None = None,
) -> optuna.Study:
    """A study in memory with finished and pruned trials, and with running ones (parameters by name)."""
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for parameters, score, pruned in told:
        known = {name: distributions[name] for name in parameters}
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                params=parameters,
                distributions=known,
                value=None if pruned else score,
                intermediate_values=dict([pruned]) if pruned else None,
            )
        )
    for parameters in running or []:
        known = {name: distributions[name] for name in parameters}
        study.add_trial(
            optuna.trial.create_trial(state=TrialState.RUNNING, params=parameters, distributions=known)
        )
    return study
