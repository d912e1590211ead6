"""Bayesian optimisation with a Gaussian process: Optuna's GPSampler (Matern 5/2 with one length scale per knob, logEI).

Its model needs the same parameters in every trial (conditional ones would be drawn at random), so that all knobs are
always parameters; one without effect is told with its default, and a proposal for it is ignored. Integers with more
than sixteen values are modelled as real numbers and rounded: the sampler's search over integer steps takes minutes in
75 dimensions, and its rule for few steps (exhaustive search) ends at sixteen as well. A running trial is told with the
mean score of the finished ones (`sampler.lies`). Optuna's GPSampler ignores pruned trials, so that a trial that was
stopped early is told with its upper bound as its value. Everything else is Optuna's default.
"""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import optuna

from ..models.knobs.declaration import Value
from ..tools.views import KnobValues
from .history import History
from .optuna_study import Told, decoded, distribution_of, encoded, study_of
from .sampler import DrawingSampler, lies, observations, repaired
from .space import Space

MAX_STEPS = 16
MAX_DRAWS = 3
"""Draws per step; each costs an optimisation of the acquisition function, and most are near the first."""
STARTUP_TRIALS = 10
"""Optuna's default: random configurations until so many trials have ended."""


class GaussianProcess(DrawingSampler):
    """Optuna's GPSampler over the whole action space."""

    method: ClassVar[str] = "the largest expected improvement under Optuna's Gaussian process"

    def draws(self, history: History, generator: np.random.Generator) -> Iterator[KnobValues]:
        """The optimum of the acquisition function; where the engine refuses it, the nearest accepted configuration."""
        space = history.space
        seed = int(generator.integers(2**31))
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False)
        distributions = {name: distribution_of(knob, MAX_STEPS) for name, knob in space.knobs.items()}
        known = [*observations(history), *lies(history)]
        told = [Told(_complete(one.settings, space), one.score) for one in known]
        study = study_of(sampler, told, distributions)
        for _ in range(MAX_DRAWS):
            asked = study.ask(distributions).params
            yield repaired({name: decoded(space.knobs[name], value) for name, value in asked.items()}, space, generator)


def _complete(settings: KnobValues, space: Space) -> dict[str, Value]:
    values = space.complete(settings)
    return {name: encoded(knob, values[name], distribution_of(knob, MAX_STEPS)) for name, knob in space.knobs.items()}
