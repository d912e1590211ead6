"""Three proposals for the next trial, each with its reason: advice from the surrogate, which an agent may ignore.

The first is the move with the largest expected improvement over the incumbent, the second the best one on other knobs,
the third the best one in the dimension that was looked at least. Moves change one knob, or two that both promise to
help. Nothing is proposed that would be refused or has been tried. Pure and deterministic.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..data.errors import ConfigError
from ..data.wording import counted
from ..memory.records import TrialRecord
from ..models.config import TrialConfig
from .action_space import ActionSpace, Knob, effective, inert_changes
from .effects import coverage
from .surrogate import Guess, Surrogate, position

STEPS = (0.06, 0.12, 0.25)  # how far single moves go, as shares of a knob's range
PAIRED = 6  # two-knob moves are made of this many single moves, those that promise most
MARGIN = 1.15  # a pair must promise this much more than the best single move: it tells less about each knob
PROPOSALS = 3
DIGITS = 4  # significant digits of expected changes: more would look like knowledge

Refused = Callable[[Mapping[str, Any]], bool]


class Move(NamedTuple):
    """Changes over the incumbent and what is expected of them."""

    changes: dict[str, Any]
    guess: Guess

    @property
    def promise(self) -> float:
        """By what the moves are ordered."""
        return self.guess.expected_improvement / (MARGIN if len(self.changes) > 1 else 1.0)


def propose(
    trials: Sequence[TrialRecord],
    incumbent: TrialRecord | None,
    space: ActionSpace,
    history: Mapping[str, Mapping[str, Any]],
    refused: Refused,
) -> list[dict[str, Any]]:
    """Up to three of {changes, base, dimension, expected_delta, sd, source, reason}; none before a finished trial.

    `history` is `Knowledge.pooled_effects`; `refused` says whether a change over the incumbent would be refused.
    """
    if incumbent is None:
        return []
    now = incumbent.configuration
    knobs = space.knobs(now.backbone)
    surrogate = Surrogate(trials, knobs, history)
    allowed = _Allowed(trials, now, space, refused)
    singles = _ordered(surrogate, now, _single_changes(knobs, now, history))
    pairs = _pairs(surrogate, now, singles)
    chosen: list[tuple[str, Move]] = []
    for source, moves in (("surrogate", _merged(pairs, singles)), ("surrogate", singles)):
        move = next((m for m in moves if _apart(m, chosen) and allowed(m.changes)), None)
        if move:
            chosen.append(("pair" if len(move.changes) > 1 else source, move))
    least = _least_covered(trials, space, now.backbone)
    unseen = [m for m in singles if space.dimension(next(iter(m.changes))) == least]
    for source, moves in (("explore", unseen), ("surrogate", singles)):
        move = next((m for m in moves if _apart(m, chosen) and allowed(m.changes)), None)
        if move and len(chosen) < PROPOSALS:
            chosen.append((source, move))
    scale = surrogate.reference_ndcg
    return [_entry(s, m, incumbent, now, space, scale, trials, history) for s, m in chosen]


class _Allowed:
    """Whether a change over the incumbent is valid, new, not without effect, and not refused; the same once asked."""

    def __init__(
        self, trials: Sequence[TrialRecord], incumbent: TrialConfig, space: ActionSpace, refused: Refused
    ) -> None:
        counting = (t for t in trials if t.status in ("finished", "running"))
        self._tried = [effective(t.configuration) for t in counting]
        self._incumbent, self._space, self._refused = incumbent, space, refused
        self._answers: dict[str, bool] = {}

    def __call__(self, changes: Mapping[str, Any]) -> bool:
        key = repr(changes)
        if key not in self._answers:
            self._answers[key] = self._asked(changes)
        return self._answers[key]

    def _asked(self, changes: Mapping[str, Any]) -> bool:
        if self._refused(changes):
            return False
        try:
            config = self._space.resolve(self._incumbent, changes)
        except ConfigError:
            return False
        return not inert_changes(config, changes) and effective(config) not in self._tried


def _single_changes(
    knobs: Sequence[Knob], now: TrialConfig, history: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    for knob in knobs:
        current = getattr(now, knob.name)
        known = [row["value"] for row in history.get(knob.name, {}).get("values", [])]
        for value in dict.fromkeys([*_neighbours(knob, current), *_fitting(knob, known)]):
            if value != current:
                yield {knob.name: value}


def _neighbours(knob: Knob, current: Any) -> list[Any]:
    """Other values of a knob: all choices, or numbers some steps away on its scale, with two significant digits."""
    if knob.low is None or knob.high is None:
        return [value for value in (knob.choices or (False, True)) if value != current]
    here = position(knob, current)
    values = []
    for step in (sign * size for size in STEPS for sign in (1, -1)):
        if 0 <= here + step <= 1:
            values.append(value_at(knob, here + step))
    return values


def value_at(knob: Knob, place: float) -> int | float:
    """The number at a position of a knob's range, rounded to two significant digits within the range."""
    assert knob.low is not None and knob.high is not None  # only numbers have positions
    if knob.scale == "log":
        exact = knob.low * (knob.high / knob.low) ** place
    else:
        exact = knob.low + place * (knob.high - knob.low)
    rounded = min(max(float(f"{exact:.2g}"), knob.low), knob.high)
    return round(rounded) if knob.type == "int" else float(rounded)


