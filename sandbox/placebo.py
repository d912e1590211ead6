"""The memory of a shuffled dataset: knowledge of the same form and strength, about the wrong knobs. For ablation only.

What was learnt about knob a is told about knob p(a), where p is one cycle through all knobs of the backbone, so that
no knob keeps its own; p is drawn from the session's seed. A number keeps its place in the range (a third of the way
up stays a third of the way up), a choice its place in the list. Counts, effects, similarities and sources stay as they
are. Texts would tell the truth, so they are replaced by what the condition says. A session that does as well with this
as with its real memory has learnt nothing from the real one. Pure.
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
    """One permutation of the knobs of a backbone."""

    def __init__(self, space: ActionSpace, backbone: str, seed: int) -> None:
        knobs = space.knobs(backbone)
        self._backbone = backbone
        self._knobs = {knob.name: knob for knob in knobs}
        order = list(knobs)
        random.Random(f"placebo:{seed}").shuffle(order)
        self._becomes = {a.name: b for a, b in zip(order, [*order[1:], *order[:1]], strict=True)}

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Knobs and values that differ from the default, moved to other knobs."""
        return dict(self._moved(name, value) for name, value in settings.items() if self._offers(name, value))

    def condition(self, text: str) -> str | None:
        """A condition about another knob, or None for one on a knob that the protocol does not offer."""
        try:
            condition = parse_condition(text)
        except ConfigError:
            return None
        if condition.knob not in self._becomes:
            return None
        moved = [self._moved(condition.knob, value) for value in condition.values]
        target = self._becomes[condition.knob]
        return str(Condition(target.name, self._operator(condition, target, moved[0][1]), tuple(v for _, v in moved)))

    def effects(self, effects: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Pooled effects (`Knowledge.pooled_effects`) under the names of other knobs."""
        shuffled = {}
        for name, effect in effects.items():
            if name in self._becomes:
                values = [
                    {**row, "value": self._moved(name, row["value"])[1]}
                    for row in effect["values"]
                    if self._offers(name, row["value"])
                ]
                shuffled[self._becomes[name].name] = {**effect, "values": values}
        return shuffled

    def rule(self, rule: Mapping[str, Any]) -> dict[str, Any] | None:
        """A rule of the prior about another knob; None for one without a condition, of which only the text is known."""
        condition = self.condition(rule["condition"]) if rule.get("condition") else None
        if condition is None:
            return None
        return {**rule, "condition": condition, "statement": f"“{rule['kind']} {condition}”"}

    def _offers(self, name: str, value: Any) -> bool:
        try:
            return name in self._knobs and self._knobs[name].check(value) is not None
        except ConfigError:
            return False

    def _moved(self, name: str, value: Any) -> tuple[str, Any]:
        source, target = self._knobs[name], self._becomes[name]
        place = _place(source, value)
        if target.low is not None:
            moved: Any = value_at(target, min(max(place, 0.0), 1.0))
        else:
            choices = target.choices or (False, True)
            moved = choices[min(int(place * len(choices)), len(choices) - 1)]
            if moved == target.defaults[self._backbone]:  # a change stays a change
                moved = choices[(choices.index(moved) + 1) % len(choices)]
        return target.name, moved

    def _operator(self, condition: Condition, target: Knob, value: Any) -> str:
        if target.low is None:
            return "in" if condition.operator == "in" else "=="
        if condition.operator in ("<", "<=", ">", ">="):
            return condition.operator
        if condition.operator == "in":
            return "in"
        return ">=" if value > target.defaults[self._backbone] else "<="


def _place(knob: Knob, value: Any) -> float:
    """Where a value lies in its knob, in [0, 1]."""
    if knob.low is not None:
        return position(knob, value)
    choices = knob.choices or (False, True)
    return (choices.index(value) + 0.5) / len(choices)
