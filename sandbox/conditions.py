"""Conditions on knobs: the machine-readable form of a rule.

    condition := KNOB OP VALUE | KNOB in {VALUE, …}
    OP        := == | != | < | <= | > | >=        choices and booleans: == and != only
    VALUE     := number | true | false | word     words may be quoted

Examples: "hidden_dim > 128", "position in {absolute, both}", "causal == false".
"""

import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..data.errors import ConfigError
from ..models.config import KNOBS, TrialConfig, knobs_named
from ..models.knobs.declaration import Value
from .action_space import unknown_knob

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_SINGLE = re.compile(r"\s*(\w+)\s*(==|!=|<=|>=|<|>)\s*([^<>={}]+?)\s*")
_SET = re.compile(r"\s*(\w+)\s+in\s*\{([^{}]*)\}\s*")
_EXAMPLES = (
    "the operators are ==, !=, <, <=, >, >= and in; write e.g. 'hidden_dim > 128', 'causal == false' or "
    "'position in {absolute, both}'"
)
MAX_LENGTH = 300


@dataclass(frozen=True)
class Condition:
    """One comparison; `str()` is its canonical text, which parses to an equal condition."""

    knob: str
    operator: str  # a key of _COMPARE, or "in"
    values: tuple[Value, ...]  # a single value, unless the operator is "in"

    def matches(self, config: TrialConfig | Mapping[str, Any]) -> bool:
        """Whether a configuration (or its `model_dump()`) satisfies the condition."""
        actual = getattr(config, self.knob) if isinstance(config, TrialConfig) else config[self.knob]
        if self.operator == "in":
            return actual in self.values
        return _COMPARE[self.operator](actual, self.values[0])

    def __str__(self) -> str:
        values = [_format_value(value) for value in self.values]
        text = f"{{{', '.join(values)}}}" if self.operator == "in" else values[0]
        return f"{self.knob} {self.operator} {text}"


@functools.lru_cache(maxsize=10_000)  # every trial is checked against the same few conditions
def parse_condition(text: str) -> Condition:
    """Parse `text`; raises ConfigError for a syntax error, an unknown knob, or a value that the knob cannot take."""
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"a condition has at most {MAX_LENGTH} characters, not {len(text)}; {_EXAMPLES}")
    if match := _SET.fullmatch(text):
        knob, op, words = match[1], "in", [word.strip() for word in match[2].split(",")]
    elif match := _SINGLE.fullmatch(text):
        knob, op, words = match[1], match[2], [match[3]]
    else:
        raise ConfigError(f"condition {text!r} is not KNOB OPERATOR VALUE{_meant(text)}; {_EXAMPLES}")
    if knob not in KNOBS:
        raise ConfigError(f"condition {text!r}: {unknown_knob(knob)}")
    values = tuple(_value(knob, word) for word in words)
    if op not in ("==", "!=", "in") and isinstance(values[0], bool | str):
        raise ConfigError(f"condition {text!r}: the values of {knob} have no order; use ==, != or in")
    return Condition(knob, op, tuple(dict.fromkeys(values)))


def _meant(text: str) -> str:
    """What a text that is no condition may mean, as the continuation of a sentence; empty if it names no knob."""
    named = knobs_named(text)
    if len(named) > 1:
        return f" (it names {' and '.join(named)}; state a rule for each)"
    return f" (did you mean {named[0]}?)" if named and named[0] not in text.split() else ""


def _value(name: str, word: str) -> Value:
    knob = KNOBS[name]
    if knob.type == "trials":
        raise ConfigError(f"condition on {name}: its values are trials of one session; state it in words instead")
    if knob.type == "bool":
        return _choice(name, word.lower(), {"true": True, "false": False})
    if knob.type == "choice":
        return _choice(name, word.strip("\"'"), {choice: choice for choice in knob.choices})
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"condition on {name}: {word!r} is not a finite number; {_EXAMPLES}")
    return int(number) if knob.type == "int" and number.is_integer() else number


def _choice(knob: str, word: str, choices: Mapping[str, Value]) -> Value:
    if word not in choices:
        raise ConfigError(f"condition on {knob}: {word!r} is not one of its values; choose from {[*choices]}")
    return choices[word]


def _format_value(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
