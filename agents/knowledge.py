"""What earlier sessions recommend, as moves. Only conditions, settings and figures are read, never texts of agents.

How far they are followed depends on how they serve here: recommendations that fail lower the trust in the others.
"""

import math
from collections.abc import Iterator
from functools import cached_property

from ..data.errors import ConfigError
from ..data.wording import counted
from ..models.knobs.declaration import Value
from ..sandbox.conditions import Condition, parse_condition
from ..tools.views import KnobValues, PriorConfiguration, PriorRule
from .drawing import choices_of
from .history import History, Tried
from .moves import Move, rungs

CONFIGURATION_GAIN = 0.25
"""What a good configuration gains over the default at least, as a share, on an equal dataset."""
CROSSOVER_GAIN = 0.06
"""What the knobs gain that a second configuration sets and the first one does not."""
RULE_GAIN = 0.08
SECOND_CHOICE = 0.02
"""What a further configuration gains over the default where one has served already: it has to beat that one."""
BETWEEN_DATASETS = 0.03
"""Spread of a knob's effect from one dataset to another, as a share of NDCG@10."""
OPINION = 0.05
"""How unsure the engineer's own order of moves is, as a share of NDCG@10."""
KNOWN_Z = 2.0


class Knowledge:
    """The prior of a session, read against its history."""

    def __init__(self, history: History) -> None:
        own = history.situation.state.session  # its own rules are in the history, and in no prior before it began
        prior = [entry for entry in history.situation.brief.prior if entry.session != own]
        rules = [(entry, c) for entry in prior if isinstance(entry, PriorRule) and (c := readable(entry))]
        self._history = history
        self._configurations = [entry for entry in prior if isinstance(entry, PriorConfiguration)]
        self._rules = [(entry, c) for entry, c in rules if entry.type == "rule" and entry.kind == "prefer"]
        self._heuristics = [c for entry, c in rules if entry.type == "heuristic"]
        self._effects = history.situation.state.history_effects

    def moves(self) -> list[Move]:
        """Whole configurations over the default, then rules and single values over the incumbent."""
        return [*self._portfolio(), *self._crossovers(), *self._preferences(), *self._values()]

    @cached_property
    def trust(self) -> float:
        """1 before anything was tried, then the share of recommendations that served here, by Laplace's rule."""
        outcomes = [trial.verdict == "keep" for entry in self._configurations if (trial := self._trial_of(entry))]
        for step in self._history.lessons():
            advised = any(c.knob == step.knob and _turns_true(c, step.before, step.after) for _, c in self._rules)
            outcomes += [step.z > 0] if advised else []
        return float(1 + sum(outcomes)) / (1 + len(outcomes))

    def informed(self, move: Move) -> float:
        """The gain of a move, weighed against what its knob has shown on other datasets."""
        knob, value = next(iter(move.changes.items()))
        if len(move.changes) != 1 or knob in self._history.settings("incumbent"):
            return move.gain  # what was measured elsewhere was a step from the default
        found = self._effects.get(knob)
        measured = next((row for row in found.values if row.value == value), None) if found else None
        if measured is None:
            return move.gain
        error = math.hypot(measured.se, BETWEEN_DATASETS)
        weight = self.trust * OPINION**2 / (OPINION**2 + error**2)
        return float((1 - weight) * move.gain + weight * measured.mean_relative)

    def warns(self, changes: KnobValues, over: KnobValues) -> bool:
        """Whether a discard heuristic stands against `changes` over these settings."""
        before = self._history.space.complete(over)
        return any(
            c.knob in changes and _turns_true(c, before.get(c.knob), changes[c.knob]) for c in self._heuristics
        )

    def _portfolio(self) -> Iterator[Move]:
        served = False
        for entry in self._configurations:
            changes, trial = self._settings(entry), self._trial_of(entry)
            served = served or (trial is not None and trial.verdict == "keep")
            if changes and trial is None:
                hope = self.trust * max(entry.gain or 0.0, CONFIGURATION_GAIN)
                gain = entry.similarity * (SECOND_CHOICE if served else hope)
                yield Move(changes, gain, f"a configuration that did well on {entry.dataset}", "default")

    def _crossovers(self) -> Iterator[Move]:
        """Over an incumbent that came from a configuration: what the other configurations set beyond it."""
        if not any((trial := self._trial_of(entry)) and trial.verdict == "keep" for entry in self._configurations):
            return
        set_already = self._history.settings("incumbent")
        for entry in self._configurations:
            beyond = {knob: value for knob, value in self._settings(entry).items() if knob not in set_already}
            if beyond and self._trial_of(entry) is None:
                gain = CROSSOVER_GAIN * entry.similarity * self.trust
                yield Move(beyond, gain, f"what a configuration that did well on {entry.dataset} has beyond ours")

    def _preferences(self) -> Iterator[Move]:
        for entry, condition in self._rules:
            value = _satisfying(condition, self._history)
            if value is None or value == self._history.current[condition.knob]:
                continue
            confidence = (entry.support + 1) / (entry.support + entry.contradiction + 2)
            gain = RULE_GAIN * entry.similarity * confidence * self.trust
            reason = f"a rule learnt on {entry.dataset or 'another dataset'}: {condition}"
            yield Move({condition.knob: value}, gain, reason)

    def _values(self) -> Iterator[Move]:
        """Values that clearly helped on other datasets."""
        for name, found in self._effects.items():
            if name not in self._history.space.knobs or name in self._history.settings("incumbent"):
                continue
            for row in found.values:
                error = math.hypot(row.se, BETWEEN_DATASETS)
                if row.mean_relative >= KNOWN_Z * error:
                    gain = row.mean_relative * self.trust * OPINION**2 / (OPINION**2 + error**2)
                    where = counted(found.datasets, "dataset")
                    reason = f"{name} at this value gained {row.mean_relative:+.1%} ({where})"
                    yield Move({name: row.value}, min(gain, CONFIGURATION_GAIN), reason)

    def _settings(self, entry: PriorConfiguration) -> KnobValues:
        """The part of a configuration that is open here and differs from the default."""
        space = self._history.space
        return {
            name: value
            for name, value in entry.config.items()
            if space.offers(name, value) and value != space.defaults[name]
        }

    def _trial_of(self, entry: PriorConfiguration) -> Tried | None:
        key = self._history.space.key(self._settings(entry))
        return next((t for t in self._history.finished if t.changes and self._history.key_of(t) == key), None)


def readable(rule: PriorRule) -> Condition | None:
    """The condition of a rule; None where it has none, or one of another grammar."""
    try:
        return parse_condition(rule.condition) if rule.condition else None
    except ConfigError:
        return None


def _turns_true(condition: Condition, before: Value | None, after: Value) -> bool:
    """Whether the step makes the condition true."""
    known = before is not None and condition.matches({condition.knob: before})
    return condition.matches({condition.knob: after}) and not known


def _satisfying(condition: Condition, history: History) -> Value | None:
    """The value nearest to the incumbent's that satisfies a condition in a valid configuration; None for none."""
    knob = history.space.knobs.get(condition.knob)
    if knob is None:
        return None
    current = history.current[knob.name]
    values: list[Value] = (
        [current, *(choice for choice in choices if choice != current)]
        if (choices := choices_of(knob))
        else sorted({*rungs(knob.name, history.space), current}, key=lambda value: abs(value - current))
    )
    for value in values:
        config = history.space.config(history.settings("incumbent") | {knob.name: value})
        if config is not None and condition.matches(config):
            return value
    return None
