"""The action space: which knobs an agent may turn, how far, and what each is for.

SANDBOX.md states it (`protocol.py`) within the engine's bounds, which the knobs' declarations own (`models/knobs/`). A
knob that SANDBOX.md leaves out is fixed at the backbone's plain default.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ..data.errors import ConfigError
from ..models.config import KNOBS, TrialConfig, check_combination, make_config, similar_knobs
from ..models.knobs.declaration import Dimension, KnobType, Value

MAX_REFUSED = 10  # reasons in one refusal: enough to mend a call, too few to flood a reader
_TITLES = {"sasrec": "SASRec", "hstu": "HSTU"}
_NOT_KNOBS = {
    "seed": "seeds belong to the server: one per configuration and repetition; leave seed out",
    "backbone": "a session tunes one backbone; open another session for the other one",
}


class Knob(BaseModel):
    """One knob as SANDBOX.md offers it. `defaults` has one value per backbone that the knob exists for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    type: KnobType
    dimension: Dimension
    low: int | float | None = None  # both ends belong to the range
    high: int | float | None = None
    scale: Literal["linear", "log"] | None = None  # how a search should step through the range
    choices: tuple[str, ...] = ()
    defaults: dict[str, Value]

    def check(self, value: object) -> Value:
        """`value` as the engine takes it; raises ConfigError for a wrong type or a value outside the range."""
        if self.type == "choice":
            if isinstance(value, str) and value in self.choices:
                return value
            raise ConfigError(f"{self.name}={value!r:.60} is not one of its choices; choose one of {[*self.choices]}")
        if self.type == "bool":
            if isinstance(value, bool):
                return value
            raise ConfigError(f"{self.name}={value!r:.60} is not a truth value; give true or false")
        return self._number(value)

    def _number(self, value: object) -> int | float:
        assert self.low is not None and self.high is not None  # the reader of SANDBOX.md sees to it
        wanted = f"{'a whole' if self.type == 'int' else 'a'} number from {self.low:g} to {self.high:g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{self.name}={value!r:.60} is not a number; give {wanted}, without quotes")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{self.name}={value!r} is not finite; give {wanted}")
        if self.type == "int" and isinstance(value, float):
            raise ConfigError(f"{self.name}={value!r} has a decimal point; give {wanted}, e.g. {math.floor(value)}")
        if not self.low <= value <= self.high:
            raise ConfigError(f"{self.name}={value!r:.60} is out of range; give {wanted}")
        return value if self.type == "int" else float(value) + 0.0  # -0.0 and 0 are one configuration


