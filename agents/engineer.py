"""The embedded engineer: deterministic, no key, no network. It plans as a practitioner would.

The plain default first, then what earlier sessions recommend, then single moves in the order of what they usually
gain (`moves.py`: all that it knows by itself). From then on measured effects, of this session and of the backbone's
history, raise and lower what each next move is expected to gain, and the most promising one runs; every few trials
the server's surrogate has its turn. It explains every trial by a hypothesis and every outcome by its numbers. A trial
teaches through its reflection only: without reflections it goes down its list, with verdicts for its sole guide.
"""

from ..memory.records import Hypothesis
from .base import Action, Agent, RunTrial, Situation
from .duties import close, duty
from .following import around, follow
from .history import History
from .knowledge import Knowledge
from .moves import OPENINGS, Move
from .reflecting import NOTICEABLE_Z, dimension_of

FRUITLESS_TESTS = 3
DISCOUNT, SETTLED, REPEATED = 0.4, 0.2, 0.1
SURROGATE_AFTER, SURROGATE_EVERY = 8, 4
"""A surrogate needs points before it can be asked; then it has one trial in four."""
COVERED_BY = 0.4
"""Share of the budget after which a dimension without a trial comes first."""
COVERAGE_GAIN = 0.03


class Engineer(Agent):
    """Runs the move with the largest expected gain."""

    def act(self, situation: Situation) -> Action:
        """Duties first, then the next trial; ends the session when nothing new is left to try."""
        return duty(situation) or self._plan(situation)

    def _plan(self, situation: Situation) -> Action:
        history = History(situation)
        if history.trials_used == 0 and history.is_new({}, "default"):
            yardstick = Hypothesis(dimension="optimisation", direction="same", size=0.0, reason="the yardstick")
            return RunTrial({}, "default", yardstick)
        knowledge = Knowledge(history)
        moves = self._moves(history, knowledge)
        if not moves:
            drawn = around(history, self.generator(situation))
            moves = [move for move in drawn if history.is_new(move.changes, move.base)][:1]
        if not moves:
            return close(situation)
        move = max(moves, key=lambda move: expected(move, history, knowledge))
        return RunTrial(move.changes, move.base, explain(move, history), override(move, history, knowledge))

    def _moves(self, history: History, knowledge: Knowledge) -> list[Move]:
        """Everything worth a thought that is new and that no discard heuristic forbids."""
        proposed = proposals(history)
        if history.trials_used >= SURROGATE_AFTER and history.trials_used % SURROGATE_EVERY == 0:
            turn = [move for move in proposed if move.gain > 0 and history.is_new(move.changes, move.base)]
            if turn:
                return turn[:1]
        moves = [*knowledge.moves(), *OPENINGS[history.space.backbone], *follow(history), *proposed]
        return [
            move
            for move in moves
            if history.is_new(move.changes, move.base)
            and (not knowledge.warns(move.changes, history.settings(move.base)) or defended(move, history))
        ]


def proposals(history: History) -> list[Move]:
    """What the server's surrogate advises, as moves; half of what it expects is believed."""
    base = history.incumbent.ndcg if history.incumbent and history.incumbent.ndcg else 0.0
    return [
        Move(row.changes, 0.5 * row.expected_delta / base, f"{row.source}: {row.reason}", row.base)
        for row in history.situation.state.proposals
        if base
    ]


def expected(move: Move, history: History, knowledge: Knowledge) -> float:
    """A move's gain, discounted where its dimension or its knob has shown nothing, or where little time is left."""
    if not move.opening:
        return move.gain
    gain = knowledge.informed(move)
    dimension = dimension_of(move.changes, history.space)
    tests = [step for step in history.lessons() if history.space.dimension(step.knob) == dimension]
    if len(tests) >= FRUITLESS_TESTS and all(step.z < NOTICEABLE_Z for step in tests):
        gain *= DISCOUNT
    if history.tried_change(move.changes) or _ticked_off(move, history):
        gain *= REPEATED  # it was measured over another incumbent and not kept
    elif any(knob in history.settings("incumbent") for knob in move.changes):
        gain *= SETTLED
    elif any(history.touched(knob) for knob in move.changes):
        gain *= DISCOUNT  # what follows from the measurements of this knob is worth more than the table
    elif history.trials_used >= COVERED_BY * history.budget and not _covered(dimension, history):
        gain = max(gain, COVERAGE_GAIN)
    if history.trials_left <= max(2, history.budget // 6):
        gain *= DISCOUNT  # near the end, around what is known to be good
    return gain


def _covered(dimension: str, history: History) -> bool:
    return any(history.space.dimension(knob) == dimension for trial in history.trials for knob in trial.changes)


def _ticked_off(move: Move, history: History) -> bool:
    """Without memory, only the number of the trial says how far down the generic order it has come."""
    if history.situation.state.with_memory:
        return False
    order = sorted(OPENINGS[history.space.backbone], key=lambda one: -one.gain)
    return move in order[: max(0, history.trials_used - 1)]


def defended(move: Move, history: History) -> bool:
    """Whether this session has measured that the move's one knob helps in this direction, whatever others found."""
    if len(move.changes) != 1:
        return False
    knob, value = next(iter(move.changes.items()))
    steps = history.lessons(knob)
    if not steps or isinstance(value, (bool, str)):
        return False
    return steps[-1].z >= NOTICEABLE_Z and (value - steps[-1].after) * (steps[-1].after - steps[-1].before) > 0


def override(move: Move, history: History, knowledge: Knowledge) -> str:
    """Why a discard heuristic does not hold here; empty where none stands against the move."""
    if not knowledge.warns(move.changes, history.settings(move.base)):
        return ""
    step = history.lessons(next(iter(move.changes)))[-1]
    return f"here {step.knob} from {step.before} to {step.after} changed NDCG@10 by {step.relative:+.1%} ({step.trial})"


def explain(move: Move, history: History) -> Hypothesis:
    """The hypothesis of a move: which dimension, which way, how much, and why."""
    base = history.incumbent.ndcg if history.incumbent and history.incumbent.ndcg else 0.0
    return Hypothesis(
        dimension=dimension_of(move.changes, history.space),
        direction="better",
        size=round(move.gain * base, 5),
        reason=move.reason,
    )
