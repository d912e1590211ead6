"""Moves that follow from measured effects. Pure functions.

A move continues or reverses a step, combines several steps, or tunes a knob again after the incumbent has changed.
"""

import math
from collections.abc import Iterator
from itertools import combinations

import numpy as np

from ..models.knobs.declaration import Value
from ..tools.views import KnobValues
from .drawing import choices_of, draw
from .history import History, PastTrial, Step
from .moves import Move, neighbour
from .reflecting import NOTICEABLE_Z

SCORE_WEIGHTS = ("transition_weight", "cooccurrence_weight", "popularity_weight")
RETUNED = (*SCORE_WEIGHTS, "lr", "temperature", "dropout")
"""Knobs whose best value depends on the rest of the model, so they are tuned again after the model has changed."""
UNCERTAIN = 0.5
"""Factor on the gain of an extrapolated effect, and of the less likely of two directions."""
UNCERTAIN_PAIR = 0.45
"""Factor on the gain of steps of two knobs at once: lower, because a failure does not tell which knob caused it."""
RETUNE_GAIN = 0.025
"""Expected gain of tuning a score weight again."""
SMALL_GAIN, TINY_GAIN = 0.01, 0.004
"""Expected gains where little is known: low, but positive."""
RECONSIDERED_GAIN = 0.02
"""Expected gain of a step of a knob that was only set in a bundle: its value there is a guess."""
EARLY_EPOCH = 3
"""A best epoch up to this one counts as early."""
SIGN_Z = 0.3
"""A true zero reaches this z with probability 0.38: enough to try the change in combination, not to keep it."""


def follow_ups(history: History) -> list[Move]:
    """All moves that the measurements of this session suggest.

    Whether a training should be longer, only its curve says: measured effects of the knobs that bound it do not.
    """
    bounds = _bounds(history)
    moves = [
        *_further(history), *_pairs(history), *_combine(history), *_retune(history), *_reconsider(history),
    ]  # fmt: skip
    return [*(move for move in moves if not move.changes.keys() <= bounds), *_from_curve(history)]


def _bounds(history: History) -> set[str]:
    """The knobs that only end a training. With a decaying schedule each number of `epochs` is another training."""
    decays = history.current.get("schedule", "constant") != "constant"
    return {"patience"} if decays else {"patience", "epochs"}


def _further(history: History) -> Iterator[Move]:
    for knob in history.space.knobs.values():
        steps = history.reflected_steps(knob.name)
        if not steps:
            continue
        if choices := choices_of(knob):
            seen = {value for step in steps for value in (step.before, step.after)}
            yield from (
                Move({knob.name: choice}, TINY_GAIN, f"an untried choice of {knob.name}")
                for choice in choices
                if choice not in seen
            )
        else:
            yield from (move for direction in (1, -1) if (move := _next_rung(knob.name, steps, history, direction)))


def _next_rung(name: str, steps: list[Step], history: History, direction: int) -> Move | None:
    """The next rung up (direction 1) or down (-1); its gain is derived from the earlier steps of the knob."""
    target = neighbour(name, history.current[name], direction, history.space)
    if target is None or any(s.after == target and s.z < NOTICEABLE_Z for s in steps):
        return None
    noticeable = [s for s in steps if abs(s.z) >= NOTICEABLE_Z]
    slopes = [s.relative * (1 if (s.after - s.before) * direction > 0 else -1) for s in noticeable]
    word = "up" if direction > 0 else "down"
    if not slopes:
        if any((step.after - target) * direction > 0 for step in steps):
            reason = f"a larger step {word} of {name} made no difference; the best value may lie in between"
            return Move({name: target}, SMALL_GAIN, reason)
        return Move({name: target}, TINY_GAIN, f"{name} has only been changed in the other direction; now {word}")
    slope = slopes[-1]  # the last noticeable step is the nearest to the incumbent
    if slope <= 0:
        return None
    reason = f"{name} {word} continues a direction that has helped ({slope:+.1%})"
    return Move({name: target}, UNCERTAIN * slope, reason)


def _pairs(history: History) -> Iterator[Move]:
    """The next steps of two knobs at once, if the last step of each one alone was kept."""
    next_steps = []
    for knob in history.space.knobs.values():
        steps = history.reflected_steps(knob.name)
        if not steps or choices_of(knob) or not steps[-1].kept or steps[-1].after != history.current[knob.name]:
            continue
        direction = 1 if steps[-1].after > steps[-1].before else -1
        target = neighbour(knob.name, steps[-1].after, direction, history.space)
        if target is not None and steps[-1].relative > 0:
            next_steps.append((knob.name, target, steps[-1].relative))
    for (a, value_a, gain_a), (b, value_b, gain_b) in combinations(next_steps, 2):
        reason = f"a step of {a} and one of {b} were kept; go one step further with both"
        yield Move({a: value_a, b: value_b}, UNCERTAIN_PAIR * (gain_a + gain_b), reason)


