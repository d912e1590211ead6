"""The configuration of one trial: every knob that the engine understands, with the engine's own hard bounds.

Torch-free, so that the sandbox may read it. `SANDBOX.md` narrows these bounds, says which dimension a knob belongs
to, and never widens them. Defaults are the plain baselines of VirtualMLE (arXiv 2606.03221) for each backbone.
"""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..data.errors import ConfigError

Backbone = Literal["sasrec", "hstu"]

SCORING_KNOBS = frozenset({
    "score_normalisation",
    "popularity_weight",
    "transition_weight",
    "transition_window",
    "transition_normalisation",
    "cooccurrence_weight",
    "cooccurrence_window",
    "cooccurrence_normalisation",
})
"""Knobs that act on finished scores only: changing nothing else re-scores the checkpoint instead of training."""


class TrialConfig(BaseModel):
    """One point of the action space; frozen. Knobs of the other backbone are kept but have no effect."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    backbone: Backbone
    # capacity
    hidden_dim: int = Field(128, ge=8, le=1024)
    num_blocks: int = Field(1, ge=1, le=16)
    num_heads: int = Field(1, ge=1, le=16)
    linear_dim: int = Field(16, ge=4, le=512)  # HSTU: width of u and v, per head
    attention_dim: int = Field(16, ge=4, le=512)  # HSTU: width of q and k, per head
    tie_embeddings: bool = False
    # regularisation
    dropout: float = Field(0.2, ge=0, le=0.95)
    embedding_dropout: float = Field(0.0, ge=0, le=0.95)
    attention_dropout: float = Field(0.0, ge=0, le=0.95)
    weight_decay: float = Field(0.0, ge=0, le=1)
    # optimisation
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: float = Field(3e-4, gt=0, le=1)
    batch_size: int = Field(256, ge=8, le=16384)
    epochs: int = Field(20, ge=1, le=1000)
    patience: int = Field(3, ge=1, le=1000)
    # supervision
    loss: Literal["full_softmax", "sampled_softmax"] = "sampled_softmax"
    num_negatives: int = Field(500, ge=1, le=65536)
    temperature: float = Field(1.0, gt=0, le=100)
    scores: Literal["dot", "cosine"] = "dot"
    supervision: Literal["all", "last"] = "all"
    # sequence modelling
    max_len: int = Field(50, ge=2, le=4096)
    position: Literal["absolute", "relative", "both", "none"] = "absolute"
    ffn: Literal["relu", "gelu", "swiglu"] = "gelu"  # SASRec
    causal: bool = True
    readout: Literal["last", "mean", "attention", "last_k"] = "last"
    readout_k: int = Field(3, ge=1, le=64)
    # scoring
    score_normalisation: Literal["none", "zscore"] = "zscore"
    popularity_weight: float = Field(0.0, ge=-100, le=100)
    transition_weight: float = Field(0.0, ge=-100, le=100)
    transition_window: int = Field(1, ge=1, le=50)
    transition_normalisation: Literal["row", "sqrt", "none"] = "row"
    cooccurrence_weight: float = Field(0.0, ge=-100, le=100)
    cooccurrence_window: int = Field(5, ge=1, le=50)
    cooccurrence_normalisation: Literal["cosine", "row", "none"] = "cosine"


BASELINES: dict[str, dict[str, Any]] = {
    "sasrec": {},
    "hstu": {
        "dropout": 0.5,
        "optimizer": "adamw",
        "temperature": 0.05,
        "scores": "cosine",
        "position": "both",
        "tie_embeddings": True,
    },
}
"""Where a backbone's plain baseline differs from the field defaults above."""


def make_config(backbone: str, **changes: Any) -> TrialConfig:
    """The plain baseline of `backbone` with `changes` applied.

    Raises ConfigError for an unknown backbone or knob, a value out of range or of the wrong type, NaN, and for
    combinations that have no meaning (`check_combination`).
    """
    if backbone not in BASELINES:
        raise ConfigError(f"backbone={backbone!r} is not known; choose one of {sorted(BASELINES)}")
    try:
        config = TrialConfig(**{"backbone": backbone, **BASELINES[backbone], **changes})
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    check_combination(config)
    return config


def check_combination(config: TrialConfig) -> None:
    """Refuse combinations that would be wrong or meaningless, each with its reason (ConfigError)."""
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


def train_part(config: TrialConfig) -> dict[str, Any]:
    """The knobs that training depends on: everything but the scoring knobs."""
    return {knob: value for knob, value in config.model_dump().items() if knob not in SCORING_KNOBS}


def fingerprint(part: dict[str, Any]) -> str:
    """Sixteen hex digits that name a configuration, or its training part, by content."""
    canonical = json.dumps(part, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def _explain(error: ValidationError) -> str:
    known = sorted(set(TrialConfig.model_fields) - {"backbone"})
    lines = []
    for item in error.errors(include_url=False, include_context=False):
        knob = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"{knob} is not a knob; the knobs are {', '.join(known)}")
        else:
            lines.append(f"{knob}={item['input']!r} is refused: {item['msg']}")
    return "; ".join(lines)
