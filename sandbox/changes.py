"""The changes of a trial as clients send them: an object of knobs, or a list of {knob, value} with values as text.

Some clients cannot send an object without declared properties, so a list says the same, and for a sweep a list of
texts. Others know one type of number only, or put every value into quotes. A value is therefore read by the declared
type of its knob; one that cannot be read stays as it is, and the action space refuses it by name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..data.errors import ConfigError
from ..models.config import KNOBS
from ..models.knobs.declaration import DeclaredKnob, KnobType

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?")
_LONGEST_NUMBER = 40  # characters
_NAMES = re.compile(r"[^\s,;+\[\]\"']+")  # the names of trials in "t004+t010", "t004, t010" or '["t004", "t010"]'
_NONE = ("none", "null")
_ASSIGNMENT = re.compile(r"\s*([^\s=:]+)\s*[=:]\s*(\S+)\s*")


class KnobValue(BaseModel):
    """A knob and the value that it is to have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    knob: str = Field(description="its name")
    value: str | bool | int | float = Field(description="as text, e.g. 0.001, true, dot, t004+t010")


def merged_changes(changes: Mapping[str, Any] | None, as_list: Sequence[KnobValue] | None) -> dict[str, Any]:
    """The changes that a call gives in one of the two forms, or in both if they agree; {} if it gives none.

    Raises ConfigError if the forms differ, or if the list gives a knob two values.
    """
    plain, from_list = _read(changes or {}), _from_list(as_list or [], "changes_list")
    if plain and from_list and plain != from_list:
        differing = [knob for knob in plain | from_list if plain.get(knob) != from_list.get(knob)]
        raise ConfigError(f"changes and changes_list differ in {', '.join(differing)[:60]}; give one of the two")
    return plain or from_list


def merged_settings(
    settings: Sequence[Mapping[str, Any]] | None, as_texts: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The settings of a sweep that a call gives in one of the two forms, or in both if they agree; [] for none.

    A text has the form "transition_weight=4, fusion=rerank". Raises ConfigError if the forms differ, or if a text has
    another form or gives a knob two values.
    """
    plain = [_read(setting) for setting in settings or []]
    from_texts = [_from_text(text, f"settings_list[{number}]") for number, text in enumerate(as_texts or [], 1)]
    if any(plain) and from_texts and plain != from_texts:
        raise ConfigError("settings and settings_list differ; give one of the two")
    return from_texts or plain


def _from_text(text: str, name: str) -> dict[str, Any]:
    parts = [_ASSIGNMENT.fullmatch(part) for part in text.split(",")]
    entries = [KnobValue(knob=part[1], value=part[2]) for part in parts if part]
    if len(entries) < len(parts):
        raise ConfigError(f"{name}={text!r:.60} is no setting; write knob=value, several separated by commas")
    return _from_list(entries, name)


def _read(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {knob: read_value(knob, value) for knob, value in changes.items()}


def _from_list(entries: Iterable[KnobValue], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in entries:
        value = read_value(entry.knob, entry.value)
        if entry.knob in found and found[entry.knob] != value:
            raise ConfigError(f"{name} gives {entry.knob!r:.60} two values; give one")
        found[entry.knob] = value
    return found


def read_value(name: str, given: Any) -> Any:
    """A value in the type of the knob `name`: a text is parsed, and 64.0 is 64 for an integer.

    Returns `given` for an unknown knob, and for a value that the type does not admit.
    """
    knob = KNOBS.get(name)
    if knob is None:
        return given
    if isinstance(given, str):
        return _parsed(knob, given.strip(), given)
    return _whole(given) if knob.type == "int" else given


def _parsed(knob: DeclaredKnob, text: str, given: str) -> Any:
    readers: dict[KnobType, Any] = {
        "int": lambda: _whole(_number(text)),
        "float": lambda: _number(text),
        "bool": lambda: {"true": True, "false": False}.get(text.lower()),
        "choice": lambda: next((choice for choice in knob.choices if choice.lower() == text.lower()), None),
        "trials": lambda: [] if text.lower() in _NONE else _NAMES.findall(text),
    }
    value = readers[knob.type]()
    return given if value is None else value


def _number(text: str) -> int | float | None:
    """The number that a text is: an int if it has neither a decimal point nor an exponent; None for another text."""
    lower = text.lower()
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(lower):
        return None
    return int(lower) if lower.lstrip("+-").isdecimal() else float(lower)


def _whole(value: Any) -> Any:
    """An integer for a float without a fraction; every other value as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
