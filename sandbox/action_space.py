"""The action space: which knobs an agent may change, within which ranges, and with which defaults.

SANDBOX.md defines it (`protocol.py`) within the engine's bounds, which are declared in `models/knobs/`. A knob that is
missing from SANDBOX.md is fixed at the engine's default for the backbone.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ..data.errors import ConfigError
from ..models.config import KNOBS, TrialConfig, check_combination, make_config, similar_knobs
from ..models.knobs.declaration import Dimension, KnobType, Value
from ..models.knobs.trial_names import ENSEMBLE, NAMING

MAX_ERRORS = 10  # errors reported per refusal
_TITLES = {"sasrec": "SASRec", "hstu": "HSTU"}
_NOT_KNOBS = {
    "seed": "seeds belong to the server: one per configuration and repetition; omit seed",
    "backbone": "a session tunes one backbone; open another session for the other backbone",
}


class Knob(BaseModel):
    """One knob as offered by SANDBOX.md. `defaults` has one value per backbone for which the knob is offered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    type: KnobType
    dimension: Dimension
    low: int | float | None = None  # the range includes both ends
    high: int | float | None = None
    scale: Literal["linear", "log"] | None = None  # the scale on which a search should vary the number
    choices: tuple[str, ...] = ()
    levels: tuple[int | float, ...] = ()  # if given, the only values of the number, ascending, from low to high
    defaults: dict[str, Value]

    @property
    def is_free(self) -> bool:
        """Whether the knob has more than one value that another session could take too."""
        return self.type == "bool" or len(self.choices) > 1 or self.low != self.high

    def check(self, value: object) -> Value:
        """`value` as the engine expects it: in the knob's type, and a number rounded to the knob's resolution.

        Raises ConfigError for a wrong type or a value out of range.
        """
        if self.type == "choice":
            if isinstance(value, str) and value in self.choices:
                return value
            raise ConfigError(f"{self.name}={value!r:.60} is not one of its choices; choose one of {[*self.choices]}")
        if self.type == "trials":
            return NAMING[self.name].canonical(value)
        if self.type == "bool":
            if isinstance(value, bool):
                return value
            raise ConfigError(f"{self.name}={value!r:.60} is not a boolean; give true or false")
        return self._number(value)

    def _number(self, value: object) -> int | float:
        assert self.low is not None and self.high is not None  # the parser of SANDBOX.md guarantees it
        expected = f"{'an integer' if self.type == 'int' else 'a number'} from {self.low:g} to {self.high:g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{self.name}={value!r:.60} is not a number; give {expected}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{self.name}={value!r} is not finite; give {expected}")
        if self.type == "int" and isinstance(value, float):
            example = min(max(math.floor(value), int(self.low)), int(self.high))
            raise ConfigError(f"{self.name}={value!r} has a decimal point; give {expected}, e.g. {example}")
        if not self.low <= value <= self.high:
            raise ConfigError(f"{self.name}={value!r:.60} is out of range; give {expected}")
        rounded = self.rounded(value)
        if self.levels and rounded != value and rounded != self._on_grid(value):
            levels = ", ".join(f"{level:g}" for level in self.levels)
            raise ConfigError(f"{self.name}={value!r:.60} is not one of its levels; give one of {levels}")
        return rounded

    def rounded(self, value: float) -> int | float:
        """The valid number that is nearest to `value`: one of the knob's resolution, an end, a default, or a level."""
        assert self.low is not None and self.high is not None
        inside = min(max(value, self.low), self.high)
        fixed: tuple[Any, ...] = self.levels or (self.low, self.high, *self.defaults.values())
        numbers = [float(number) for number in fixed]
        if not self.levels:
            numbers.append(min(max(self._on_grid(inside), self.low), self.high))
        nearest = min(numbers, key=lambda number: abs(number - inside))
        return round(nearest) if self.type == "int" else nearest + 0.0  # -0.0 and 0 must have the same fingerprint

    def _on_grid(self, value: float) -> float:
        resolution = KNOBS[self.name].resolution
        assert resolution is not None  # every numeric knob has one
        return resolution.nearest(value)