def _combine(history: History) -> Iterator[Move]:
    """Changes with a positive effect that are not part of the incumbent: each one alone, and all of them together."""
    current, best = history.current, dict[str, tuple[float, KnobValues]]()
    for trial in history.finished:
        if _promising(trial) and any(current.get(knob) != value for knob, value in trial.changes.items()):
            name = next(iter(trial.changes))
            best[name] = max(best.get(name, (0.0, {})), (trial.relative, trial.changes), key=lambda pair: pair[0])
    for gain, changes in best.values():
        yield Move(changes, UNCERTAIN * gain, "had a positive effect when tried, and the incumbent has changed since")
    if len(best) > 1:
        merged = {knob: value for _, changes in best.values() for knob, value in changes.items()}
        total = sum(gain for gain, _ in best.values())
        yield Move(merged, UNCERTAIN * total, "combines changes that were each positive within noise")


def _promising(trial: PastTrial) -> bool:
    """Whether a discarded change more likely helps than hurts. Kept changes are in the incumbent or superseded."""
    if not trial.reflected or trial.verdict != "discard" or trial.base_z is None:
        return False
    return trial.base_z >= SIGN_Z and 0 < len(trial.changes) <= 2


def _retune(history: History) -> Iterator[Move]:
    """Neighbours of a knob whose best value may have changed with the model; smaller values first."""
    for name in RETUNED:
        value = history.current.get(name)
        if not value or not _model_changed_since(history, name):
            continue
        for direction in (-1, 1):
            target = neighbour(name, value, direction, history.space)
            if target is not None:
                gain = (RETUNE_GAIN if name in SCORE_WEIGHTS else SMALL_GAIN) * (1 if direction < 0 else UNCERTAIN)
                yield Move({name: target}, gain, f"the model has changed since {name} was tuned")


def _model_changed_since(history: History, name: str) -> bool:
    last = max((i for i, trial in enumerate(history.trials) if name in trial.changes), default=None)
    if last is None:
        return False
    later = history.trials[last + 1 :]
    return any(t.verdict == "keep" and any(history.space.dimension(k) != "scoring" for k in t.changes) for t in later)


def _reconsider(history: History) -> Iterator[Move]:
    """Neighbours of numeric knobs that a trial with a reflection set together with others, never changed alone."""
    incumbent = history.incumbent
    settings = incumbent.settings if incumbent else {}
    reflected = {knob for trial in history.trials if trial.reflected for knob in trial.changes}
    for name, value in settings.items():
        knob = history.space.knobs.get(name)
        if knob is None or name not in reflected or choices_of(knob) or history.steps(name):
            continue
        away = 1 if value > history.space.defaults[name] else -1
        for direction, share in ((away, 1.0), (-away, UNCERTAIN)):
            if (target := neighbour(name, value, direction, history.space)) is not None:
                reason = f"{name} was set with other knobs and never tuned alone"
                yield Move({name: target}, RECONSIDERED_GAIN * share, reason)


def _from_curve(history: History) -> Iterator[Move]:
    """Moves from the incumbent's learning curve: still rising at the end, or stopped early (plateau or overfitting)."""
    incumbent = history.incumbent
    if incumbent is None or not incumbent.best_epoch:
        return
    patience = _raised(history, "patience")
    longer = _raised(history, "epochs")
    if longer and incumbent.best_epoch >= history.current["epochs"]:
        yield Move(longer | patience, 0.06, "the last epoch was the best one, so training was cut short; train longer")
    epochs = history.current.get("epochs", math.inf)  # a protocol need not offer it
    if incumbent.best_epoch <= EARLY_EPOCH and incumbent.best_epoch < epochs:
        if patience and incumbent.best_epoch + history.current["patience"] < epochs:
            yield Move(patience, 0.04, "early stopping ended the run after few epochs, possibly on a plateau")
        if higher := _raised(history, "dropout"):
            yield Move(higher, 0.03, "the best epoch came early, which suggests overfitting; regularise more")


def _raised(history: History, name: str) -> KnobValues:
    """The knob one rung up; empty if the session does not offer it or it is at the end of its ladder."""
    offered = name in history.space.knobs
    value = neighbour(name, history.current[name], 1, history.space) if offered else None
    return {} if value is None else {name: value}


def random_neighbours(history: History, generator: np.random.Generator, draws: int = 60) -> list[Move]:
    """Random configurations one rung away from the incumbent in one or two knobs: the fallback if no move is left."""
    names = list(history.space.knobs)
    moves = []
    for _ in range(draws if names else 0):
        chosen = generator.choice(len(names), size=min(len(names), int(generator.integers(1, 3))), replace=False)
        drawn = {names[i]: _random_neighbour(names[i], history, generator) for i in chosen}
        changes = {name: value for name, value in drawn.items() if value != history.current[name]}
        moves.append(Move(changes, TINY_GAIN, "an untried neighbour of the incumbent"))
    return moves


def _random_neighbour(name: str, history: History, generator: np.random.Generator) -> Value:
    knob, current = history.space.knobs[name], history.current[name]
    if choices_of(knob):
        return draw(knob, generator)
    direction = 1 if generator.random() < 0.5 else -1
    value = neighbour(name, current, direction, history.space)
    return current if value is None else value
