"""The action space as an agent sees it: the knobs of the brief, with whatever bounds the user has left open."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.errors import ConfigError
from ..models.config import TrialConfig, fingerprint, make_config
from ..sandbox.action_space import effective, inert_changes
from .base import Knobs

SIGNIFICANT_DIGITS = 3

@dataclass(frozen=True)
class Knob:
    """One knob of the brief."""

    name: str
    type: str  # int, float, bool, choice
    default: Any
    dimension: str
    low: float | None = None
    high: float | None = None
    scale: str = "linear"  # or log
    choices: tuple[Any, ...] = ()

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> "Knob":
        """From a row of `action_space`."""
        choices = (False, True) if row["type"] == "bool" else tuple(row.get("choices") or ())
        return cls(
            row["knob"], row["type"], row["default"], row["dimension"],
            row.get("low"), row.get("high"), row.get("scale") or "linear", choices,
        )

    @property
    def numeric(self) -> bool:
        """True for a knob with bounds instead of choices."""
        return not self.choices and self.low is not None and self.high is not None

    def allows(self, value: Any) -> bool:
        """Whether the user's action space lets this value through."""
        if self.choices:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if self.type == "int" and not float(value).is_integer():
            return False
        return self.low is not None and self.high is not None and self.low <= value <= self.high

    def draw(self, generator: np.random.Generator) -> Any:
        """A value from the whole range, uniform on the knob's own scale."""
        if not self.numeric:
            return self.choices[int(generator.integers(len(self.choices)))]
        assert self.low is not None and self.high is not None
        if self.scale == "log" and self.low > 0:
            value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = float(generator.uniform(self.low, self.high))
        return self.tidy(value)

    def tidy(self, value: float) -> int | float:
        """Few digits, the knob's type, inside the bounds."""
        assert self.low is not None and self.high is not None
        bounded = min(max(value, self.low), self.high)
        if self.type == "int":
            return int(min(max(round(bounded), math.ceil(self.low)), math.floor(self.high)))
        short = float(f"{bounded:.{SIGNIFICANT_DIGITS}g}")
        return short if self.low <= short <= self.high else bounded


class Space:
    """The knobs that a session may turn."""

    def __init__(self, backbone: str, knobs: Iterable[Knob]) -> None:
        self.backbone = backbone
        self.knobs = {knob.name: knob for knob in knobs}

    @classmethod
    def read(cls, brief: Mapping[str, Any]) -> "Space":
        """From the brief of a session."""
        return cls(brief["backbone"], [Knob.read(row) for row in brief["action_space"]])

    def complete(self, settings: Knobs) -> Knobs:
        """Every knob's value under `settings`, the knobs that differ from the default."""
        return {name: knob.default for name, knob in self.knobs.items()} | settings

    def config(self, settings: Knobs) -> TrialConfig | None:
        """The whole configuration, or None where the engine does not take the combination."""
        try:
            return make_config(self.backbone, **self.complete(settings))
        except ConfigError:
            return None

    def key(self, settings: Knobs) -> str:
        """One text per configuration: equal keys train and rank alike. Empty for a combination that is not valid."""
        config = self.config(settings)
        return fingerprint(effective(config)) if config else ""

    def dimension(self, knob: str) -> str:
        """The dimension that a knob belongs to; 'optimisation' for one that the brief does not list."""
        return self.knobs[knob].dimension if knob in self.knobs else "optimisation"

    def allows(self, changes: Knobs, over: Knobs) -> bool:
        """Whether `changes` over the settings `over` use open knobs only, all act, and make a valid configuration."""
        if not all(name in self.knobs and self.knobs[name].allows(value) for name, value in changes.items()):
            return False
        config = self.config(over | changes)
        return config is not None and not inert_changes(config, changes)