class ActionSpace(BaseModel):
    """All knobs that a protocol offers, over all backbones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entries: tuple[Knob, ...]

    def knobs(self, backbone: str) -> list[Knob]:
        """The knobs of `backbone`, in the order of SANDBOX.md."""
        return [knob for knob in self.entries if backbone in knob.defaults]

    def chosen(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a configuration for the knobs that a session could vary, not those that its page fixes."""
        knobs = self.knobs(config["backbone"])
        return {knob.name: config[knob.name] for knob in knobs if knob.is_free}

    def default(self, backbone: str) -> TrialConfig:
        """The configuration from which a session starts; raises ConfigError for an unknown backbone."""
        return make_config(backbone, **{knob.name: knob.defaults[backbone] for knob in self.knobs(backbone)})

    def resolve(self, base: TrialConfig, changes: Mapping[str, Any]) -> TrialConfig:
        """`base` with `changes` applied, numbers rounded to the resolutions of their knobs.

        Raises one ConfigError that lists every invalid change (an unknown knob, a wrong type, a value out of range, a
        knob that the backbone does not have or that SANDBOX.md fixes). If all changes are valid by themselves, raises
        ConfigError for an invalid combination.
        """
        settings, errors = base.model_dump(), []
        unknown = [name for name in changes if name not in KNOBS and name not in _NOT_KNOBS]
        if len(unknown) > 1:  # one message for all of them, because each separate one could list every knob
            errors.append(_unknown_knobs(unknown, self._names(base.backbone)))
            changes = {name: changes[name] for name in changes if name in KNOBS or name in _NOT_KNOBS}
        for name, value in changes.items():
            try:
                settings[name] = self._offered(base.backbone, name).check(value)
            except ConfigError as error:
                errors.append(str(error))
        if errors:
            more = f"; and {len(errors) - MAX_ERRORS} more" if len(errors) > MAX_ERRORS else ""
            raise ConfigError("; ".join(errors[:MAX_ERRORS]) + more)
        config = TrialConfig(**settings)
        check_combination(config)
        return config

    def roundings(self, backbone: str, changes: Mapping[str, Any]) -> str:
        """The numbers of valid `changes` that `resolve` replaces by others, in words; empty if it replaces none."""
        used = {name: self._offered(backbone, name).check(value) for name, value in changes.items()}
        return ", ".join(
            f"{name}={value!r:.60} was rounded to {used[name]!r} ({KNOBS[name].resolution})"
            for name, value in changes.items()
            if KNOBS[name].resolution and value != used[name]
        )

    def dimension(self, knob: str) -> str:
        """The dimension of `knob`; raises ConfigError if SANDBOX.md does not offer the knob."""
        for entry in self.entries:
            if entry.name == knob:
                return entry.dimension
        raise ConfigError(unknown_knob(knob) if knob not in KNOBS else f"{knob} is fixed by SANDBOX.md")

    def describe(self, backbone: str) -> list[dict[str, Any]]:
        """The knobs of `backbone` as JSON values; keys that do not apply to a type are None, `levels` is left out."""
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
                **({"levels": list(knob.levels)} if knob.levels else {}),
            }
            for knob in self.knobs(backbone)
        ]

    def differences(self, config: TrialConfig) -> dict[str, Any]:
        """The knobs whose values differ from the default of the backbone, with their values in `config`.

        Of an ensemble, those that have an effect: the knobs of its models are those of its members.
        """
        default, settings = self.default(config.backbone).model_dump(), config.model_dump()
        without = inert_changes(config, settings) if config.ensemble else {}
        return {knob: value for knob, value in settings.items() if value != default[knob] and knob not in without}

    def _names(self, backbone: str) -> list[str]:
        return [knob.name for knob in self.knobs(backbone) if knob.is_free]

    def _offered(self, backbone: str, name: str) -> Knob:
        entry = next((knob for knob in self.knobs(backbone) if knob.name == name), None)
        if entry is not None:
            return entry
        if name not in KNOBS:
            raise ConfigError(unknown_knob(name, self._names(backbone)))
        if backbone not in KNOBS[name].defaults:
            owner = " and ".join(KNOBS[name].defaults)
            raise ConfigError(f"{name} has no meaning on {backbone}: it belongs to {owner}; omit it")
        fixed = getattr(self.default(backbone), name)
        raise ConfigError(f"{name} is fixed at {fixed!r} for {backbone}: SANDBOX.md does not offer it; omit it")


def unknown_knob(name: str, offered: Collection[str] = KNOBS) -> str:
    """The error text for a `name` that is not a knob, with the most similar ones of the knobs that are offered."""
    if name in _NOT_KNOBS:
        return f"{name} is not a knob: {_NOT_KNOBS[name]}"
    similar = similar_knobs(name, offered)
    hint = f"did you mean {' or '.join(similar)}?" if similar else f"the knobs are {', '.join(sorted(offered))}"
    return f"{name!r:.60} is not a knob; {hint}"


def _unknown_knobs(names: list[str], offered: Collection[str]) -> str:
    """The error text for several `names` that are not knobs; it lists those offered if a name has no suggestion."""
    more = f" and {len(names) - MAX_ERRORS} more" if len(names) > MAX_ERRORS else ""
    suggestions = {name: similar_knobs(name, offered) for name in names[:MAX_ERRORS]}
    named = ", ".join(
        f"{name!r:.60}" + (f" (did you mean {' or '.join(similar)}?)" if similar else "")
        for name, similar in suggestions.items()
    )
    known = "" if all(suggestions.values()) else f"; the knobs are {', '.join(sorted(offered))}"
    return f"{named}{more} are not knobs{known}"


def inert_changes(config: TrialConfig, changes: Mapping[str, Any]) -> dict[str, str]:
    """The knobs of `changes` that have no effect in `config`, each with the reason."""
    return {knob: reason for knob in changes if (reason := _inert_reason(config, knob))}


def _inert_reason(config: TrialConfig, knob: str) -> str:
    """Why `knob` has no effect in `config`; empty if it has one."""
    declared = KNOBS.get(knob)
    if declared is None:
        return ""
    if config.backbone not in declared.defaults:
        return f"only {' and '.join(_TITLES[backbone] for backbone in declared.defaults)} has it"
    if config.ensemble and declared.dimension != "scoring":
        return f"an ensemble trains nothing; base the trial on a member, or set {ENSEMBLE}=[]"
    return declared.inert.reason if declared.inert and declared.inert.holds(config) else ""


def effective(config: TrialConfig) -> dict[str, Any]:
    """The settings that have an effect; configurations with equal effective settings train and rank identically."""
    settings = config.model_dump()
    inert = inert_changes(config, settings)
    return {knob: value for knob, value in settings.items() if knob not in inert}
