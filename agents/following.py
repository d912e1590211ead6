"""Moves that follow from measured effects: further, the other way, two at once, together, again. Pure functions."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from ..models.knobs.declaration import Value
from ..tools.views import KnobValues
from .drawing import choices_of, draw
from .history import History, Step, Tried
from .moves import Move, neighbour
from .reflecting import NOTICEABLE_Z

SCORE_WEIGHTS = ("transition_weight", "cooccurrence_weight", "popularity_weight")
RETUNED = (*SCORE_WEIGHTS, "lr", "temperature", "dropout")
"""What has to be set again once the model around it has changed."""
HALF = 0.5
PAIR = 0.45
"""Of two further steps at once, each is worth a little less than alone: if they fail, nobody knows which one did."""
RETUNE = 0.025
SMALL, TINY = 0.01, 0.004
"""Gains expected where hardly anything is known: below every opening move, above standing still."""
EARLY_EPOCH = 3
SIGN_Z = 0.3
"""Half a chance in three that a true zero shows this much: enough to try in combination, not to keep."""


def follow(history: History) -> list[Move]:
    """All moves that the measurements suggest."""
    return [
        *_further(history), *_pairs(history), *_combine(history), *_retune(history), *_reconsider(history),
        *_from_curve(history),
    ]  # fmt: skip


def _further(history: History) -> Iterator[Move]:
    for knob in history.space.knobs.values():
        steps = history.lessons(knob.name)
        if not steps:
            continue
        if choices := choices_of(knob):
            seen = {value for step in steps for value in (step.before, step.after)}
            yield from (
                Move({knob.name: choice}, TINY, f"another choice of {knob.name}")
                for choice in choices
                if choice not in seen
            )
        else:
            yield from (move for way in (1, -1) if (move := _climb(knob.name, steps, history, way)))


def _climb(name: str, steps: list[Step], history: History, way: int) -> Move | None:
    """The next rung upwards or downwards, valued by what steps of this knob have shown so far."""
    target = neighbour(name, history.current[name], way, history.space)
    if target is None or any(s.after == target and s.z < NOTICEABLE_Z for s in steps):
        return None
    along = [s.relative * (1 if (s.after - s.before) * way > 0 else -1) for s in steps if abs(s.z) >= NOTICEABLE_Z]
    word = "up" if way > 0 else "down"
    if not along:
        if any((step.after - target) * way > 0 for step in steps):
            return Move({name: target}, SMALL, f"{name} made no difference further {word}: the best may lie between")
        return Move({name: target}, TINY, f"{name} was only tried the other way: {word}")
    slope = along[-1]  # the last clear step is the one nearest to where the incumbent stands
    if slope <= 0:
        return None
    return Move({name: target}, HALF * slope, f"{name} {word} goes where steps have helped ({slope:+.1%})")


def _pairs(history: History) -> Iterator[Move]:
    """The next steps of two knobs at once, where the last step of each one alone was kept."""
    reach = []
    for knob in history.space.knobs.values():
        steps = history.lessons(knob.name)
        if not steps or choices_of(knob) or not steps[-1].kept or steps[-1].after != history.current[knob.name]:
            continue
        way = 1 if steps[-1].after > steps[-1].before else -1
        target = neighbour(knob.name, steps[-1].after, way, history.space)
        if target is not None and steps[-1].relative > 0:
            reach.append((knob.name, target, steps[-1].relative))
    for (a, value_a, gain_a), (b, value_b, gain_b) in combinations(reach, 2):
        yield Move({a: value_a, b: value_b}, PAIR * (gain_a + gain_b), f"{a} and {b} were both kept: one step further")


def _combine(history: History) -> Iterator[Move]:
    """Changes that came out positive but are not in the incumbent: each one over it, and all of them together."""
    current, best = history.current, dict[str, tuple[float, KnobValues]]()
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
    if not trial.reflected or trial.verdict != "discard" or trial.base_z is None:
        return False
    return trial.base_z >= SIGN_Z and 0 < len(trial.changes) <= 2


def _retune(history: History) -> Iterator[Move]:
    """What suits one model need not suit the next: neighbours of its value, a weaker score prior first."""
    for name in RETUNED:
        value = history.current.get(name)
        if not value or not _model_changed_since(history, name):
            continue
        for way in (-1, 1):
            target = neighbour(name, value, way, history.space)
            if target is not None:
                gain = (RETUNE if name in SCORE_WEIGHTS else SMALL) * (1 if way < 0 else HALF)
                yield Move({name: target}, gain, f"the model has changed since {name} was set")


def _model_changed_since(history: History, name: str) -> bool:
    last = max((i for i, trial in enumerate(history.trials) if name in trial.changes), default=None)
    if last is None:
        return False
    later = history.trials[last + 1 :]
    return any(t.verdict == "keep" and any(history.space.dimension(k) != "scoring" for k in t.changes) for t in later)


def _reconsider(history: History) -> Iterator[Move]:
    """Numbers that came in together with others, and were never turned alone: their neighbours."""
    incumbent = history.incumbent
    together = incumbent.settings if incumbent else {}
    for name, value in together.items():
        knob = history.space.knobs.get(name)
        if knob is None or choices_of(knob) or history.steps(name):
            continue
        away = 1 if value > history.space.defaults[name] else -1
        for way, share in ((away, 1.0), (-away, HALF)):
            if (target := neighbour(name, value, way, history.space)) is not None:
                yield Move({name: target}, SMALL * share, f"{name} came in with other changes: is it far enough?")


def _from_curve(history: History) -> Iterator[Move]:
    """What the incumbent's learning curve says: cut off at the end, or stopped early (a plateau, or over-fitting)."""
    incumbent = history.incumbent
    if incumbent is None or not incumbent.best_epoch:
        return
    patience = _raised(history, "patience")
    longer = _raised(history, "epochs")
    if longer and incumbent.best_epoch >= history.current["epochs"]:
        yield Move(longer | patience, 0.06, "the last epoch was the best one: train longer, past small dips")
    if incumbent.best_epoch <= EARLY_EPOCH and incumbent.best_epoch < history.current["epochs"]:
        if patience and incumbent.best_epoch + history.current["patience"] < history.current["epochs"]:
            yield Move(patience, 0.04, "stopped after few epochs: that may be a plateau only")
        if higher := _raised(history, "dropout"):
            yield Move(higher, 0.03, "the best epoch came early: regularise more")


def _raised(history: History, name: str) -> KnobValues:
    """The knob one rung up, or nothing where it is closed or at its end."""
    is_open = name in history.space.knobs
    value = neighbour(name, history.current[name], 1, history.space) if is_open else None
    return {} if value is None else {name: value}


def around(history: History, generator: np.random.Generator, draws: int = 60) -> list[Move]:
    """A few knobs one rung away from the incumbent, drawn at random: the last resort when nothing is planned."""
    names = list(history.space.knobs)
    moves = []
    for _ in range(draws if names else 0):
        chosen = generator.choice(len(names), size=min(len(names), int(generator.integers(1, 3))), replace=False)
        changes = {names[i]: _beside(names[i], history, generator) for i in chosen}
        moves.append(Move(changes, TINY, "a neighbour of the incumbent that was not tried yet"))
    return moves


def _beside(name: str, history: History, generator: np.random.Generator) -> Value:
    knob, current = history.space.knobs[name], history.current[name]
    if choices_of(knob):
        return draw(knob, generator)
    way = 1 if generator.random() < HALF else -1
    value = neighbour(name, current, way, history.space)
    return current if value is None else value
