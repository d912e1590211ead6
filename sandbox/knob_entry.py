"""Turn an entry of SANDBOX.md into a Knob, checked against the bounds of the engine."""

import itertools
from typing import Any

from pydantic import ValidationError

from ..data.errors import ConfigError
from ..models.config import KNOBS, TrialConfig
from ..models.knobs.declaration import BACKBONES, DIMENSIONS, DeclaredKnob, KnobType
from .action_space import Knob, unknown_knob
from .page import Entry

_COMMON = ("type", "dimension", "default", "backbones")
_NUMBER = (*_COMMON, "low", "high", "scale", "levels")
KEYS: dict[KnobType, tuple[str, ...]] = {
    "int": _NUMBER,
    "float": _NUMBER,
    "bool": _COMMON,
    "choice": (*_COMMON, "choices"),
    "trials": _COMMON,
}
"""The keys that an entry may have, by type of knob."""


def read_knob(entry: Entry) -> Knob:
    """The knob that `entry` describes; raises ProtocolError, with the line, for the first error in the entry."""
    if entry.name not in KNOBS:
        raise entry.error(unknown_knob(entry.name))
    reader = _Reader(entry, KNOBS[entry.name])
    reader.check_keys()
    knob = Knob(
        name=entry.name,
        type=reader.kind(),
        dimension=reader.dimension(),
        defaults={},
        **reader.range_or_choices(),
    )
    return reader.with_defaults(knob)


class _Reader:
    """Reads the values of one entry; every error names its line."""

    def __init__(self, entry: Entry, declared: DeclaredKnob) -> None:
        self.entry = entry
        self.name = entry.name
        self.declared = declared

    def check_keys(self) -> None:
        for key in self.entry.values:
            if key not in KEYS[self.declared.type]:
                known = ", ".join(KEYS[self.declared.type])
                raise self.entry.error(f"{key} is not a key of a {self.declared.type} knob; the keys are {known}")

    def kind(self) -> KnobType:
        given = self.entry.values.get("type", self.declared.type)
        if given != self.declared.type:
            raise self.entry.error(f"type {given!r} is wrong for {self.name}; write {self.declared.type}")
        return self.declared.type

    def dimension(self) -> Any:
        dimension = self._required("dimension")
        if dimension not in DIMENSIONS:
            raise self.entry.error(f"dimension {dimension!r} is unknown; choose one of {', '.join(DIMENSIONS)}")
        return dimension

    def range_or_choices(self) -> dict[str, Any]:
        """The range or levels of a numeric knob, the choices of a choice knob, nothing for other knobs."""
        if self.declared.type == "choice":
            return {"choices": self.choices()}
        if self.declared.type in ("bool", "trials"):
            return {}
        return self.levels() if "levels" in self.entry.values else self.bounds()

    def bounds(self) -> dict[str, Any]:
        low, high = (self._within_engine_bounds(key, self._required(key)) for key in ("low", "high"))
        if low > high:
            raise self.entry.error(f"low={low!r} is above high={high!r}; exchange them")
        scale = self.entry.values.get("scale", "linear")
        if scale not in ("linear", "log"):
            raise self.entry.error(f"scale {scale!r} is unknown; choose linear or log")
        if scale == "log" and low <= 0:
            raise self.entry.error(f"a log scale needs low > 0, not low={low!r}; use a linear scale or raise low")
        number = int if self.declared.type == "int" else float
        return {"low": number(low), "high": number(high), "scale": scale}

    def levels(self) -> dict[str, Any]:
        """The levels, with their ends as the range; a search steps from level to level, whatever their distance."""
        given = self.entry.values["levels"]
        if not isinstance(given, list) or not given:
            raise self.entry.error(f"{self.name} has no levels; list at least one number, or give low and high")
        if beside := [key for key in ("low", "high", "scale") if key in self.entry.values]:
            raise self.entry.error(f"levels exclude {', '.join(beside)}; give either levels or a range")
        number = int if self.declared.type == "int" else float
        levels = [number(self._within_engine_bounds("levels", level)) for level in given]
        for below, above in itertools.pairwise(levels):
            if above <= below:
                raise self.entry.error(f"levels ascend, and {above!r} follows {below!r}; sort them, each value once")
        return {"low": levels[0], "high": levels[-1], "scale": "linear", "levels": tuple(levels)}

    def choices(self) -> tuple[str, ...]:
        choices = self._required("choices")
        if not isinstance(choices, list) or not choices:
            known = ", ".join(self.declared.choices)
            raise self.entry.error(f"{self.name} has no choices; name at least one of {known}")
        for choice in choices:
            self._within_engine_bounds("choices", choice)
        if len(set(choices)) < len(choices):
            raise self.entry.error(f"choices={choices!r} contains a duplicate; remove it")
        return tuple(choices)

    def with_defaults(self, knob: Knob) -> Knob:
        backbones = self._backbones()
        default = self._required("default")
        if not isinstance(default, dict):
            default = dict.fromkeys(backbones, default)
        if self.declared.type == "trials" and any(default.values()):
            raise self.entry.error(f"a page cannot name the trials of a session: the default of {self.name} is none")
        if sorted(default) != sorted(backbones):
            raise self.entry.error(f"default has values for {sorted(default)}, but {self.name} is for {backbones}")
        try:  # a page's default is a value of its own, which the knob's resolution does not round
            checked = {b: knob.model_copy(update={"defaults": {b: default[b]}}).check(default[b]) for b in backbones}
        except ConfigError as error:
            raise self.entry.error(f"the default is invalid: {error}") from None
        return knob.model_copy(update={"defaults": checked})

    def _backbones(self) -> list[str]:
        possible = [*self.declared.defaults]
        given = self.entry.values.get("backbones", list(BACKBONES))
        if not isinstance(given, list) or not given or len(given) != len({*map(str, given)}):
            raise self.entry.error(f"{self.name} is offered for no backbone; give a default for one of {possible}")
        for backbone in given:
            if backbone not in possible:
                raise self.entry.error(f"{self.name} has no effect on {backbone!r}; offer it for {possible} only")
        return given

    def _required(self, key: str) -> Any:
        if key not in self.entry.values:
            raise self.entry.error(f"{self.name} lacks {key}; add it")
        return self.entry.values[key]

    def _within_engine_bounds(self, key: str, value: Any) -> Any:
        try:
            TrialConfig.model_validate({"backbone": "sasrec", self.name: value})
        except ValidationError as error:
            message = error.errors(include_url=False)[0]["msg"]
            raise self.entry.error(f"{key}: {self.name}={value!r} is outside the engine's bounds: {message}") from None
        return value
