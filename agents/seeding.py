"""The first trials of a sampler: nothing, the default, the engineer's opening moves, or the portfolio of memory.

Much of what an informed agent gains in its first trials is a good start. A sampler that is given the same start shows
what remains. Seeded trials are ordinary trials of the session, and the sampler sees them as observations.
"""

from collections.abc import Iterator
from typing import Literal

from ..tools.views import KnobValues, PriorConfiguration
from .history import History
from .moves import openings

Seeding = Literal["none", "default", "moves", "memory"]
SEEDINGS: tuple[Seeding, ...] = ("none", "default", "moves", "memory")

NUM_MOVES = 7
"""Opening moves of the seeding `moves`. With the default they make eight trials, the number after which
the engineer's own surrogate chooses for the first time (`engineer.SURROGATE_AFTER`): up to there it follows its
list."""

Seed = tuple[KnobValues, str]
"""Settings over the default, and the reason."""


def seeds(history: History, seeding: Seeding) -> Iterator[Seed]:
    """The seeds that remain. Their place in the list follows from the number of trials, so no state is needed.

    A seed that is refused is left out. Later seeds then move up, and one that a trial has already contained is not
    repeated over another incumbent.
    """
    for changes, over, reason in _listed(history, seeding)[history.trials_used :]:
        contained = any(changes.items() <= trial.settings.items() for trial in history.trials)
        if not (changes and contained):
            yield over | changes, reason


def num_seeds(history: History, seeding: Seeding) -> int:
    """The number of trials that the seeding asks for."""
    return len(_listed(history, seeding))


def _listed(history: History, seeding: Seeding) -> list[tuple[KnobValues, KnobValues, str]]:
    """All seeds in order: changes, the settings that they are made over, reason."""
    if seeding == "none":
        return []
    default: tuple[KnobValues, KnobValues, str] = ({}, {}, "the plain default")
    if seeding == "moves":
        incumbent = history.settings("incumbent")
        moves = sorted(openings(history.space), key=lambda move: -move.gain)[:NUM_MOVES]
        return [default, *((move.changes, incumbent, move.reason) for move in moves)]
    if seeding == "memory":
        return [default, *((settings, {}, reason) for settings, reason in _portfolio(history))]
    return [default]


def _portfolio(history: History) -> Iterator[Seed]:
    """The configurations of the session's prior, each with the settings that this session offers."""
    own = history.situation.state.session
    for entry in history.situation.brief.prior:
        if isinstance(entry, PriorConfiguration) and entry.session != own:
            offered = {name: value for name, value in entry.config.items() if history.space.offers(name, value)}
            yield offered, f"a configuration that did well on {entry.dataset}"
