"""Reconcile a new rule with the rules that are supported already, so that no value is both preferred and avoided. Pure.

A step of a knob says which side of a threshold is better, and the same trials can be read as a rule of either kind:
16 → 8 that lost is "avoid <= 8" as well as "prefer >= 16". After 0 → 8 gained ("prefer >= 8"), the first reading would
avoid the value 8, which the other rule recommends, and the second one contradicts nothing.

Not covered: two rules in the same direction, such as "prefer >= 8" and "avoid >= 64". The second one is an exception
to the first, and both can be followed.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ..memory.records import RuleKind
from .conditions import Condition
from .rule_evidence import CLEAR_Z, Move

SIDES = {">": 1, ">=": 1, "<": -1, "<=": -1}
OPPOSITE: dict[RuleKind, RuleKind] = {"prefer": "avoid", "avoid": "prefer"}


class Claimed(NamedTuple):
    """The part of a rule to prefer or avoid a condition that trials can check."""

    kind: RuleKind
    condition: Condition

    def __str__(self) -> str:
        return f"{self.kind} {self.condition}"


def reconciled(rule: Claimed, supported: Sequence[Claimed], moves: Sequence[Move]) -> Claimed:
    """`rule`, or a rule that says the same of `moves` and holds for no value that one of `supported` speaks against.

    The trials that support `rule` are read from their other end, as a rule of the opposite kind. Without such a trial,
    the condition is narrowed to the values of which the supported rule says nothing.
    """
    values = [getattr(config, rule.condition.knob) for m in moves for config in (m.base, m.trial.configuration)]
    against = next((other for other in supported if _contradict(rule, other, values)), None)
    if against is None:
        return rule
    return _from_other_end(rule, moves) or Claimed(rule.kind, _outside(against.condition))


def _contradict(one: Claimed, other: Claimed, values: Sequence[float]) -> bool:
    """Whether one prefers and the other avoids a common value of opposite half-lines of a knob."""
    knob, side = one.condition.knob, _side(one.condition)
    if (other.condition.knob, _side(other.condition)) != (knob, -side) or not side or other.kind != OPPOSITE[one.kind]:
        return False
    candidates = [*values, *one.condition.values, *other.condition.values]
    return any(one.condition.matches({knob: v}) and other.condition.matches({knob: v}) for v in candidates)


def _from_other_end(rule: Claimed, moves: Sequence[Move]) -> Claimed | None:
    """The opposite kind of rule on the side that the supporting trials left; None if no trial supports it alone."""
    knob, wanted = rule.condition.knob, 1 if rule.kind == "prefer" else -1
    left = [
        getattr(m.base, knob)
        for m in moves
        if set(m.changed) == {knob} and m.z * wanted >= CLEAR_Z
        and rule.condition.matches(m.trial.config) and not rule.condition.matches(m.base)
    ]  # fmt: skip
    if not left:
        return None
    upper = _side(rule.condition) < 0  # the trials left the upper side
    condition = Condition(knob, ">=" if upper else "<=", (min(left) if upper else max(left),))
    return Claimed(OPPOSITE[rule.kind], condition)


def _outside(condition: Condition) -> Condition:
    """The complement of a half-line."""
    complement = {">": "<=", ">=": "<", "<": ">=", "<=": ">"}[condition.operator]
    return Condition(condition.knob, complement, condition.values)


def _side(condition: Condition) -> int:
    """1 if larger values satisfy the condition, -1 if smaller ones do, 0 if it is no half-line."""
    return SIDES.get(condition.operator, 0)
