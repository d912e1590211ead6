"""What earlier sessions recommend, as moves. Only conditions and settings are read, never the texts of other agents."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..data.errors import ConfigError
from ..sandbox.conditions import parse_condition
from .history import History
from .moves import Move, rungs
from .space import Knob

CONFIGURATION_GAIN = 0.25
"""What the best configuration of an equal dataset gains over the default, as a share; less where it is less alike."""
RULE_GAIN = 0.08
SECOND_CHOICE = 0.2
"""A second dataset's configuration is tried early only if the first one's did not serve."""


def recommended(history: History) -> list[Move]:
    """Moves made of the brief's prior: whole configurations over the default, and single rules over the incumbent."""
    prior = history.situation.brief.get("prior") or []
    configurations = [entry for entry in prior if entry.get("type") == "configuration"]
    rules = [entry for entry in prior if entry.get("type") == "rule" and entry.get("kind") == "prefer"]
    return [*_configurations(configurations, history), *(m for rule in rules if (m := _rule(rule, history)))]


def _configurations(entries: list[Mapping[str, Any]], history: History) -> Iterator[Move]:
    served = False
    for entry in entries:
        knobs = history.space.knobs
        changes = {
            name: value
            for name, value in entry["config"].items()
            if name in knobs and knobs[name].allows(value) and value != knobs[name].default
        }
        if not changes:
            continue
        gain = CONFIGURATION_GAIN * float(entry.get("similarity", 0.5)) * (SECOND_CHOICE if served else 1)
        yield Move(changes, gain, f"the best configuration found on {entry['dataset']}", "default")
        served = served or history.space.key(changes) in history.known


def _rule(rule: Mapping[str, Any], history: History) -> Move | None:
    """The smallest step that makes the incumbent agree with a preference, or None where it does already."""
    if not rule.get("condition"):
        return None
    try:
        condition = parse_condition(rule["condition"])
    except ConfigError:
        return None  # written under another grammar
    knob = history.space.knobs.get(condition.knob)
    if knob is None:
        return None
    support, against = rule.get("support", 0), rule.get("contradiction", 0)
    gain = RULE_GAIN * float(rule.get("similarity", 0.5)) * (support + 1) / (support + against + 2)
    for value in _nearest_first(knob, history.current[knob.name]):
        config = history.space.config(history.settings("incumbent") | {knob.name: value})
        if config is not None and condition.matches(config):
            reason = f"a rule learnt on {rule.get('dataset') or 'another dataset'}: {rule['condition']}"
            return None if value == history.current[knob.name] else Move({knob.name: value}, gain, reason)
    return None


def _nearest_first(knob: Knob, current: Any) -> list[Any]:
    if not knob.numeric:
        return [current, *(choice for choice in knob.choices if choice != current)]
    return sorted({*rungs(knob), current}, key=lambda value: abs(value - current))