def _fitting(knob: Knob, values: Sequence[Any]) -> list[Any]:
    fitting = []
    for value in values:
        try:
            fitting.append(knob.check(value))
        except ConfigError:  # of an engine or a protocol with other ranges
            continue
    return fitting


def _ordered(surrogate: Surrogate, now: TrialConfig, changes: Iterator[dict[str, Any]]) -> list[Move]:
    listed = list(changes)
    moves = [Move(*pair) for pair in zip(listed, surrogate.guesses(now, listed), strict=True)]
    return sorted(moves, key=lambda move: -move.promise)  # stable: the order of SANDBOX.md among equals


def _pairs(surrogate: Surrogate, now: TrialConfig, singles: Sequence[Move]) -> list[Move]:
    """Two single moves at once, of those that are expected to help by themselves."""
    best: dict[str, Move] = {}
    for move in sorted(singles, key=lambda single: -single.guess.mean):
        if move.guess.mean > 0:
            best.setdefault(next(iter(move.changes)), move)
    helpful = list(best.values())[:PAIRED]
    return _ordered(surrogate, now, (a.changes | b.changes for a, b in itertools.combinations(helpful, 2)))


def _merged(pairs: Sequence[Move], singles: Sequence[Move]) -> list[Move]:
    return sorted([*pairs, *singles], key=lambda move: -move.promise)


def _apart(move: Move, chosen: Sequence[tuple[str, Move]]) -> bool:
    return not any(set(move.changes) & set(other.changes) for _, other in chosen)


def _least_covered(trials: Sequence[TrialRecord], space: ActionSpace, backbone: str) -> str:
    counts = coverage(trials, space, backbone)
    return min(counts, key=lambda dimension: counts[dimension]["tried"] / counts[dimension]["knobs"])


def _entry(
    source: str,
    move: Move,
    incumbent: TrialRecord,
    now: TrialConfig,
    space: ActionSpace,
    scale: float,
    trials: Sequence[TrialRecord],
    history: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    delta, sd = _short(move.guess.mean * scale), _short(move.guess.sd * scale)
    dimensions = [space.dimension(knob) for knob in move.changes]
    moved = ", ".join(f"{knob} {getattr(now, knob)} -> {value}" for knob, value in move.changes.items())
    why = f"{moved}: expected {delta:+.4g} ± {sd:.2g} NDCG@10 over {incumbent.handle}; {_known(move, trials, history)}"
    if source == "explore":
        why += f"; {dimensions[0]} is the dimension that was looked at least"
    if set(dimensions) == {"scoring"}:
        why += "; nearly free, it only re-scores"
    return {
        "changes": move.changes,
        "base": "incumbent",
        "dimension": dimensions[0],
        "expected_delta": delta,
        "sd": sd,
        "source": source,
        "reason": why,
    }


def _known(move: Move, trials: Sequence[TrialRecord], history: Mapping[str, Mapping[str, Any]]) -> str:
    here = sum(bool(set(move.changes) & set(trial.changes)) for trial in trials)
    before = sum(history.get(knob, {}).get("n", 0) for knob in move.changes)
    return f"seen in {counted(here, 'trial')} here and {before} of closed sessions"


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else 0.0
