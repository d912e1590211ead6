"""What the engineer runs beside trials that run already: moves in other dimensions. Pure functions.

The verdicts on two moves of one dimension would answer nearly the same question, and the second one could not use the
answer to the first.
"""

from collections.abc import Sequence

from .history import History, PastTrial
from .moves import Move
from .sweeps import is_scoring


def running_trials(history: History) -> list[PastTrial]:
    """The trials that run now."""
    return [trial for trial in history.trials if trial.status == "running"]


def scoring_is_running(history: History) -> bool:
    """Whether a running trial re-scores: it may be a sweep, which measures any setting of the scoring knobs."""
    return any(trial.changes and is_scoring(trial.changes) for trial in running_trials(history))


def apart(moves: Sequence[Move], history: History) -> list[Move]:
    """The moves in dimensions that no running trial changes; if there are none, moves of knobs that none changes."""
    if running_trials(history) and not history.finished:  # nothing is trained yet that could be scored
        moves = [move for move in moves if not is_scoring(move.changes)]
    taken = {knob for trial in running_trials(history) for knob in trial.changes}
    dimensions = {history.space.dimension(knob) for knob in taken}
    elsewhere = [m for m in moves if dimensions.isdisjoint(history.space.dimension(knob) for knob in m.changes)]
    if elsewhere:
        return elsewhere
    rest = [m for m in moves if not (is_scoring(m.changes) and scoring_is_running(history))]
    return [m for m in rest if taken.isdisjoint(m.changes)]
