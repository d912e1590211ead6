"""The action space: which knobs an agent may turn, how far, and what each is for.

SANDBOX.md fills it (`protocol.py`); `models/config.py` owns the engine's bounds, which it can only narrow. A knob that
SANDBOX.md leaves out is fixed at the backbone's plain default.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from ..data.errors import ConfigError
from ..models.config import Backbone, TrialConfig, check_combination, make_config

Dimension = Literal["optimisation", "regularisation", "capacity", "sequence_modelling", "supervision", "scoring"]
DIMENSIONS: tuple[str, ...] = get_args(Dimension)
MAX_REFUSED = 10  # reasons in one refusal: enough to mend a call, too few to flood a reader
BACKBONES: tuple[str, ...] = get_args(Backbone)
KnobType = Literal["int", "float", "bool", "choice"]
Value = bool | int | float | str

ENGINE_KNOBS = frozenset(TrialConfig.model_fields) - {"backbone"}
ONLY_BACKBONE = {
    "linear_dim": "hstu",
    "attention_dim": "hstu",
    "hstu_activation": "hstu",
    "hstu_gating": "hstu",
    "ffn": "sasrec",
    "ffn_multiplier": "sasrec",
}
"""Knobs that the engine reads for one backbone only."""

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
        unknown = [name for name in changes if name not in ENGINE_KNOBS and name not in _NOT_KNOBS]
        if len(unknown) > 1:  # otherwise each would list the knobs there are
            refused.append(_unknown_knobs(unknown))
            changes = {name: changes[name] for name in changes if name in ENGINE_KNOBS or name in _NOT_KNOBS}
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
        raise ConfigError(unknown_knob(knob) if knob not in ENGINE_KNOBS else f"{knob} is fixed by SANDBOX.md")

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
        if name not in ENGINE_KNOBS:
            raise ConfigError(unknown_knob(name))
        if ONLY_BACKBONE.get(name, backbone) != backbone:
            raise ConfigError(f"{name} has no meaning on {backbone}: it belongs to {ONLY_BACKBONE[name]}; leave it out")
        fixed = getattr(self.default(backbone), name)
        raise ConfigError(f"{name} is fixed at {fixed!r} for {backbone}: SANDBOX.md does not offer it; leave it out")


def unknown_knob(name: str) -> str:
    """Why `name` is no knob, with the nearest ones there are."""
    if name in _NOT_KNOBS:
        return f"{name} is not a knob: {_NOT_KNOBS[name]}"
    near = difflib.get_close_matches(name, ENGINE_KNOBS, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the knobs are {', '.join(sorted(ENGINE_KNOBS))}"
    return f"{name!r:.60} is not a knob; {hint}"


def _unknown_knobs(names: list[str]) -> str:
    """Why none of several `names` is a knob; the knobs there are come once, at the end."""
    more = f" and {len(names) - MAX_REFUSED} more" if len(names) > MAX_REFUSED else ""
    named = ", ".join(f"{name!r:.60}" for name in names[:MAX_REFUSED])
    return f"{named}{more} are not knobs; the knobs are {', '.join(sorted(ENGINE_KNOBS))}"


def _priors_are_off(config: TrialConfig) -> bool:
    return config.popularity_weight == config.transition_weight == config.cooccurrence_weight == 0


def _is_full_softmax(config: TrialConfig) -> bool:
    return config.loss == "full_softmax"


def _changes_no_sequence(config: TrialConfig) -> bool:
    return config.augmentation == "none" or (config.augmentation_share == 0 and config.contrastive_weight == 0)


def _has_no_transitions(config: TrialConfig) -> bool:
    return config.transition_weight == 0


def _has_no_cooccurrence(config: TrialConfig) -> bool:
    return config.cooccurrence_weight == 0


_NO_NEGATIVES = (_is_full_softmax, "full_softmax draws no negatives")
_NO_TRANSITIONS = (_has_no_transitions, "transition_weight is 0")
_NO_COOCCURRENCE = (_has_no_cooccurrence, "cooccurrence_weight is 0")

_INERT: dict[str, tuple[Callable[[TrialConfig], bool], str]] = {
    "linear_dim": (lambda c: c.backbone != "hstu", "only HSTU has it"),
    "attention_dim": (lambda c: c.backbone != "hstu", "only HSTU has it"),
    "hstu_activation": (lambda c: c.backbone != "hstu", "only HSTU has it"),
    "hstu_gating": (lambda c: c.backbone != "hstu", "only HSTU has it"),
    "ffn": (lambda c: c.backbone != "sasrec", "only SASRec has a feed-forward layer"),
    "ffn_multiplier": (lambda c: c.backbone != "sasrec", "only SASRec has a feed-forward layer"),
    "shared_blocks": (lambda c: c.num_blocks == 1, "there is one block"),
    "readout_k": (lambda c: c.readout != "last_k", "it acts only with readout='last_k'"),
    "num_negatives": _NO_NEGATIVES,
    "negative_sharing": _NO_NEGATIVES,
    "negative_power": _NO_NEGATIVES,
    "logq_correction": (lambda c: c.loss != "sampled_softmax", "it acts only with loss='sampled_softmax'"),
    "gbce_calibration": (lambda c: c.loss != "gbce", "it acts only with loss='gbce'"),
    "label_smoothing": (lambda c: c.loss in ("bce", "gbce"), "only the softmax losses are smoothed"),
    "augmentation_share": (lambda c: c.augmentation == "none", "augmentation is 'none'"),
    "augmentation_ratio": (_changes_no_sequence, "no sequence is changed"),
    "contrastive_temperature": (lambda c: c.contrastive_weight == 0, "contrastive_weight is 0"),
    "optimizer": (lambda c: c.weight_decay == 0, "adam and adamw differ only in how they apply weight_decay, here 0"),
    "score_normalisation": (_priors_are_off, "scores are normalised only to be mixed with a prior of non-zero weight"),
    "fusion": (_priors_are_off, "there is no prior of non-zero weight"),
    "rerank_top": (lambda c: c.fusion != "rerank" or _priors_are_off(c), "no prior re-ranks"),
    "popularity_window": (lambda c: c.popularity_weight == 0, "popularity_weight is 0"),
    "transition_window": _NO_TRANSITIONS,
    "transition_decay": (lambda c: _has_no_transitions(c) or c.transition_window == 1, "all transitions are one step"),
    "transition_direction": _NO_TRANSITIONS,
    "transition_recent": _NO_TRANSITIONS,
    "transition_recency": (lambda c: _has_no_transitions(c) or c.transition_recent == 1, "one event counts"),
    "transition_neighbours": _NO_TRANSITIONS,
    "transition_normalisation": _NO_TRANSITIONS,
    "cooccurrence_window": _NO_COOCCURRENCE,
    "cooccurrence_recency": (lambda c: _has_no_cooccurrence(c) or c.cooccurrence_window == 1, "one event counts"),
    "cooccurrence_span": _NO_COOCCURRENCE,
    "cooccurrence_neighbours": _NO_COOCCURRENCE,
    "cooccurrence_normalisation": _NO_COOCCURRENCE,
}


def inert_changes(config: TrialConfig, changes: Mapping[str, Any]) -> dict[str, str]:
    """Those of `changes` whose value makes no difference to `config`, each with the reason."""
    return {knob: _INERT[knob][1] for knob in changes if knob in _INERT and _INERT[knob][0](config)}


def effective(config: TrialConfig) -> dict[str, Any]:
    """The part of a configuration that acts: configurations with equal effective parts train and rank alike."""
    settings = config.model_dump()
    inert = inert_changes(config, settings)
    return {knob: value for knob, value in settings.items() if knob not in inert}
