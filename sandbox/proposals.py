"""Propose up to three next trials from the surrogate, each with its reason; an agent may ignore them.

The first proposal is the move with the largest expected improvement over the incumbent, the second the best move on
other knobs, the third the best move in the least explored dimension. A move changes one knob, or two knobs that are
both expected to help. Moves that would be refused or have been tried are not proposed. Pure and deterministic.
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
from .surrogate import Prediction, Surrogate, position

STEPS = (0.06, 0.12, 0.25)  # step sizes of single moves, as fractions of a knob's range
NUM_PAIRED = 6  # two-knob moves combine this many single moves, those with the largest predicted gain
PAIR_MARGIN = 1.15  # factor by which a pair must beat single moves, because a pair tells less about each knob
NUM_PROPOSALS = 3
DIGITS = 4  # significant digits of predictions; more would suggest false precision

Refused = Callable[[Mapping[str, Any]], bool]


class Move(NamedTuple):
    """Changes over the incumbent and the predicted effect."""

    changes: dict[str, Any]
    prediction: Prediction

    @property
    def acquisition(self) -> float:
        """The expected improvement, discounted for pairs; moves are sorted by it."""
        return self.prediction.expected_improvement / (PAIR_MARGIN if len(self.changes) > 1 else 1.0)


def propose(
    trials: Sequence[TrialRecord],
    incumbent: TrialRecord | None,
    space: ActionSpace,
    history: Mapping[str, Mapping[str, Any]],
    refused: Refused,
) -> list[dict[str, Any]]:
    """Up to three of {changes, base, dimension, expected_delta, sd, source, reason}; empty without an incumbent.

    `history` is `Knowledge.pooled_effects`; `refused` returns whether changes over the incumbent would be refused.
    """
    if incumbent is None:
        return []
    incumbent_config = incumbent.configuration
    knobs = space.knobs(incumbent_config.backbone)
    surrogate = Surrogate(trials, knobs, history)
    allowed = _Allowed(trials, incumbent_config, space, refused)
    singles = _sorted_moves(surrogate, incumbent_config, _single_changes(knobs, incumbent_config, history))
    pairs = _pairs(surrogate, incumbent_config, singles)
    chosen: list[tuple[str, Move]] = []
    for source, moves in (("surrogate", _merge(pairs, singles)), ("surrogate", singles)):
        move = next((m for m in moves if _disjoint(m, chosen) and allowed(m.changes)), None)
        if move:
            chosen.append(("pair" if len(move.changes) > 1 else source, move))
    least = _least_covered(trials, space, incumbent_config.backbone)
    unexplored = [m for m in singles if space.dimension(next(iter(m.changes))) == least]
    for source, moves in (("explore", unexplored), ("surrogate", singles)):
        move = next((m for m in moves if _disjoint(m, chosen) and allowed(m.changes)), None)
        if move and len(chosen) < NUM_PROPOSALS:
            chosen.append((source, move))
    scale = surrogate.reference_ndcg
    return [_entry(s, m, incumbent, incumbent_config, space, scale, trials, history) for s, m in chosen]


class _Allowed:
    """Whether changes over the incumbent are valid, new, effective and not refused; answers are cached."""

    def __init__(
        self, trials: Sequence[TrialRecord], incumbent: TrialConfig, space: ActionSpace, refused: Refused
    ) -> None:
        counted = (t for t in trials if t.status in ("finished", "running"))
        self._tried = [effective(t.configuration) for t in counted]
        self._incumbent, self._space, self._refused = incumbent, space, refused
        self._answers: dict[str, bool] = {}

    def __call__(self, changes: Mapping[str, Any]) -> bool:
        key = repr(changes)
        if key not in self._answers:
            self._answers[key] = self._check(changes)
        return self._answers[key]

    def _check(self, changes: Mapping[str, Any]) -> bool:
        if self._refused(changes):
            return False
        try:
            config = self._space.resolve(self._incumbent, changes)
        except ConfigError:
            return False
        return not inert_changes(config, changes) and effective(config) not in self._tried


def _single_changes(
    knobs: Sequence[Knob], incumbent_config: TrialConfig, history: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    for knob in knobs:
        current = getattr(incumbent_config, knob.name)
        known = [row["value"] for row in history.get(knob.name, {}).get("values", [])]
        for value in dict.fromkeys([*_neighbours(knob, current), *_valid_values(knob, known)]):
            if value != current:
                yield {knob.name: value}


def _neighbours(knob: Knob, current: Any) -> list[Any]:
    """Other values of a knob: all other choices or levels, or numbers at distances STEPS on its scale."""
    if knob.low is None or knob.high is None or knob.levels:
        return [value for value in (knob.levels or knob.choices or (False, True)) if value != current]
    here = position(knob, current)
    values = []
    for step in (sign * size for size in STEPS for sign in (1, -1)):
        if 0 <= here + step <= 1:
            values.append(value_at(knob, here + step))
    return values


def value_at(knob: Knob, place: float) -> int | float:
    """The number at a relative position in [0, 1] of a knob's range, with two significant digits, inside the range.

    Of a knob with levels, the nearest level.
    """
    assert knob.low is not None and knob.high is not None  # only numeric knobs have positions
    if knob.levels:
        return knob.levels[round(place * (len(knob.levels) - 1))]
    if knob.scale == "log":
        exact = knob.low * (knob.high / knob.low) ** place
    else:
        exact = knob.low + place * (knob.high - knob.low)
    rounded = min(max(float(f"{exact:.2g}"), knob.low), knob.high)
    return round(rounded) if knob.type == "int" else float(rounded)


def _valid_values(knob: Knob, values: Sequence[Any]) -> list[Any]:
    valid = []
    for value in values:
        try:
            valid.append(knob.check(value))
        except ConfigError:  # measured under an engine or a protocol with other ranges
            continue
    return valid


def _sorted_moves(surrogate: Surrogate, incumbent_config: TrialConfig, changes: Iterator[dict[str, Any]]) -> list[Move]:
    listed = list(changes)
    moves = [Move(*pair) for pair in zip(listed, surrogate.predict(incumbent_config, listed), strict=True)]
    return sorted(moves, key=lambda move: -move.acquisition)  # the sort is stable: ties keep the order of SANDBOX.md


def _pairs(surrogate: Surrogate, incumbent_config: TrialConfig, singles: Sequence[Move]) -> list[Move]:
    """Combinations of two single moves that are both expected to help."""
    best: dict[str, Move] = {}
    for move in sorted(singles, key=lambda single: -single.prediction.mean):
        if move.prediction.mean > 0:
            best.setdefault(next(iter(move.changes)), move)
    helpful = list(best.values())[:NUM_PAIRED]
    combined = (a.changes | b.changes for a, b in itertools.combinations(helpful, 2))
    return _sorted_moves(surrogate, incumbent_config, combined)


def _merge(pairs: Sequence[Move], singles: Sequence[Move]) -> list[Move]:
    return sorted([*pairs, *singles], key=lambda move: -move.acquisition)


def _disjoint(move: Move, chosen: Sequence[tuple[str, Move]]) -> bool:
    return not any(set(move.changes) & set(other.changes) for _, other in chosen)


def _least_covered(trials: Sequence[TrialRecord], space: ActionSpace, backbone: str) -> str:
    counts = coverage(trials, space, backbone)
    return min(counts, key=lambda dimension: counts[dimension]["tried"] / counts[dimension]["knobs"])


def _entry(
    source: str,
    move: Move,
    incumbent: TrialRecord,
    incumbent_config: TrialConfig,
    space: ActionSpace,
    scale: float,
    trials: Sequence[TrialRecord],
    history: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    delta, sd = _rounded(move.prediction.mean * scale), _rounded(move.prediction.sd * scale)
    dimensions = [space.dimension(knob) for knob in move.changes]
    changes = ", ".join(f"{knob} {getattr(incumbent_config, knob)} -> {value}" for knob, value in move.changes.items())
    reason = f"{changes}: NDCG@10 is expected to change by {delta:+.4g} ± {sd:.2g} against {incumbent.handle}; "
    reason += _evidence(move, trials, history)
    if source == "explore":
        reason += f"; {dimensions[0]} is the least explored dimension"
    if set(dimensions) == {"scoring"}:
        reason += "; nearly free, because the trial is only re-scored"
    return {
        "changes": move.changes,
        "base": "incumbent",
        "dimension": dimensions[0],
        "expected_delta": delta,
        "sd": sd,
        "source": source,
        "reason": reason,
    }


def _evidence(move: Move, trials: Sequence[TrialRecord], history: Mapping[str, Mapping[str, Any]]) -> str:
    num_here = sum(bool(set(move.changes) & set(trial.changes)) for trial in trials)
    num_closed = sum(history.get(knob, {}).get("n", 0) for knob in move.changes)
    return f"changed in {counted(num_here, 'trial')} of this session and {num_closed} of closed sessions"


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else 0.0