class ActionSpace(BaseModel):
    """All knobs that a protocol offers, for both backbones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entries: tuple[Knob, ...]

    def knobs(self, backbone: str) -> list[Knob]:
        """The knobs of `backbone`, in the order of SANDBOX.md."""
        return [knob for knob in self.entries if backbone in knob.defaults]

    def default(self, backbone: str) -> TrialConfig:
        """Where a session starts; ConfigError for an unknown backbone."""
        return make_config(backbone, **{knob.name: knob.defaults[backbone] for knob in self.knobs(backbone)})

    def resolve(self, base: TrialConfig, changes: Mapping[str, Any]) -> TrialConfig:
        """`base` with `changes` applied.

        Raises ConfigError, naming every change that is refused: an unknown knob, a wrong type, a value out of range, a
        knob without meaning on this backbone or fixed by SANDBOX.md; and then combinations without meaning.
        """
        settings, refused = base.model_dump(), []
        unknown = [name for name in changes if name not in KNOBS and name not in _NOT_KNOBS]
        if len(unknown) > 1:  # otherwise each would list the knobs there are
            refused.append(_unknown_knobs(unknown))
            changes = {name: changes[name] for name in changes if name in KNOBS or name in _NOT_KNOBS}
        for name, value in changes.items():
            try:
                settings[name] = self._offered(base.backbone, name).check(value)
            except ConfigError as error:
                refused.append(str(error))
        if refused:
            more = f"; and {len(refused) - MAX_REFUSED} more" if len(refused) > MAX_REFUSED else ""
            raise ConfigError("; ".join(refused[:MAX_REFUSED]) + more)
        config = TrialConfig(**settings)
        check_combination(config)
        return config

    def dimension(self, knob: str) -> str:
        """The dimension that `knob` belongs to; ConfigError where SANDBOX.md does not offer it."""
        for entry in self.entries:
            if entry.name == knob:
                return entry.dimension
        raise ConfigError(unknown_knob(knob) if knob not in KNOBS else f"{knob} is fixed by SANDBOX.md")

    def describe(self, backbone: str) -> list[dict[str, Any]]:
        """The knobs of `backbone` as plain values; keys that say nothing about a knob are None."""
        return [
            {
                "knob": knob.name,
                "type": knob.type,
                "low": knob.low,
                "high": knob.high,
                "scale": knob.scale,
                "choices": [False, True] if knob.type == "bool" else list(knob.choices) or None,
                "default": knob.defaults[backbone],
                "dimension": knob.dimension,
            }
            for knob in self.knobs(backbone)
        ]

    def differences(self, config: TrialConfig) -> dict[str, Any]:
        """The knobs in which `config` differs from its backbone's default, with their values."""
        default = self.default(config.backbone).model_dump()
        return {knob: value for knob, value in config.model_dump().items() if value != default[knob]}

    def _offered(self, backbone: str, name: str) -> Knob:
        entry = next((knob for knob in self.knobs(backbone) if knob.name == name), None)
        if entry is not None:
            return entry
        if name not in KNOBS:
            raise ConfigError(unknown_knob(name))
        if backbone not in KNOBS[name].defaults:
            owner = " and ".join(KNOBS[name].defaults)
            raise ConfigError(f"{name} has no meaning on {backbone}: it belongs to {owner}; leave it out")
        fixed = getattr(self.default(backbone), name)
        raise ConfigError(f"{name} is fixed at {fixed!r} for {backbone}: SANDBOX.md does not offer it; leave it out")


def unknown_knob(name: str) -> str:
    """Why `name` is no knob, with the nearest ones there are."""
    if name in _NOT_KNOBS:
        return f"{name} is not a knob: {_NOT_KNOBS[name]}"
    near = similar_knobs(name)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the knobs are {', '.join(sorted(KNOBS))}"
    return f"{name!r:.60} is not a knob; {hint}"


def _unknown_knobs(names: list[str]) -> str:
    """Why none of several `names` is a knob; all knobs are listed once, at the end, if a name has no suggestion."""
    more = f" and {len(names) - MAX_REFUSED} more" if len(names) > MAX_REFUSED else ""
    suggestions = {name: similar_knobs(name) for name in names[:MAX_REFUSED]}
    named = ", ".join(
        f"{name!r:.60}" + (f" (did you mean {' or '.join(near)}?)" if near else "")
        for name, near in suggestions.items()
    )
    known = "" if all(suggestions.values()) else f"; the knobs are {', '.join(sorted(KNOBS))}"
    return f"{named}{more} are not knobs{known}"


def inert_changes(config: TrialConfig, changes: Mapping[str, Any]) -> dict[str, str]:
    """Those of `changes` whose value makes no difference to `config`, each with the reason."""
    return {knob: reason for knob in changes if (reason := _why_inert(config, knob))}


def _why_inert(config: TrialConfig, knob: str) -> str:
    """Why `knob` makes no difference to `config`; empty where it acts."""
    declared = KNOBS.get(knob)
    if declared is None:
        return ""
    if config.backbone not in declared.defaults:
        return f"only {' and '.join(_TITLES[backbone] for backbone in declared.defaults)} has it"
    return declared.inert.reason if declared.inert and declared.inert.holds(config) else ""


def effective(config: TrialConfig) -> dict[str, Any]:
    """The part of a configuration that acts: configurations with equal effective parts train and rank alike."""
    settings = config.model_dump()
    inert = inert_changes(config, settings)
    return {knob: value for knob, value in settings.items() if knob not in inert}
