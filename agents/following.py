"""Moves that follow from measured effects: go further, turn round, combine, re-tune. Pure functions of the history."""

from collections.abc import Iterator

import numpy as np

from .base import Knobs
from .history import History, Step, Tried
from .moves import Move, neighbour
from .reflecting import NOTICEABLE_Z
from .space import Knob

SCORE_WEIGHTS = ("transition_weight", "cooccurrence_weight", "popularity_weight")
HALF = 0.5
UNBUNDLED = 0.025
"""Expected of a knob that was set along with others: likely to stand on the right side, not on the right value."""
SMALL, TINY = 0.01, 0.004
"""Gains expected where hardly anything is known: below every opening move, above standing still."""
BUNDLE = 3
"""Changes in one trial from which on none of them counts as measured."""
EARLY_EPOCH = 3
SIGN_Z = 0.3
"""Half a chance in three that a true zero shows this much: enough to try in combination, not to keep."""


def follow(history: History) -> list[Move]:
    """All moves that the measurements suggest."""
    return [
        *_further(history), *_unbundle(history), *_combine(history), *_retune_scores(history), *_from_curve(history)
    ]


def _further(history: History) -> Iterator[Move]:
    for knob in history.space.knobs.values():
        steps = history.steps(knob.name)
        if not steps:
            continue
        if knob.numeric:
            yield from (move for way in (1, -1) if (move := _climb(knob, steps, history, way)))
        else:
            gain = SMALL if any(abs(s.z) >= NOTICEABLE_Z for s in steps) else TINY
            yield from (
                Move({knob.name: choice}, gain, f"another choice of {knob.name}")
                for choice in knob.choices
                if choice != history.current[knob.name] and not any(s.after == choice for s in steps)
            )


def _climb(knob: Knob, steps: list[Step], history: History, way: int) -> Move | None:
    """The next rung upwards or downwards, valued by what steps of this knob have shown so far."""
    target = neighbour(knob, history.current[knob.name], way)
    if target is None or any(s.after == target and s.z < NOTICEABLE_Z for s in steps):
        return None
    along = [s.relative * (1 if (s.after - s.before) * way > 0 else -1) for s in steps if abs(s.z) >= NOTICEABLE_Z]
    word = "up" if way > 0 else "down"
    if not along:
        return Move({knob.name: target}, TINY, f"{knob.name} has not shown an effect in the other direction: {word}")
    slope = along[-1]  # the last clear step is the one nearest to where the incumbent stands
    if slope <= 0:
        return None
    return Move({knob.name: target}, HALF * slope, f"{knob.name} {word} goes where steps have helped ({slope:+.1%})")


def _unbundle(history: History) -> Iterator[Move]:
    """Neighbours of what the incumbent owes to a trial of many changes: no step has measured these knobs alone."""
    for trial in history.finished:
        if trial.verdict != "keep" or len(trial.changes) < BUNDLE:
            continue
        for name, value in trial.changes.items():
            knob = history.space.knobs.get(name)
            if knob is None or not knob.numeric or history.current[name] != value or history.steps(name):
                continue
            for way in (-1, 1):
                target = neighbour(knob, value, way)
                if target is not None:
                    yield Move({name: target}, UNBUNDLED, f"{name} was set together with other knobs and never alone")


def _combine(history: History) -> Iterator[Move]:
    """Changes that came out positive but are not in the incumbent: each one over it, and all of them together."""
    current, best = history.current, dict[str, tuple[float, Knobs]]()
    for trial in history.finished:
        if _promising(trial) and any(current.get(knob) != value for knob, value in trial.changes.items()):
            name = next(iter(trial.changes))
            best[name] = max(best.get(name, (0.0, {})), (trial.relative, trial.changes), key=lambda pair: pair[0])
    for gain, changes in best.values():
        yield Move(changes, HALF * gain, "positive when tried, and the incumbent has changed since")
    if len(best) > 1:
        merged = {knob: value for _, changes in best.values() for knob, value in changes.items()}
        total = sum(gain for gain, _ in best.values())
        yield Move(merged, HALF * total, "changes that were each positive within noise, together")


def _promising(trial: Tried) -> bool:
    """Not kept, though more likely good than bad; what was kept is in the incumbent, or has been left behind since."""
    return trial.verdict == "discard" and trial.z is not None and trial.z >= SIGN_Z and 0 < len(trial.changes) <= 2


def _retune_scores(history: History) -> Iterator[Move]:
    """Weights of score priors suit one model: try their neighbours again once the model has been trained anew."""
    for name in SCORE_WEIGHTS:
        weight = history.current.get(name, 0.0)
        if weight == 0 or not _model_changed_since(history, name):
            continue
        for way in (-1, 1):
            target = neighbour(history.space.knobs[name], weight, way)
            if target is not None:
                yield Move({name: target}, SMALL, f"the model has changed since {name} was set")


def _model_changed_since(history: History, name: str) -> bool:
    last = max((i for i, trial in enumerate(history.trials) if name in trial.changes), default=-1)
    later = history.trials[last + 1 :]
    return any(t.verdict == "keep" and any(history.space.dimension(k) != "scoring" for k in t.changes) for t in later)


def _from_curve(history: History) -> Iterator[Move]:
    """What the incumbent's learning curve says: cut off at the end, or stopped early (a plateau, or over-fitting)."""
    incumbent = history.incumbent
    if incumbent is None or not incumbent.best_epoch:
        return
    patience = _raised(history, "patience")
    longer = _raised(history, "epochs")
    if longer and incumbent.best_epoch >= history.current["epochs"]:
        yield Move(longer | patience, 0.06, "the last epoch was the best one: train longer, past small dips")
    if incumbent.best_epoch <= EARLY_EPOCH:
        if patience:
            yield Move(patience, 0.04, "stopped after few epochs: that may be a plateau only")
        if higher := _raised(history, "dropout"):
            yield Move(higher, 0.03, "the best epoch came early: regularise more")


def _raised(history: History, name: str) -> Knobs:
    """The knob one rung up, or nothing where it is closed or at its end."""
    knob = history.space.knobs.get(name)
    value = neighbour(knob, history.current[name], 1) if knob else None
    return {} if value is None else {name: value}


def around(history: History, generator: np.random.Generator, draws: int = 60) -> list[Move]:
    """A few knobs one rung away from the incumbent, drawn at random: the last resort when nothing is planned."""
    names = list(history.space.knobs)
    moves = []
    for _ in range(draws if names else 0):
        chosen = generator.choice(len(names), size=min(len(names), int(generator.integers(1, 3))), replace=False)
        changes = {names[i]: _beside(history.space.knobs[names[i]], history.current, generator) for i in chosen}
        moves.append(Move(changes, TINY, "a neighbour of the incumbent that was not tried yet"))
    return moves


def _beside(knob: Knob, current: Knobs, generator: np.random.Generator) -> object:
    if not knob.numeric:
        return knob.draw(generator)
    way = 1 if generator.random() < HALF else -1
    value = neighbour(knob, current[knob.name], way)
    return current[knob.name] if value is None else value
