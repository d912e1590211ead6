"""The configuration of one trial: all knobs, composed from the groups in `models/knobs/`.

This module does not import torch, so that the sandbox can use it. The defaults are the plain baselines of VirtualMLE
(arXiv 2606.03221) for each backbone. The bounds of the knobs are limits of the engine, which no SANDBOX.md can exceed.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from ..data.errors import ConfigError
from .knobs.capacity import Capacity
from .knobs.declaration import BACKBONES, Backbone, Value, declared_knobs
from .knobs.optimisation import Optimisation
from .knobs.regularisation import Regularisation
from .knobs.scoring import Scoring
from .knobs.sequence_modelling import SequenceModelling
from .knobs.supervision import Supervision
from .knobs.trial_names import ENSEMBLE, names_in

GROUPS = (Optimisation, Regularisation, Capacity, SequenceModelling, Supervision, Scoring)

KNOBS = declared_knobs(GROUPS)
"""Every knob by name, in the order of SANDBOX.md."""

SCORING_KNOBS = frozenset(name for name, knob in KNOBS.items() if knob.dimension == "scoring" and name != ENSEMBLE)
"""Knobs that act on finished scores only: a trial that changes no others re-scores a checkpoint instead of training.

`ensemble` is not among them, although its dimension is scoring: it stands for the trained model.
"""

PRIOR_WEIGHTS = ("popularity_weight", "transition_weight", "cooccurrence_weight")

_ALIASES = {
    spelling: knob.name
    for knob in KNOBS.values()
    for alias in knob.about.aliases
    for spelling in (alias, alias.replace("_", ""))
}

_SPELLINGS = {alias.replace("_", ""): name for alias, name in _ALIASES.items()} | {
    name.replace("_", ""): name for name in KNOBS
}
LONGEST_NAME = 5  # words

BASELINES: dict[Backbone, dict[str, Value]] = {
    backbone: {name: knob.defaults[backbone] for name, knob in KNOBS.items() if backbone in knob.defaults}
    for backbone in BACKBONES
}
"""The plain baseline of each backbone: the defaults of the knobs that this backbone reads."""


class TrialConfig(Scoring, Supervision, SequenceModelling, Capacity, Regularisation, Optimisation):
    """One point of the action space; frozen. Knobs of the other backbone are kept but have no effect."""

    backbone: Backbone

    @property
    def uses_models(self) -> bool:
        """Whether trials of this configuration use the models of others, so that what they measure is not of its knobs
        alone: ensembles, and students of teachers."""
        return bool(self.ensemble or teachers_of(self))


def make_config(backbone: str, **changes: Any) -> TrialConfig:
    """The plain baseline of `backbone` with `changes` applied.

    Raises ConfigError for an unknown backbone or knob, a value out of range or of the wrong type, NaN, and a
    combination that `check_combination` refuses.
    """
    if backbone not in BACKBONES:
        raise ConfigError(f"backbone={backbone!r} is not known; choose one of {sorted(BACKBONES)}")
    try:
        config = TrialConfig(**{"backbone": backbone, **BASELINES[backbone], **changes})
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    check_combination(config)
    return config


def check_combination(config: TrialConfig) -> None:
    """Raise ConfigError, with the reason, if the combination of values is wrong or has no meaning."""
    if config.backbone == "sasrec" and config.hidden_dim % config.num_heads:
        choices = [n for n in range(1, 17) if config.hidden_dim % n == 0]
        raise ConfigError(
            f"hidden_dim={config.hidden_dim} is not divisible by num_heads={config.num_heads}; "
            f"choose num_heads from {choices}"
        )
    if not config.causal and config.supervision == "all":
        raise ConfigError(
            "causal=false lets a position see its own target when supervision='all'; "
            "set supervision='last' together with causal=false"
        )
    if config.position == "rotary" and _rotated_width(config) % 2:
        raise ConfigError(
            f"position='rotary' rotates pairs of entries, but query and key have {_rotated_width(config)} per head; "
            + ("choose an even attention_dim" if config.backbone == "hstu" else "choose an even hidden_dim / num_heads")
        )
    if config.warmup_epochs > config.epochs:
        raise ConfigError(
            f"warmup_epochs={config.warmup_epochs:g} is longer than epochs={config.epochs}; "
            "lower warmup_epochs or raise epochs"
        )


def similar_knobs(name: str, among: Collection[str] = KNOBS) -> list[str]:
    """The knobs that `name` may mean, best first: the knob with this alias, or else those of similar spelling."""
    folded = name.casefold().replace("-", "_").replace(" ", "_")
    alias = _ALIASES.get(folded) or _ALIASES.get(folded.replace("_", ""))
    return [alias] if alias and alias in among else difflib.get_close_matches(folded, among, n=3)


def knobs_named(text: str) -> list[str]:
    """The knobs that a text names, by their names or aliases in words: "learning rate" names lr.

    Of overlapping names the longest counts: "embedding dropout" does not name dropout.
    """
    words = re.findall(r"[^\W_]+", text.casefold())
    found: dict[str, None] = {}
    start = 0
    while start < len(words):
        spellings = ["".join(words[start : start + length]) for length in range(LONGEST_NAME, 0, -1)]
        length, name = next(
            ((LONGEST_NAME - i, _SPELLINGS[s]) for i, s in enumerate(spellings) if s in _SPELLINGS), (1, None)
        )
        if name:
            found[name] = None
        start += length
    return list(found)


def knob_words(name: str) -> list[str]:
    """The names of a knob that a text may use: its own, and its aliases of several words."""
    aliases = KNOBS[name].about.aliases
    return [spelled.replace("_", " ") for spelled in (name, *(alias for alias in aliases if "_" in alias))]


def train_part(config: TrialConfig) -> dict[str, Any]:
    """The knobs that training depends on: all except the scoring knobs."""
    return {knob: value for knob, value in config.model_dump().items() if knob not in SCORING_KNOBS}


def teachers_of(config: TrialConfig) -> tuple[str, ...]:
    """The trials whose models teach this one; () if there are none, or if `teachers` has no effect."""
    return names_in(config.teachers) if config.loss == "full_softmax" and not config.ensemble else ()


def has_priors(config: TrialConfig) -> bool:
    """Whether a score prior is added to the scores of the model."""
    return any(getattr(config, weight) > 0 for weight in PRIOR_WEIGHTS)


def scoring_part(config: TrialConfig) -> dict[str, Any]:
    """The scoring knobs, which act on finished scores only."""
    return {knob: value for knob, value in config.model_dump().items() if knob in SCORING_KNOBS}


def train_hash(config: TrialConfig) -> str:
    """The identity of a trained model: configurations with the same hash, and the same seed, share their checkpoints.

    Only knobs that differ from the backbone's plain baseline are hashed. A knob that a later version adds therefore
    does not change the identity of a configuration that leaves it at its default. Ensembles are the same model if they
    have the same members, whatever their other knobs are.
    """
    return _hash_of(config, train_part(config))


def continuation_hash(config: TrialConfig) -> str:
    """The identity of what a training does, however long: with one hash, the longer training continues the shorter.

    `patience` never changes a step, and `epochs` does so only through a schedule that decays over them.
    """
    limits = {"patience", "epochs"} if config.schedule == "constant" else {"patience"}
    return _hash_of(config, {knob: value for knob, value in train_part(config).items() if knob not in limits})


def _hash_of(config: TrialConfig, part: dict[str, Any]) -> str:
    if config.ensemble:
        return fingerprint({ENSEMBLE: config.ensemble})
    baseline = make_config(config.backbone).model_dump()
    changed = {knob: value for knob, value in part.items() if value != baseline[knob]}
    return fingerprint({"backbone": config.backbone, **changed})


def fingerprint(values: dict[str, Any]) -> str:
    """Sixteen hex digits that identify a configuration, or its training part, by content."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def _rotated_width(config: TrialConfig) -> int:
    return config.attention_dim if config.backbone == "hstu" else config.hidden_dim // config.num_heads


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False, include_context=False):
        knob = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            similar = similar_knobs(knob)
            hint = f"did you mean {' or '.join(similar)}?" if similar else f"the knobs are {', '.join(sorted(KNOBS))}"
            lines.append(f"{knob} is not a knob; {hint}")
        else:
            lines.append(f"{knob}={item['input']!r} is refused: {item['msg']}")
    return "; ".join(lines)
