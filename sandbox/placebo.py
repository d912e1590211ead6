"""Placebo memory for ablations: knowledge of the same form and strength, but about the wrong knobs.

Knowledge about knob a is presented as knowledge about knob p(a). The permutation p is a single cycle through all knobs
of the backbone, drawn from the session's seed, so no knob keeps its own knowledge. A number keeps its relative position
in the range, a choice its relative position in the list. Counts, effects, similarities and sources are unchanged.
Statements of rules would reveal the true knob, so they are replaced by the text of the shuffled condition. A session
that performs as well with the placebo as with its real memory has gained nothing from the real memory. Pure.
"""

import random
from collections.abc import Mapping
from typing import Any

from ..data.errors import ConfigError
from .action_space import ActionSpace, Knob
from .conditions import Condition, parse_condition
from .proposals import value_at
from .surrogate import position


class Placebo:
    """A permutation of the knobs of one backbone."""

    def __init__(self, space: ActionSpace, backbone: str, seed: int) -> None:
        knobs = space.knobs(backbone)
        self._backbone = backbone
        self._knobs = {knob.name: knob for knob in knobs}
        order = list(knobs)
        random.Random(f"placebo:{seed}").shuffle(order)
        self._target_of = {a.name: b for a, b in zip(order, [*order[1:], *order[:1]], strict=True)}

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Map settings that differ from the default (knob -> value) to other knobs."""
        return dict(self._mapped(name, value) for name, value in settings.items() if self._offers(name, value))

    def condition(self, text: str) -> str | None:
        """The condition on the mapped knob; None if `text` is on a knob that the protocol does not offer."""
        try:
            condition = parse_condition(text)
        except ConfigError:
            return None
        if condition.knob not in self._target_of:
            return None
        mapped = [self._mapped(condition.knob, value) for value in condition.values]
        target = self._target_of[condition.knob]
        return str(Condition(target.name, self._operator(condition, target, mapped[0][1]), tuple(v for _, v in mapped)))

    def effects(self, effects: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Pooled effects (`Knowledge.pooled_effects`), mapped to other knobs."""
        shuffled = {}
        for name, effect in effects.items():
            if name in self._target_of:
                values = [
                    {**row, "value": self._mapped(name, row["value"])[1]}
                    for row in effect["values"]
                    if self._offers(name, row["value"])
                ]
                shuffled[self._target_of[name].name] = {**effect, "values": values}
        return shuffled

    def rule(self, rule: Mapping[str, Any]) -> dict[str, Any] | None:
        """A rule of the prior, mapped to another knob; None for a rule without a condition, which is text only."""
        condition = self.condition(rule["condition"]) if rule.get("condition") else None
        if condition is None:
            return None
        return {**rule, "condition": condition, "statement": f"“{rule['kind']} {condition}”"}

    def _offers(self, name: str, value: Any) -> bool:
        try:
            return name in self._knobs and self._knobs[name].check(value) is not None
        except ConfigError:
            return False

    def _mapped(self, name: str, value: Any) -> tuple[str, Any]:
        source, target = self._knobs[name], self._target_of[name]
        fraction = _relative_position(source, value)
        if target.low is not None:
            mapped: Any = value_at(target, min(max(fraction, 0.0), 1.0))
        else:
            choices = target.choices or (False, True)
            mapped = choices[min(int(fraction * len(choices)), len(choices) - 1)]
            if mapped == target.defaults[self._backbone]:  # a change must map to a change
                mapped = choices[(choices.index(mapped) + 1) % len(choices)]
        return target.name, mapped

    def _operator(self, condition: Condition, target: Knob, value: Any) -> str:
        if target.low is None:
            return "in" if condition.operator == "in" else "=="
        if condition.operator in ("<", "<=", ">", ">="):
            return condition.operator
        if condition.operator == "in":
            return "in"
        return ">=" if value > target.defaults[self._backbone] else "<="


def _relative_position(knob: Knob, value: Any) -> float:
    """Relative position of a value in the range or the choices of its knob, in [0, 1]."""
    if knob.low is not None:
        return position(knob, value)
    choices = knob.choices or (False, True)
    return (choices.index(value) + 0.5) / len(choices)
