"""From one [knobs.NAME] table of SANDBOX.md to a Knob, held against the bounds of the engine."""

from typing import Any, cast

from pydantic import ValidationError

from ..data.errors import ConfigError
from ..models.config import TrialConfig
from .action_space import BACKBONES, DIMENSIONS, ENGINE_KNOBS, ONLY_BACKBONE, Knob, KnobType, unknown_knob
from .blocks import Block

_COMMON = ("type", "dimension", "default", "backbones")
_NUMBER = (*_COMMON, "low", "high", "scale")
KEYS: dict[str, tuple[str, ...]] = {
    "int": _NUMBER,
    "float": _NUMBER,
    "bool": _COMMON,
    "choice": (*_COMMON, "choices"),
}
"""The keys that a table may have, by the knob's type."""


def read_knob(block: Block, name: str, table: dict[str, Any]) -> Knob:
    """The knob that `table` states; raises ProtocolError with the line of the first key that breaks a rule."""
    reader = _Reader(block, name)
    kind = reader.kind(table)
    reader.known_keys(kind, table)
    values: dict[str, Any] = {"name": name, "type": kind, "dimension": reader.dimension(table), "defaults": {}}
    if kind in ("int", "float"):
        values |= reader.bounds(kind, table)
    if kind == "choice":
        values |= {"choices": reader.choices(table)}
    return reader.with_defaults(Knob(**values), table)


class _Reader:
    """Reads the keys of one table; every refusal points at the line of the key."""

    def __init__(self, block: Block, name: str) -> None:
        self.block = block
        self.name = name
        if name not in ENGINE_KNOBS:
            raise self.error(None, unknown_knob(name))

    def error(self, key: str | None, text: str) -> Exception:
        return self.block.error(f"knobs.{self.name}", key, text)

    def kind(self, table: dict[str, Any]) -> KnobType:
        engine = _engine_kind(self.name)
        given = self._required(table, "type")
        if given != engine:
            raise self.error("type", f"type={given!r} is wrong for {self.name}; write type = {engine!r}")
        return engine

    def known_keys(self, kind: KnobType, table: dict[str, Any]) -> None:
        for key in table:
            if key not in KEYS[kind]:
                raise self.error(key, f"{key} is no key of a knob of type {kind}; the keys are {', '.join(KEYS[kind])}")

    def dimension(self, table: dict[str, Any]) -> str:
        dimension = self._required(table, "dimension")
        if dimension not in DIMENSIONS:
            raise self.error("dimension", f"dimension={dimension!r} is unknown; choose one of {', '.join(DIMENSIONS)}")
        return str(dimension)

    def bounds(self, kind: KnobType, table: dict[str, Any]) -> dict[str, Any]:
        low, high = (self._engine_takes(key, self._required(table, key)) for key in ("low", "high"))
        if low > high:
            raise self.error("low", f"low={low!r} lies above high={high!r}; exchange them")
        scale = table.get("scale", "linear")
        if scale not in ("linear", "log"):
            raise self.error("scale", f"scale={scale!r} is unknown; choose linear or log")
        if scale == "log" and low <= 0:
            raise self.error("scale", f"scale='log' needs low > 0, and low={low!r}; use linear or raise low")
        number = int if kind == "int" else float
        return {"low": number(low), "high": number(high), "scale": scale}

    def choices(self, table: dict[str, Any]) -> tuple[str, ...]:
        choices = self._required(table, "choices")
        if not isinstance(choices, list) or not choices:
            raise self.error("choices", f"choices={choices!r} is no list with an entry; give one choice at least")
        for choice in choices:
            self._engine_takes("choices", choice)
        if len(set(choices)) < len(choices):
            raise self.error("choices", f"choices={choices!r} names one twice; remove it")
        return tuple(choices)

    def with_defaults(self, knob: Knob, table: dict[str, Any]) -> Knob:
        backbones = self._backbones(table)
        default = self._required(table, "default")
        if not isinstance(default, dict):
            default = dict.fromkeys(backbones, default)
        if sorted(default) != sorted(backbones):
            raise self.error("default", f"default has values for {sorted(default)}, and {self.name} is for {backbones}")
        try:
            checked = {backbone: knob.check(default[backbone]) for backbone in backbones}
        except ConfigError as error:
            raise self.error("default", f"the default does not fit: {error}") from None
        return knob.model_copy(update={"defaults": checked})

    def _backbones(self, table: dict[str, Any]) -> list[str]:
        only = ONLY_BACKBONE.get(self.name)
        possible = [only] if only else list(BACKBONES)
        given = table.get("backbones", list(BACKBONES))
        if not isinstance(given, list) or not given or len(given) != len({*map(str, given)}):
            raise self.error("backbones", f"backbones={given!r} is no list of backbones; choose from {possible}")
        for backbone in given:
            if backbone not in possible:
                raise self.error("backbones", f"{self.name} does nothing on {backbone!r}; write backbones = {possible}")
        return given

    def _required(self, table: dict[str, Any], key: str) -> Any:
        if key not in table:
            raise self.error(None, f"[knobs.{self.name}] lacks {key}; add it")
        return table[key]

    def _engine_takes(self, key: str, value: Any) -> Any:
        try:
            TrialConfig.model_validate({"backbone": "sasrec", self.name: value})
        except ValidationError as error:
            message = error.errors(include_url=False)[0]["msg"]
            raise self.error(key, f"{key}: {self.name}={value!r} is beyond the engine: {message}") from None
        return value


def _engine_kind(name: str) -> KnobType:
    default = TrialConfig.model_fields[name].default
    return cast(KnobType, "choice" if isinstance(default, str) else type(default).__name__)
