"""The embedded engineer: a deterministic agent that needs no API key and no network, and plans as a practitioner would.

The model comes first: after the default configuration it runs what earlier sessions recommend, or else its opening
moves for the model as one bundle (`moves.py`). Once the model stands, one sweep tunes the score priors (`sweeps.py`).
From then on the move with the largest expected gain runs: what the measurements of this session suggest
(`follow_ups.py`), the remaining opening moves in the order of their usual gain, corrected by the effects that closed
sessions measured, and proposals of the server. After changes of the model the priors are swept again. The last trials
are a student of the best models, and their ensemble (`ensembles.py`). Each trial has a hypothesis, and each reflection
is computed from the measurements. Only trials with a reflection count as measurements: without reflections the engineer
follows its list of opening moves and the verdicts. If several trials may run at a time, free places are filled with
moves in dimensions that no running trial changes (`beside.py`).
"""

from ..memory.records import Hypothesis
from .base import Action, Agent, Finalize, RunTrial, Situation
from .beside import apart, scoring_is_running
from .ensembles import planned_end, planned_ensemble, planned_student
from .follow_ups import follow_ups, random_neighbours
from .history import History
from .knowledge import Knowledge
from .moves import Move, openings
from .opening import BUNDLED_GAIN, bundled
from .reflecting import NOTICEABLE_Z, dimension_of
from .required import end, required_action, wait
from .sweeps import is_due, is_scoring, planned_sweep

MIN_FRUITLESS_STEPS = 3
"""Number of single-knob trials without an effect after which the moves of a dimension are discounted."""
DISCOUNT, SETTLED, REPEATED = 0.4, 0.2, 0.1
"""Factors on the gain of an opening move, by what the session has already measured; see `expected_gain`."""
SURROGATE_AFTER, SURROGATE_EVERY = 8, 4
"""The surrogate needs some trials to be fitted; after that it chooses one trial in four."""
OPENING_TRIALS = 4
"""After this many trials the priors are swept even if no change of the model was kept."""
REFINEMENT_GAIN = 0.01
"""If no move has a larger expected gain, the neighbours of the present weights of the priors are swept."""
UNSETTLED = 0.2
"""Factor on moves of scoring knobs before the model stands, where the server offers no sweep."""
OWN_SOURCES = ("bundle", "ablation", "separation")
"""Sources of proposals that the engineer does not follow: it has a bundle of its own, and then single steps."""
COVERAGE_SHARE = 0.4
"""Share of the budget after which a dimension without a trial is preferred."""
COVERAGE_GAIN = 0.03
"""Minimum expected gain of an opening move in a dimension that is preferred because it has no trial."""


class Engineer(Agent):
    """Runs the move with the largest expected gain."""

    def act(self, situation: Situation) -> Action:
        """Required actions first, then the next trial; ends the session when no untried move is left."""
        required = required_action(situation)
        if isinstance(required, Finalize) and situation.state.state == "open" and not situation.running:
            return last_move(History(situation, from_best=True)) or required
        return required or self._plan(situation)

    def _plan(self, situation: Situation) -> Action:
        history = History(situation, from_best=True)
        if history.trials_used == 0 and history.is_new({}, "default"):
            reason = "the baseline that later trials are compared with"
            baseline = Hypothesis(dimension="optimisation", direction="same", size=0.0, reason=reason)
            return RunTrial({}, "default", baseline)
        if ending := planned_end(history):
            return wait(situation) if situation.running else ending
        knowledge = Knowledge(history)
        moves = apart(self._moves(history, knowledge), history)
        best = max((expected_gain(move, history, knowledge) for move in moves), default=0.0)
        wanted = opening_is_over(history) and (is_due(history) or best < REFINEMENT_GAIN)
        if wanted and not scoring_is_running(history) and (sweep := planned_sweep(history)):
            return sweep
        if not moves and not situation.running:
            drawn = random_neighbours(history, self.generator(situation))
            moves = [move for move in drawn if history.is_new(move.changes, move.base)]
            moves = [m for m in moves if not knowledge.discourages(m.changes, history.settings(m.base))][:1]
        if not moves:
            last = None if situation.running else last_move(history)
            return last or end(situation)
        move = max(moves, key=lambda move: expected_gain(move, history, knowledge))
        override = override_reason(move, history, knowledge)
        base = history.incumbent.trial if move.base == "incumbent" and history.incumbent else move.base
        return RunTrial(move.changes, base, hypothesis_for(move, history), override)

    def _moves(self, history: History, knowledge: Knowledge) -> list[Move]:
        """All candidate moves that are new, not left to a sweep, and not ruled out by a discard heuristic."""
        sweepable = planned_sweep(history) is not None

        def is_open(move: Move) -> bool:
            if sweepable and is_scoring(move.changes):
                return False
            discouraged = knowledge.discourages(move.changes, history.settings(move.base))
            return history.is_new(move.changes, move.base) and (not discouraged or has_helped(move, history))

        proposed = [move for move in proposals(history) if is_open(move)]
        if history.trials_used >= SURROGATE_AFTER and history.trials_used % SURROGATE_EVERY == 0:
            promising = [move for move in proposed if move.gain > 0]
            if promising:
                return promising[:1]
        opening = [*bundle(history, knowledge), *openings(history.space)]
        moves = [*knowledge.moves(), *opening, *follow_ups(history)]
        return [*(move for move in moves if is_open(move)), *proposed]


