"""Coordinate descent: one knob at a time, as a careful person without a surrogate model would tune."""

import itertools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from ..models.knobs.declaration import Value
from ..tools.views import KnobValues
from .drawing import choices_of
from .history import History, PastTrial
from .moves import openings, rungs
from .sampler import Sampler
from .space import Space

FINEST = 2
"""How often the steps of the ladders are halved when no knob improves any more."""


class Coordinate(Sampler):
    """Tries the neighbours of one knob after another over the incumbent, and stays with what the session keeps.

    Knobs come in the order of their usual effect (the opening moves), then in the order of the action space. After a
    knob has improved, the next one follows; the cycle begins again behind the last one. When all neighbours of the
    incumbent are tried, the steps are halved.
    """

    method: ClassVar[str] = "one step of one knob over the incumbent"

    def candidates(self, history: History, generator: np.random.Generator) -> Iterator[KnobValues]:
        """The neighbours of the incumbent, coarse steps first, beginning where the last trial stopped."""
        names = by_usual_effect(history.space)
        start = _place(names, history)
        incumbent = history.settings("incumbent")
        for fineness, name in itertools.product(range(FINEST + 1), names[start:] + names[:start]):
            for value in neighbours(name, history.current[name], fineness, history.space):
                yield incumbent | {name: value}


def by_usual_effect(space: Space) -> list[str]:
    """The offered knobs: those of the opening moves by their usual gain, then all others in their order."""
    moves = sorted(openings(space), key=lambda move: -move.gain)
    known = [name for move in moves for name in move.changes]
    return list(dict.fromkeys([*known, *space.knobs]))


def neighbours(name: str, value: Value, fineness: int, space: Space) -> list[Value]:
    """The values next to `value`, upwards first: on the ladder with its steps halved `fineness` times, or all
    choices."""
    knob = space.knobs[name]
    if choices := choices_of(knob):
        return [choice for choice in choices if choice != value]
    assert not isinstance(value, str)  # a knob without choices is a number
    ladder = sorted(knob.levels) if knob.levels else rungs(name, space)
    for _ in range(0 if knob.levels else fineness):
        ladder = sorted({*ladder, *(_middle(name, low, high, space) for low, high in itertools.pairwise(ladder))})
    above = [rung for rung in ladder if rung > value]
    below = [rung for rung in ladder if rung < value]
    return [*above[:1], *below[-1:]]


def _middle(name: str, low: float, high: float, space: Space) -> int | float:
    """The value halfway between two rungs, on the knob's scale."""
    knob = space.knobs[name]
    return knob.rounded((low * high) ** 0.5 if knob.scale == "log" and low > 0 else (low + high) / 2)


def _place(names: list[str], history: History) -> int:
    """Where the cycle goes on: at the knob of the last trial, or behind it if the trial was kept."""
    changed = _last_changed(history)
    if changed not in names:
        return 0
    kept = history.incumbent is not None and history.incumbent.trial == history.trials[-1].trial
    return (names.index(changed) + kept) % len(names)


def _last_changed(history: History) -> str:
    """The knob that the last trial changed in the incumbent of that time; empty unless it is exactly one."""
    if not history.trials:
        return ""
    *earlier, last = history.trials
    before = next((trial for trial in reversed(earlier) if trial.verdict == "keep"), None)
    differing = _differences(last, before)
    return differing.pop() if len(differing) == 1 else ""


def _differences(trial: PastTrial, before: PastTrial | None) -> set[str]:
    over = before.settings if before else {}
    names = trial.settings.keys() | over.keys()
    return {name for name in names if trial.settings.get(name) != over.get(name)}
