"""The recommendations of earlier sessions as moves, from conditions, settings and figures, never from agents' texts.

Each recommendation that fails in this session lowers the trust in the others.
"""

import math
from collections.abc import Iterator
from functools import cached_property

from ..data.errors import ConfigError
from ..data.wording import counted
from ..models.config import SCORING_KNOBS
from ..models.knobs.declaration import Value
from ..sandbox.conditions import Condition, parse_condition
from ..tools.views import KnobValues, PriorConfiguration, PriorRule
from .drawing import choices_of
from .history import History, PastTrial
from .moves import Move, rungs
from .opening import CLEAR_EFFECT_Z, DATASET_SPREAD, bundled, completed
from .sweeps import model_of

CONFIGURATION_GAIN = 0.25
"""Smallest expected relative gain over the default of a good configuration from an identical dataset."""
CROSSOVER_GAIN = 0.06
"""Expected gain of adding to a kept configuration the knobs that only another good configuration sets."""
RULE_GAIN = 0.08
"""Expected gain of following a `prefer` rule from an identical dataset."""
SECOND_CHOICE = 0.02
"""Expected gain of another configuration once one has been kept, because the other one must beat the kept one."""
LIST_SPREAD = 0.05
"""Assumed standard error of the gains in the engineer's list of opening moves, relative to NDCG@10."""