def last_move(history: History) -> Action | None:
    """What is still tried before a session ends that has trials and seconds left: a student, and then the ensemble,
    unless they were tried."""
    budget = history.situation.state.budget
    if budget.train_seconds_used >= budget.train_seconds_max:
        return None
    return planned_student(history) or planned_ensemble(history)


def opening_is_over(history: History) -> bool:
    """Whether the model stands: a change of it was kept, or the first attempts have failed."""
    trained = [trial for trial in history.trials if trial.changes and not is_scoring(trial.changes)]
    return any(trial.verdict == "keep" for trial in trained) or history.trials_used > OPENING_TRIALS


def bundle(history: History, knowledge: Knowledge) -> list[Move]:
    """The opening moves for the model, corrected by memory, as one trial; none once a change of the model was kept."""
    if opening_is_over(history) or (history.trials_used != 1 and not history.situation.state.with_memory):
        return []
    return bundled(history.space, knowledge.informed_gain)


def proposals(history: History) -> list[Move]:
    """The proposals of the server's surrogate as moves; their expected gain is halved."""
    base = history.incumbent.ndcg if history.incumbent and history.incumbent.ndcg else 0.0
    return [
        Move(row.changes, 0.5 * row.expected_delta / base, f"{row.source}: {row.reason}", row.base)
        for row in history.situation.state.proposals
        if base and row.source not in OWN_SOURCES
    ]


def expected_gain(move: Move, history: History, knowledge: Knowledge) -> float:
    """The gain of a move, discounted if its dimension or knob had no effect so far or if few trials are left."""
    if is_scoring(move.changes) and not opening_is_over(history):
        return UNSETTLED * move.gain
    if not move.opening:
        return move.gain
    gain = knowledge.informed_gain(move)
    dimension = dimension_of(move.changes, history.space)
    tests = [step for step in history.reflected_steps() if history.space.dimension(step.knob) == dimension]
    if len(tests) >= MIN_FRUITLESS_STEPS and all(step.z < NOTICEABLE_Z for step in tests):
        gain *= DISCOUNT
    if history.has_tried(move.changes) or _already_passed(move, history):
        gain *= REPEATED  # measured over an earlier incumbent and not kept
    elif any(knob in history.settings("incumbent") for knob in move.changes):
        gain *= SETTLED
    elif any(history.was_changed(knob) for knob in move.changes):
        gain *= DISCOUNT  # moves that follow from measurements of this knob are preferred (`follow_ups.py`)
    elif history.trials_used >= COVERAGE_SHARE * history.budget and not _covered(dimension, history):
        gain = max(gain, COVERAGE_GAIN)
    if history.trials_left <= max(2, history.budget // 6):
        gain *= DISCOUNT  # near the end, stay close to the incumbent
    return gain


def _covered(dimension: str, history: History) -> bool:
    return any(history.space.dimension(knob) == dimension for trial in history.trials for knob in trial.changes)


def _already_passed(move: Move, history: History) -> bool:
    """Whether a session without memory has already run this opening move, judged by its number of trials alone."""
    if history.situation.state.with_memory:
        return False
    order = sorted(openings(history.space), key=lambda opening: -opening.gain)
    in_bundle = [opening for opening in order if opening.gain >= BUNDLED_GAIN and not is_scoring(opening.changes)]
    rest = [opening for opening in order if opening not in in_bundle]
    return move in in_bundle or move in rest[: max(0, history.trials_used - 2)]


def has_helped(move: Move, history: History) -> bool:
    """Whether the last step of the move's only knob helped in this session, and the move goes on in its direction."""
    if len(move.changes) != 1:
        return False
    knob, value = next(iter(move.changes.items()))
    steps = history.reflected_steps(knob)
    if not steps or isinstance(value, (bool, str)):
        return False
    return steps[-1].z >= NOTICEABLE_Z and (value - steps[-1].after) * (steps[-1].after - steps[-1].before) > 0


def override_reason(move: Move, history: History, knowledge: Knowledge) -> str:
    """Why a discard heuristic does not apply here; empty if none matches the move."""
    if not knowledge.discourages(move.changes, history.settings(move.base)):
        return ""
    step = history.reflected_steps(next(iter(move.changes)))[-1]
    return f"here {step.knob} from {step.before} to {step.after} changed NDCG@10 by {step.relative:+.1%} ({step.trial})"


def hypothesis_for(move: Move, history: History) -> Hypothesis:
    """The hypothesis of a move: its dimension, expected direction and size, and the reason."""
    base = history.incumbent.ndcg if history.incumbent and history.incumbent.ndcg else 0.0
    return Hypothesis(
        dimension=dimension_of(move.changes, history.space),
        direction="better",
        size=round(move.gain * base, 5),
        reason=move.reason,
    )
