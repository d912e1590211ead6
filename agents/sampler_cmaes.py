"""CMA-ES (Hansen, arXiv 1604.00772) over the numeric knobs, with TPE for the choices.

CMA-ES handles numbers only. As in Optuna's CmaEsSampler, choices are drawn by an independent sampler; here Optuna's
TPE, because the other one that it ships is random. The optimiser is that sampler's backend, the package cmaes, used
directly: a study would hide the generations, which are rebuilt from the trajectory here. Every population of trials,
seeded ones included, is one generation, told in the order of the trials; the optimiser moves on from what was run, not
from what it asked for. Every numeric knob has one coordinate from 0 to 1 on its own scale. The first mean is the
default configuration if the seeding runs it, and the centre of all ranges otherwise, Optuna's default; the step size is
a sixth of the range, as in Optuna. A knob without effect is told with its default, and a trial that was stopped early
with its upper bound. A generation consists of trials that have ended, so that running ones are not told; draws of one
generation differ by themselves.
"""

import math
from collections.abc import Iterable, Iterator
from typing import ClassVar

import cmaes
import numpy as np
import numpy.typing as npt
import optuna

from ..models.knobs.declaration import Value
from ..sandbox.action_space import Knob
from ..tools.views import KnobValues
from .drawing import bounds, choices_of
from .history import History
from .optuna_study import Told, distribution_of, study_of
from .sampler import DrawingSampler, observations

SIGMA = 1 / 6
MAX_DRAWS = 60
"""Draws per step: of random configurations of all knobs, the engine accepts about one in six."""

Floats = npt.NDArray[np.float64]


class CovarianceAdaptation(DrawingSampler):
    """CMA-ES for numbers, TPE for choices."""

    method: ClassVar[str] = "drawn by CMA-ES, choices by Optuna's TPE"

    def draws(self, history: History, generator: np.random.Generator) -> Iterator[KnobValues]:
        """Configurations from the distribution of the current generation."""
        space = history.space
        numeric = [knob for knob in space.knobs.values() if not choices_of(knob) and _varies(knob)]
        told = [(space.complete(observed.settings), observed.score) for observed in observations(history)]
        seed = int(generator.integers(2**31))
        study = _study_of_choices([knob for knob in space.knobs.values() if choices_of(knob)], told, seed)
        optimizer = self._optimizer(numeric, space.defaults, told, seed) if len(numeric) > 1 else None
        for _ in range(MAX_DRAWS):
            settings: KnobValues = study.ask(_distributions(space.knobs.values())).params
            if optimizer is not None:
                settings |= {k.name: from_unit(k, x) for k, x in zip(numeric, optimizer.ask(), strict=True)}
            yield settings

    def _optimizer(
        self, numeric: list[Knob], defaults: KnobValues, told: list[tuple[KnobValues, float]], seed: int
    ) -> cmaes.CMA:
        """The optimiser after all complete generations."""
        ends = np.tile([0.0, 1.0], (len(numeric), 1))
        mean = np.full(len(numeric), 0.5) if self.seeding == "none" else _point(numeric, defaults)
        optimizer = cmaes.CMA(mean=mean, sigma=SIGMA, bounds=ends, seed=seed)
        size = optimizer.population_size
        for start in range(0, len(told) - size + 1, size):
            optimizer.tell([(_point(numeric, values), -score) for values, score in told[start : start + size]])
        return optimizer


def _study_of_choices(knobs: list[Knob], told: list[tuple[KnobValues, float]], seed: int) -> optuna.Study:
    sampler = optuna.samplers.TPESampler(seed=seed)
    chosen = [Told({knob.name: values[knob.name] for knob in knobs}, score) for values, score in told]
    return study_of(sampler, chosen, _distributions(knobs))


def _distributions(knobs: Iterable[Knob]) -> dict[str, optuna.distributions.BaseDistribution]:
    return {knob.name: distribution_of(knob) for knob in knobs if choices_of(knob)}


def _point(knobs: list[Knob], values: KnobValues) -> Floats:
    return np.array([to_unit(knob, values[knob.name]) for knob in knobs])


def _varies(knob: Knob) -> bool:
    low, high = bounds(knob)
    return low < high


def to_unit(knob: Knob, value: Value) -> float:
    """The position of a number in its range, in [0, 1]: on its scale, or by the index of its level."""
    number = float(value)
    low, high = bounds(knob)
    if knob.levels:
        return knob.levels.index(number) / (len(knob.levels) - 1)
    if knob.scale == "log" and low > 0:
        return math.log(number / low) / math.log(high / low)
    return (number - low) / (high - low)


def from_unit(knob: Knob, position: float) -> int | float:
    """The number at a position in [0, 1]."""
    low, high = bounds(knob)
    if knob.levels:
        return knob.levels[round(float(position) * (len(knob.levels) - 1))]
    if knob.scale == "log" and low > 0:
        return knob.rounded(low * (high / low) ** float(position))
    return knob.rounded(low + (high - low) * float(position))
