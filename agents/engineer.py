"""The embedded engineer: deterministic, no key, no network. It plans as a practitioner would.

The plain default first, then what earlier sessions recommend, then single moves in the order of what they usually
gain; from then on measured effects raise and lower what each next move is expected to gain, and the most promising
one runs. It explains every trial by a hypothesis and every outcome by its numbers.
"""

from typing import Any

from .base import Action, Agent, RunTrial, Situation
from .duties import close, duty
from .following import around, follow
from .history import History
from .knowledge import recommended
from .moves import OPENINGS, Move
from .reflecting import NOTICEABLE_Z, dimension_of

FRUITLESS_TESTS = 3
DISCOUNT, REPEATED = 0.4, 0.1


class Engineer(Agent):
    """Runs the move with the largest expected gain."""

    def act(self, situation: Situation) -> Action:
        """Duties first, then the next trial; ends the session when nothing new is left to try."""
        return duty(situation) or self._plan(situation)

    def _plan(self, situation: Situation) -> Action:
        history = History(situation)
        if history.trials_used == 0 and history.is_new({}, "default"):
            return RunTrial({}, "default", _hypothesis(0.0, "same", "the yardstick", "optimisation"))
        moves = [*recommended(history), *OPENINGS[history.space.backbone], *follow(history)]
        new = [move for move in moves if history.is_new(move.changes, move.base)]
        if not new:
            drawn = around(history, self.generator(situation))
            new = [move for move in drawn if history.is_new(move.changes, move.base)][:1]
        if not new:
            return close(situation)
        move = max(new, key=lambda move: expected(move, history))
        return RunTrial(move.changes, move.base, explain(move, history))


def expected(move: Move, history: History) -> float:
    """A move's gain, discounted where its dimension or its knob has shown nothing, or where little time is left."""
    gain = move.gain
    if move.opening:
        dimension = dimension_of(move.changes, history.space)
        tests = [step for step in history.steps() if history.space.dimension(step.knob) == dimension]
        if len(tests) >= FRUITLESS_TESTS and all(step.z < NOTICEABLE_Z for step in tests):
            gain *= DISCOUNT
        if history.tried_change(move.changes):
            gain *= REPEATED  # it was measured over another incumbent and not kept
        elif any(history.touched(knob) for knob in move.changes):
            gain *= DISCOUNT  # what follows from the measurements of this knob is worth more than the table
        if history.trials_left <= max(2, (history.trials_left + history.trials_used) // 6):
            gain *= DISCOUNT  # near the end, around what is known to be good
    return gain


def explain(move: Move, history: History) -> dict[str, Any]:
    """The hypothesis of a move: which dimension, which way, how much, and why."""
    base = history.incumbent.ndcg if history.incumbent and history.incumbent.ndcg else 0.0
    return _hypothesis(
        round(move.gain * base, 5), "better", move.reason, dimension_of(move.changes, history.space)
    )


def _hypothesis(size: float, direction: str, reason: str, dimension: str) -> dict[str, Any]:
    return {"dimension": dimension, "direction": direction, "size": size, "reason": reason}
