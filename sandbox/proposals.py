"""Propose up to three next trials, each with its diagnosis or reason, expected gain and cost; agents may ignore them.

The first proposal acts on what limits the incumbent (`diagnosis.py`): the remedy with the largest expected improvement.
The second is the best move on other knobs, the third acts on a second diagnosis, or is the best move in the least
explored dimension. A move changes one knob, two knobs that are both expected to help, or what a remedy changes. Up to
three further proposals bundle changes, take one of a bundle back, or separate two suspects (`bundles.py`). Moves
that would be refused or have been tried are not proposed. Pure and deterministic.

What is expected rests on the best evidence there is: `session` and `history` (trials of this or of closed sessions
changed one of the knobs: the surrogate's prediction), `declared` (half of the gain that `remedies.py` names, or of the
rise at the end of the incumbent's curve), or `none`: the move is then worth its chance, E[max(0, change)], because a
change for the worse is not adopted. Moves that the evidence expects to lose are not proposed.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ..data.errors import ConfigError
from ..data.wording import counted
from ..memory.records import TrialRecord
from ..models.config import TrialConfig
from .action_space import ActionSpace, Knob, effective, inert_changes
from .bundles import Suggestion, bundle, suggest
from .costs import estimate_seconds
from .diagnosis import Diagnosis, diagnose
from .effects import coverage
from .remedies import RISE, Remedy, changes_of, remedies_for
from .surrogate import Prediction, Surrogate, position

STEPS = (0.06, 0.12, 0.25)  # step sizes of single moves, as fractions of a knob's range
NUM_PAIRED = 6  # two-knob moves combine this many single moves, those with the largest predicted gain
PAIR_MARGIN = 1.15  # factor by which a pair must beat single moves, because a pair tells less about each knob
NUM_PROPOSALS = 3
INCUMBENT = "incumbent"
DIGITS = 4  # significant digits of predictions; more would suggest false precision
DECLARED_WEIGHT = 0.5  # of a gain measured elsewhere; its standard deviation is the gain itself

Refused = Callable[[Mapping[str, Any]], bool]
Evidence = Literal["session", "history", "declared", "none"]


class Move(NamedTuple):
    """Changes over the incumbent, the predicted effect, what it rests on, and the remedy that it is, if any."""

    changes: dict[str, Any]
    prediction: Prediction
    evidence: Evidence
    remedy: Remedy | None = None

    @property
    def expected(self) -> float:
        """The expected change; without evidence the expected improvement."""
        return self.prediction.expected_improvement if self.evidence == "none" else self.prediction.mean

    @property
    def acquisition(self) -> float:
        """The expected improvement, discounted for pairs; moves are sorted by it."""
        is_pair = len(self.changes) > 1 and self.remedy is None
        return self.prediction.expected_improvement / (PAIR_MARGIN if is_pair else 1.0)


class _Chosen(NamedTuple):
    """A move with the reason for which it was chosen: a diagnosis, surrogate, pair or explore."""

    source: str
    move: Move
    diagnosis: Diagnosis | None = None


def propose(
    trials: Sequence[TrialRecord],
    incumbent: TrialRecord | None,
    space: ActionSpace,
    history: Mapping[str, Mapping[str, Any]],
    refused: Refused,
    num_items: int | None = None,
    model: Surrogate | None = None,
) -> list[dict[str, Any]]:
    """Up to six of the rows of `tools.views.Proposal`; empty without an incumbent.

    `history` is `Knowledge.pooled_effects`; `refused` returns whether changes over the incumbent would be refused;
    `num_items` is the size of the catalogue, for the cost of a full softmax; `model` is the fitted surrogate of these
    arguments, if the caller has it.
    """
    if incumbent is None:
        return []
    return _Proposer(trials, incumbent, space, history, refused, num_items, model).rows()


class _Proposer:
    """The candidate moves of a session over its incumbent, and the choice among them."""

    def __init__(
        self,
        trials: Sequence[TrialRecord],
        incumbent: TrialRecord,
        space: ActionSpace,
        history: Mapping[str, Mapping[str, Any]],
        refused: Refused,
        num_items: int | None,
        model: Surrogate | None,
    ) -> None:
        self._trials, self._incumbent, self._space, self._history = trials, incumbent, space, history
        self._num_items = num_items
        self._config = incumbent.configuration
        self._knobs = {knob.name: knob for knob in space.knobs(self._config.backbone) if knob.type != "trials"}
        default = space.default(self._config.backbone)
        self._surrogate = model or Surrogate(trials, list(self._knobs.values()), history, default)
        self._allowed = _Allowed(trials, self._config, space, refused)
        self._changed = {knob for t in trials if t.concluded for knob in t.changed}
        self._diagnoses = diagnose(incumbent, space)
        self._chosen: list[_Chosen] = []

    def rows(self) -> list[dict[str, Any]]:
        """The proposals, best first."""
        singles = self._moves(_single_changes(list(self._knobs.values()), self._config, self._history))
        everything = _by_acquisition([*_pairs(self._moves, singles), *singles, *self._remedies(None)])
        by_diagnosis = [(diagnosis, self._remedies(diagnosis)) for diagnosis in self._diagnoses]
        for diagnosis, moves in by_diagnosis[:1]:
            self._choose(diagnosis.kind, moves, diagnosis)
        self._choose("surrogate", everything)
        for diagnosis, moves in by_diagnosis[1:]:
            self._choose(diagnosis.kind, moves, diagnosis)
        least = _least_covered(self._trials, self._space, self._config.backbone)
        self._choose("explore", [m for m in everything if {self._space.dimension(k) for k in m.changes} == {least}])
        self._choose("surrogate", singles)
        rows = [self._row(chosen) for chosen in self._chosen]
        known = [(row["base"], row["changes"]) for row in rows]
        return [*rows, *(row for row in self._bundles(singles) if (row["base"], row["changes"]) not in known)]

    def _bundles(self, singles: Sequence[Move]) -> list[dict[str, Any]]:
        """Further proposals, from `bundles.py`: several changes at once, one taken back, two suspects separated."""
        supported = [(m.changes, m.prediction) for m in singles if m.evidence != "none"]
        default = self._space.default(self._config.backbone)
        found = bundle(supported, self._surrogate, self._incumbent, self._allowed.over)
        others = suggest(self._surrogate, self._trials, self._incumbent, default, self._allowed.over)
        return [self._suggested(one) for one in [*([found] if found else []), *others]]

    def _suggested(self, one: Suggestion) -> dict[str, Any]:
        scale, base = self._surrogate.reference_ndcg, next(t for t in self._trials if t.handle == one.base)
        seconds = estimate_seconds(base.configuration.model_copy(update=one.changes), self._trials, self._num_items)
        return {
            "changes": one.changes,
            "base": INCUMBENT if one.base == self._incumbent.handle else one.base,
            "dimension": self._space.dimension(next(iter(one.changes))),
            "expected_delta": _rounded(one.prediction.mean * scale),
            "sd": _rounded(one.prediction.sd * scale),
            "evidence": "session",
            "cost_seconds": None if seconds is None else float(f"{seconds:.2g}"),
            "source": one.source,
            "reason": one.reason,
        }

    def _choose(self, source: str, moves: Sequence[Move], diagnosis: Diagnosis | None = None) -> None:
        """Add the first move on other knobs that is allowed and not expected to lose, while there is room for it."""
        taken = {knob for chosen in self._chosen for knob in chosen.move.changes}
        free = (m for m in moves if m.expected > 0 and not taken & set(m.changes))
        move = next((m for m in free if self._allowed(m.changes)), None)
        if move and len(self._chosen) < NUM_PROPOSALS:
            is_pair = source == "surrogate" and len(move.changes) > 1 and move.remedy is None
            self._chosen.append(_Chosen("pair" if is_pair else source, move, diagnosis))

    def _moves(self, changes: Iterator[dict[str, Any]]) -> list[Move]:
        """The moves with these changes, those of the largest expected improvement first."""
        listed = list(changes)
        predictions = self._surrogate.predict(self._config, listed)
        return _by_acquisition([Move(c, p, self._evidence(c)) for c, p in zip(listed, predictions, strict=True)])

    def _remedies(self, diagnosis: Diagnosis | None) -> list[Move]:
        """The remedies for a diagnosis as moves; for None, the changes that are proposed for their gain alone."""
        remedies = remedies_for(diagnosis)
        found = [(r, changes) for r in remedies if (changes := changes_of(r, self._config, self._knobs))]
        predictions = self._surrogate.predict(self._config, [changes for _, changes in found])
        return _by_acquisition(
            [self._remedy_move(*pair, predicted) for pair, predicted in zip(found, predictions, strict=True)]
        )

    def _remedy_move(self, remedy: Remedy, changes: dict[str, Any], predicted: Prediction) -> Move:
        evidence = self._evidence(changes)
        if remedy.gain is None or (evidence != "none" and remedy.source != RISE):
            return Move(changes, predicted, evidence, remedy)
        # The surrogate's figures are relative to NDCG@10 of its reference, declared gains to the incumbent's.
        gain = remedy.gain * _ndcg(self._incumbent) / self._surrogate.reference_ndcg
        declared = Prediction(predicted.mean + DECLARED_WEIGHT * gain, max(predicted.sd, gain))
        return Move(changes, declared, "declared", remedy)

    def _evidence(self, changes: Mapping[str, Any]) -> Evidence:
        if self._changed & set(changes):
            return "session"
        return "history" if any(self._history.get(knob, {}).get("n") for knob in changes) else "none"

    def _row(self, chosen: _Chosen) -> dict[str, Any]:
        move, scale = chosen.move, self._surrogate.reference_ndcg
        dimensions = [self._space.dimension(knob) for knob in move.changes]
        config = self._config.model_copy(update=move.changes)
        seconds = estimate_seconds(config, self._trials, self._num_items)
        row = {
            "changes": move.changes,
            "base": INCUMBENT,
            "dimension": dimensions[0],
            "expected_delta": _rounded(move.expected * scale),
            "sd": _rounded(move.prediction.sd * scale),
            "evidence": move.evidence,
            "cost_seconds": None if seconds is None else float(f"{seconds:.2g}"),
            "source": chosen.source,
        }
        return {**row, "reason": self._reason(chosen, row, dimensions)}

    def _reason(self, chosen: _Chosen, row: Mapping[str, Any], dimensions: Sequence[str]) -> str:
        """Why this change: the diagnosis and mechanism, the gain and its source. Seconds differ between equal runs, so
        that they are a field and not a part of the text.
        """
        move = chosen.move
        steps = ", ".join(f"{knob} {getattr(self._config, knob)} -> {value}" for knob, value in move.changes.items())
        why = f"{chosen.diagnosis.kind} ({chosen.diagnosis.short}): " if chosen.diagnosis else ""
        how = f" {move.remedy.mechanism}" if move.remedy else ""
        gain = (
            f"NDCG@10 is expected to change by {row['expected_delta']:+.4g} ± {row['sd']:.2g} against "
            f"{self._incumbent.handle} ({self._source_of(move)})"
        )
        parts = [f"{why}{steps}{':' if how else ''}{how}", gain]
        if chosen.source == "explore":
            parts.append(f"{dimensions[0]} is the least explored dimension")
        if set(dimensions) == {"scoring"}:
            parts.append("nearly free, because the trial is only re-scored")
        return "; ".join(parts)

    def _source_of(self, move: Move) -> str:
        """What the expected gain rests on, in words."""
        if move.evidence == "declared" and move.remedy and move.remedy.gain:
            return f"half of {move.remedy.gain:+.1%}: {move.remedy.source}"
        if move.evidence == "none":
            return "no trial has measured it; what such a change gains on average if losses are not adopted"
        here = [trial.handle for trial in self._trials if trial.changed & set(move.changes)]
        num_closed = sum(self._history.get(knob, {}).get("n", 0) for knob in move.changes)
        session = f"{counted(len(here), 'trial')} of this session, last {here[-1]}" if here else ""
        closed = f"{counted(num_closed, 'trial')} of closed sessions" if num_closed else ""
        return " and ".join(part for part in (session, closed) if part)


class _Allowed:
    """Whether changes over the incumbent are valid, new, effective and not refused; answers are cached."""

    def __init__(
        self, trials: Sequence[TrialRecord], incumbent: TrialConfig, space: ActionSpace, refused: Refused
    ) -> None:
        counted = (t for t in trials if t.concluded or t.status == "running")
        self._tried = [effective(t.configuration) for t in counted]
        self._incumbent, self._space, self._refused = incumbent, space, refused
        self._answers: dict[str, bool] = {}

    def __call__(self, changes: Mapping[str, Any]) -> bool:
        key = repr(changes)
        if key not in self._answers:
            self._answers[key] = self.over(self._incumbent, changes)
        return self._answers[key]

    def over(self, base: TrialConfig, changes: Mapping[str, Any]) -> bool:
        """The same for changes over another base."""
        if self._refused(changes):
            return False
        try:
            config = self._space.resolve(base, changes)
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
    """The number at a relative position in [0, 1] of a knob's range, in the knob's resolution.

    Of a knob with levels, the nearest level.
    """
    assert knob.low is not None and knob.high is not None  # only numeric knobs have positions
    if knob.levels:
        return knob.levels[round(place * (len(knob.levels) - 1))]
    if knob.scale == "log":
        exact = knob.low * (knob.high / knob.low) ** place
    else:
        exact = knob.low + place * (knob.high - knob.low)
    return knob.rounded(exact)


def _valid_values(knob: Knob, values: Sequence[Any]) -> list[Any]:
    valid = []
    for value in values:
        try:
            valid.append(knob.check(value))
        except ConfigError:  # measured under an engine or a protocol with other ranges
            continue
    return valid


def _by_acquisition(moves: Sequence[Move]) -> list[Move]:
    """The moves with the largest expected improvement first; ties keep the order of SANDBOX.md."""
    return sorted(moves, key=lambda move: -move.acquisition)


def _pairs(moves_of: Callable[[Iterator[dict[str, Any]]], list[Move]], singles: Sequence[Move]) -> list[Move]:
    """Combinations of two single moves that are both expected to help."""
    best: dict[str, Move] = {}
    for move in sorted(singles, key=lambda single: -single.prediction.mean):
        if move.prediction.mean > 0:
            best.setdefault(next(iter(move.changes)), move)
    helpful = list(best.values())[:NUM_PAIRED]
    return moves_of(a.changes | b.changes for a, b in itertools.combinations(helpful, 2))


def _least_covered(trials: Sequence[TrialRecord], space: ActionSpace, backbone: str) -> str:
    counts = coverage(trials, space, backbone)
    return min(counts, key=lambda dimension: counts[dimension]["tried"] / counts[dimension]["knobs"])


def _ndcg(trial: TrialRecord) -> float:
    return trial.outcome.metrics["ndcg@10"] if trial.outcome else 0.0


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else 0.0
