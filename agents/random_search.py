"""Random search, the baseline that other agents must beat with the same budget."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from ..tools.views import KnobValues
from .history import History
from .sampler import DrawingSampler, random_draws


class RandomSearch(DrawingSampler):
    """Configurations with two to six random knobs over the default, each drawn from its whole range.

    Changing few knobs makes it a stronger baseline than drawing all of them: most of the 75 knobs have good defaults.
    """

    method: ClassVar[str] = "drawn at random from the whole action space"

    def draws(self, history: History, generator: np.random.Generator) -> Iterator[KnobValues]:
        """Random configurations."""
        return random_draws(history, generator)
