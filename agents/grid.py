"""Grid search over at most six knobs: three levels each, 729 cells.

The six are those with the largest usual effect (docs/knobs.md, `moves.py`): the learning rate and the batch size set
how far few epochs get; width and depth set the capacity; dropout counters the overfitting of short histories; the
temperature of the softmax sets how strongly negatives are pushed. If the temperature is not offered, the number of
negatives takes its place. A protocol that offers at most six knobs, such as the paper's, is gridded over all of them.
"""

import itertools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from ..models.knobs.declaration import Value
from ..tools.views import KnobValues
from .drawing import choices_of
from .history import History
from .moves import rungs
from .sampler import Sampler
from .seeding import num_seeds
from .space import Space

MAX_KNOBS = 6
LEVELS: dict[str, tuple[float, ...]] = {
    "lr": (3e-4, 1e-3, 3e-3),
    "dropout": (0.2, 0.35, 0.5),
    "hidden_dim": (64, 128, 256),
    "num_blocks": (1, 2, 3),
    "temperature": (0.07, 0.3, 1.0),
    "batch_size": (64, 128, 256),
    "num_negatives": (250, 500, 2000),
}
"""The gridded knobs by usual effect, with their levels unless the protocol lists levels; the plain defaults are among
them."""


class GridSearch(Sampler):
    """Runs every cell of the grid once, in a random order that depends on the seed only.

    In a random order, every prefix is an unbiased sample of the grid; in lexicographic order, a session that ends early
    would have varied the last knobs only. The place in the order is the last cell that was tried, so that cells which
    the server refuses are skipped for good.
    """

    method: ClassVar[str] = "the next cell of the grid"

    def candidates(self, history: History, generator: np.random.Generator) -> Iterator[KnobValues]:
        """The cells after the last one that was tried."""
        cells = cells_of(history.space)
        order = np.random.default_rng(self.seed).permutation(len(cells))
        seeded = num_seeds(history, self.seeding)
        own = {history.key_of(trial) for trial in history.trials if trial.number > seeded}
        last = (place for place in reversed(range(len(order))) if own and history.space.key(cells[order[place]]) in own)
        return (cells[cell] for cell in order[next(last, -1) + 1 :])


def cells_of(space: Space) -> list[KnobValues]:
    """All combinations of the levels of the gridded knobs."""
    names = gridded(space)
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(levels(n, space) for n in names))]


def gridded(space: Space) -> list[str]:
    """The knobs of the grid: all that are offered if there are few, else those of `LEVELS`."""
    if len(space.knobs) <= MAX_KNOBS:
        return list(space.knobs)
    return [name for name in LEVELS if name in space.knobs][:MAX_KNOBS]


def levels(name: str, space: Space) -> list[Value]:
    """The levels of a knob: its choices, the levels of the protocol, or three values within its range."""
    knob = space.knobs[name]
    if listed := choices_of(knob) or knob.levels:
        return list(listed)
    ladder = rungs(name, space)
    fitting = [value for value in LEVELS.get(name, ()) if space.offers(name, value)]
    if len(fitting) == len(LEVELS.get(name, ())) > 0:
        return list(fitting)
    middle = (len(ladder) - 1) // 2
    return list(dict.fromkeys([ladder[0], ladder[middle], ladder[-1]]))
