"""When two conditions on a knob say the same: equal after normalisation, or not told apart by any value tried. Pure.

Conditions are canonical texts of `sandbox/conditions.py`, "KNOB OPERATOR VALUE" or "KNOB in {VALUE, ...}". A condition
on a knob that this engine does not have is only equal to itself.
"""

import functools
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from ..models.config import KNOBS

_CONDITION = re.compile(r"(\w+) *(==|!=|<=|>=|<|>|in) *(.+)")


class HalfLine(NamedTuple):
    """The numbers on one side of a threshold: at least it (direction 1) or at most it (-1), or beyond it if open."""

    knob: str
    direction: int
    threshold: float
    closed: bool

    def holds(self, value: float) -> bool:
        """Whether a number lies on the half-line."""
        return (value - self.threshold) * self.direction > 0 or (self.closed and value == self.threshold)


@functools.lru_cache(maxsize=10_000)  # a new rule is compared with all rules on its knob
def normalised_condition(text: str) -> str:
    """A text that is equal for conditions that hold for the same values of the knob."""
    match = _CONDITION.fullmatch(text.strip())
    if match is None or match[1] not in KNOBS:
        return " ".join(text.split())
    knob, operator, rest = match.groups()
    if line := half_line(text):
        return f"{knob} {'>' if line.direction > 0 else '<'}{'=' * line.closed} {line.threshold!r}"
    values = {_word(word) for word in rest.strip("{}").split(",")}
    choices = set(_choices(knob))
    if operator == "!=" and choices:
        return f"{knob} in {sorted(choices - values)}"
    return f"{knob} {'not in' if operator == '!=' else 'in'} {sorted(values)}"


def half_line(text: str) -> HalfLine | None:
    """The half-line of a condition with <, <=, > or >=; thresholds of whole-numbered knobs become closed integers."""
    match = _CONDITION.fullmatch(text.strip())
    if match is None or match[1] not in KNOBS or match[2] not in ("<", "<=", ">", ">="):
        return None
    try:
        threshold = float(match[3])
    except ValueError:
        return None
    direction, closed = (1 if match[2][0] == ">" else -1), "=" in match[2]
    if KNOBS[match[1]].type == "int":
        threshold, closed = _next_whole(threshold, direction, closed), True
    return HalfLine(match[1], direction, threshold, closed)


def not_told_apart(one: HalfLine, other: HalfLine, tried: Iterable[float]) -> bool:
    """Whether both half-lines hold for the same of the values tried, and for at least one of them."""
    pairs = [(one.holds(value), other.holds(value)) for value in tried]
    return (one.knob, one.direction) == (other.knob, other.direction) and (True, True) in pairs and all(
        first == second for first, second in pairs
    )


def _next_whole(threshold: float, direction: int, closed: bool) -> float:
    """The first whole number on the half-line: "> 128" and ">= 128.5" begin at 129."""
    nearest = math.ceil(threshold) if direction > 0 else math.floor(threshold)
    return float(nearest + direction) if nearest == threshold and not closed else float(nearest)


def _choices(knob: str) -> tuple[str, ...]:
    return ("true", "false") if KNOBS[knob].type == "bool" else KNOBS[knob].choices


def _word(word: str) -> str:
    text = word.strip().strip("\"'")
    try:
        return repr(float(text))
    except ValueError:
        return text