class Knowledge:
    """The prior of a session, combined with its history."""

    def __init__(self, history: History) -> None:
        own = history.situation.state.session  # the history already covers the session's own rules
        prior = [entry for entry in history.situation.brief.prior if entry.session != own]
        rules = [(entry, c) for entry in prior if isinstance(entry, PriorRule) and (c := parsed_condition(entry))]
        self._history = history
        self._configurations = [entry for entry in prior if isinstance(entry, PriorConfiguration)]
        self._rules = [(entry, c) for entry, c in rules if entry.type == "rule" and entry.kind == "prefer"]
        self._heuristics = [(entry, c) for entry, c in rules if entry.type == "heuristic"]
        self._effects = history.situation.state.history_effects

    def moves(self) -> list[Move]:
        """Configurations over the default; over the incumbent: knobs that it does not set, rules, and single values."""
        return [*self._portfolio(), *self._crossovers(), *self._preferences(), *self._values()]

    @cached_property
    def trust(self) -> float:
        """The share of recommendations that helped in this session, (1 + helped) / (1 + tried); 1 before the first."""
        outcomes = [trial.verdict == "keep" for entry in self._configurations if (trial := self._trial_of(entry))]
        for step in self._history.reflected_steps():
            advised = any(c.knob == step.knob and _becomes_true(c, step.before, step.after) for _, c in self._rules)
            outcomes += [step.z > 0] if advised else []
        return float(1 + sum(outcomes)) / (1 + len(outcomes))

    def informed_gain(self, move: Move) -> float:
        """The gain of a move, averaged with its effect on other datasets, weighted by their variances and the trust."""
        knob, value = next(iter(move.changes.items()))
        if len(move.changes) != 1 or knob in self._history.settings("incumbent"):
            return move.gain  # effects from other sessions are relative to the default
        found = self._effects.get(knob)
        measured = next((row for row in found.values if row.value == value), None) if found else None
        if measured is None:
            return move.gain
        error = math.hypot(measured.se, DATASET_SPREAD)
        weight = self.trust * LIST_SPREAD**2 / (LIST_SPREAD**2 + error**2)
        return float((1 - weight) * move.gain + weight * measured.mean_relative)

    def discourages(self, changes: KnobValues, over: KnobValues) -> bool:
        """Whether `changes` over the settings `over` match a discard heuristic whose evidence covers such a base."""
        before = self._history.space.complete(over)
        return any(
            c.knob in changes and _knows(entry, c, over) and _becomes_true(c, before.get(c.knob), changes[c.knob])
            for entry, c in self._heuristics
        )

    def _portfolio(self) -> Iterator[Move]:
        one_kept = False
        for entry in self._configurations:
            changes, trial = self._settings(entry), self._trial_of(entry)
            one_kept = one_kept or (trial is not None and trial.verdict == "keep")
            if changes and trial is None and not self._is_left_to_a_sweep(entry, changes):
                first_choice = self.trust * max(entry.gain or 0.0, CONFIGURATION_GAIN)
                gain = entry.similarity * (SECOND_CHOICE if one_kept else first_choice)
                yield Move(changes, gain, f"a configuration that did well on {entry.dataset}", "default")

    def _crossovers(self) -> Iterator[Move]:
        """Once a configuration of the prior was kept: the knobs that the other configurations set in addition."""
        if not any((trial := self._trial_of(entry)) and trial.verdict == "keep" for entry in self._configurations):
            return
        set_already = self._history.settings("incumbent")
        for entry in self._configurations:
            added = {knob: value for knob, value in self._settings(entry).items() if knob not in set_already}
            if added and self._trial_of(entry) is None:
                gain = CROSSOVER_GAIN * entry.similarity * self.trust
                yield Move(added, gain, f"knobs that a good configuration on {entry.dataset} sets in addition")

    def _preferences(self) -> Iterator[Move]:
        for entry, condition in self._rules:
            value = _nearest_satisfying(condition, self._history)
            if value is None or value == self._history.current[condition.knob]:
                continue
            confidence = (entry.support + 1) / (entry.support + entry.contradiction + 2)
            gain = RULE_GAIN * entry.similarity * confidence * self.trust
            reason = f"a rule learnt on {entry.dataset or 'another dataset'}: {condition}"
            yield Move({condition.knob: value}, gain, reason)

    def _values(self) -> Iterator[Move]:
        """Single values that clearly helped in closed sessions."""
        for name, found in self._effects.items():
            if name not in self._history.space.knobs or name in self._history.settings("incumbent"):
                continue
            for row in found.values:
                error = math.hypot(row.se, DATASET_SPREAD)
                if row.mean_relative >= CLEAR_EFFECT_Z * error:
                    gain = row.mean_relative * self.trust * LIST_SPREAD**2 / (LIST_SPREAD**2 + error**2)
                    datasets = counted(found.datasets, "dataset")
                    reason = f"this value gained {row.mean_relative:+.1%} on average ({datasets})"
                    yield Move({name: row.value}, min(gain, CONFIGURATION_GAIN), reason)

    @cached_property
    def _bundle(self) -> KnobValues:
        """The settings of the opening bundle without memory."""
        moves = bundled(self._history.space, lambda move: move.gain)
        return moves[0].changes if moves else {}

    def _settings(self, entry: PriorConfiguration) -> KnobValues:
        """The values of a configuration that this session offers and that differ from the default.

        Those of a session that lacked knobs of the opening bundle are completed by the bundle (`opening.completed`).
        """
        space = self._history.space
        config = {name: value for name, value in entry.config.items() if name in space.knobs}
        if entry.offered is not None:
            config = completed(config, entry.offered, self._bundle, self._effects, space)
        return {
            name: value
            for name, value in config.items()
            if space.offers(name, value) and value != space.defaults[name]
        }

    def _is_left_to_a_sweep(self, entry: PriorConfiguration, settings: KnobValues) -> bool:
        """Whether the model of a completed configuration is trained already, so that only its score priors are new."""
        model = {name: value for name, value in settings.items() if name not in SCORING_KNOBS}
        return entry.offered is not None and any(model == model_of(trial) for trial in self._history.finished)

    def _trial_of(self, entry: PriorConfiguration) -> PastTrial | None:
        key = self._history.space.key(self._settings(entry))
        return next((t for t in self._history.finished if t.changes and self._history.key_of(t) == key), None)


def parsed_condition(rule: PriorRule) -> Condition | None:
    """The condition of a rule; None if it has none or if it cannot be parsed."""
    try:
        return parse_condition(rule.condition) if rule.condition else None
    except ConfigError:
        return None


def _knows(entry: PriorRule, condition: Condition, over: KnobValues) -> bool:
    """Whether the session of a rule could have had the settings `over`; those of the score priors do not matter."""
    set_here = set(over) - set(SCORING_KNOBS) - {condition.knob}
    return entry.offered is None or set_here <= set(entry.offered)


def _becomes_true(condition: Condition, before: Value | None, after: Value) -> bool:
    """Whether a change from `before` to `after` makes the condition true."""
    known = before is not None and condition.matches({condition.knob: before})
    return condition.matches({condition.knob: after}) and not known


def _nearest_satisfying(condition: Condition, history: History) -> Value | None:
    """The value nearest to the incumbent's that satisfies `condition` in a valid configuration, if there is one."""
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
