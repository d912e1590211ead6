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
    "fusion",
    "rerank_top",
    "popularity_weight",
    "popularity_window",
    "transition_weight",
    "transition_window",
    "transition_decay",
    "transition_direction",
    "transition_recent",
    "transition_recency",
    "transition_neighbours",
    "transition_normalisation",
    "cooccurrence_weight",
    "cooccurrence_window",
    "cooccurrence_recency",
    "cooccurrence_span",
    "cooccurrence_neighbours",
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
    shared_blocks: bool = False  # one set of weights for all blocks
    num_heads: int = Field(1, ge=1, le=16)
    linear_dim: int = Field(16, ge=4, le=512)  # HSTU: width of u and v, per head
    attention_dim: int = Field(16, ge=4, le=512)  # HSTU: width of q and k, per head
    ffn_multiplier: int = Field(1, ge=1, le=16)  # SASRec: inner width of the feed-forward over hidden_dim
    tie_embeddings: bool = False
    # regularisation
    dropout: float = Field(0.2, ge=0, le=0.95)
    embedding_dropout: float = Field(0.0, ge=0, le=0.95)
    attention_dropout: float = Field(0.0, ge=0, le=0.95)
    token_dropout: float = Field(0.0, ge=0, le=0.95)  # share of input items whose whole vector is hidden
    weight_decay: float = Field(0.0, ge=0, le=1)
    embedding_l2: float = Field(0.0, ge=0, le=10)  # on the item tables alone, added to their gradient
    max_norm: float = Field(0.0, ge=0, le=1000)  # longest item vector after a step; 0 = no bound
    # optimisation
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: float = Field(3e-4, gt=0, le=1)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_epochs: float = Field(0.0, ge=0, le=100)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    grad_clip: float = Field(0.0, ge=0, le=1e6)  # largest norm of the whole gradient; 0 = no bound
    ema_decay: float = Field(0.0, ge=0, lt=1)  # averaged weights are evaluated and kept; 0 = the last ones
    batch_size: int = Field(256, ge=8, le=16384)
    epochs: int = Field(20, ge=1, le=1000)
    patience: int = Field(3, ge=1, le=1000)
    # supervision
    loss: Literal["full_softmax", "sampled_softmax", "bce", "gbce"] = "sampled_softmax"
    num_negatives: int = Field(500, ge=1, le=65536)
    negative_sharing: Literal["batch", "position"] = "batch"
    negative_power: float = Field(0.0, ge=0, le=2)  # negatives are drawn by popularity ** power; 0 = uniformly
    logq_correction: bool = False
    gbce_calibration: float = Field(0.75, ge=0, le=1)
    temperature: float = Field(1.0, gt=0, le=100)
    scores: Literal["dot", "cosine"] = "dot"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    supervision: Literal["all", "last"] = "all"
    window_stride: int = Field(0, ge=0, le=4096)  # events between the ends of a user's examples; 0 = the last only
    augmentation: Literal["none", "crop", "mask", "reorder", "mixed"] = "none"
    augmentation_share: float = Field(0.5, ge=0, le=1)  # of the sequences of a batch
    augmentation_ratio: float = Field(0.3, gt=0, lt=1)  # of the events of a sequence
    contrastive_weight: float = Field(0.0, ge=0, le=10)
    contrastive_temperature: float = Field(0.1, gt=0, le=100)
    # sequence modelling
    max_len: int = Field(50, ge=2, le=4096)
    position: Literal["absolute", "relative", "both", "rotary", "none"] = "absolute"
    time_bias: bool = False
    ffn: Literal["relu", "gelu", "swiglu"] = "gelu"  # SASRec
    norm: Literal["layer", "rms"] = "layer"
    norm_placement: Literal["pre", "post"] = "pre"
    hstu_activation: Literal["all", "gate"] = "all"  # HSTU: SiLU on u, v, q, k or on u alone
    hstu_gating: Literal["product", "concat"] = "product"  # HSTU: u * a, or u, a and u * a side by side
    conv_kernel: int = Field(0, ge=0, le=64)  # taps of a causal depthwise convolution before attention; 0 = none
    frequency_filter: bool = False
    latent_steps: int = Field(0, ge=0, le=16)
    causal: bool = True
    readout: Literal["last", "mean", "attention", "last_k"] = "last"
    readout_k: int = Field(3, ge=1, le=64)
    # scoring
    score_normalisation: Literal["none", "zscore", "minmax", "softmax"] = "zscore"
    fusion: Literal["blend", "rerank"] = "blend"
    rerank_top: int = Field(100, ge=1, le=100000)
    popularity_weight: float = Field(0.0, ge=-100, le=100)
    popularity_window: float = Field(1.0, gt=0, le=1)  # latest share of the train events that are counted
    transition_weight: float = Field(0.0, ge=-100, le=100)
    transition_window: int = Field(1, ge=1, le=50)
    transition_decay: float = Field(1.0, ge=0, le=10)  # a step of s counts s ** -decay
    transition_direction: Literal["forward", "backward", "both"] = "forward"
    transition_recent: int = Field(1, ge=1, le=50)  # latest events whose rows are added up
    transition_recency: float = Field(1.0, gt=0, le=1)  # weight of each such event over the one after it
    transition_neighbours: int = Field(0, ge=0, le=100000)  # strongest entries kept per row; 0 = all
    transition_normalisation: Literal["row", "sqrt", "cosine", "none"] = "row"
    cooccurrence_weight: float = Field(0.0, ge=-100, le=100)
    cooccurrence_window: int = Field(5, ge=1, le=50)
    cooccurrence_recency: float = Field(1.0, gt=0, le=1)
    cooccurrence_span: int = Field(0, ge=0, le=4096)  # events apart at most to count as a pair; 0 = any
    cooccurrence_neighbours: int = Field(0, ge=0, le=100000)
    cooccurrence_normalisation: Literal["cosine", "row", "sqrt", "none"] = "cosine"


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
    if config.position == "rotary" and _rotated_width(config) % 2:
        raise ConfigError(
            f"position='rotary' turns pairs of numbers, but query and key are {_rotated_width(config)} wide per head; "
            + ("choose an even attention_dim" if config.backbone == "hstu" else "choose an even hidden_dim / num_heads")
        )
    if config.warmup_epochs > config.epochs:
        raise ConfigError(
            f"warmup_epochs={config.warmup_epochs:g} is longer than epochs={config.epochs}; "
            "lower warmup_epochs or raise epochs"
        )


def train_part(config: TrialConfig) -> dict[str, Any]:
    """The knobs that training depends on: everything but the scoring knobs."""
    return {knob: value for knob, value in config.model_dump().items() if knob not in SCORING_KNOBS}


def train_hash(config: TrialConfig) -> str:
    """The identity of what training gives: seeds and checkpoints go by it.

    Only knobs that were moved off the backbone's plain baseline are hashed, so that a knob which a later version adds
    leaves the identity, and thereby the seed, of every configuration without it as it was.
    """
    baseline = make_config(config.backbone).model_dump()
    moved = {knob: value for knob, value in train_part(config).items() if value != baseline[knob]}
    return fingerprint({"backbone": config.backbone, **moved})


def fingerprint(part: dict[str, Any]) -> str:
    """Sixteen hex digits that name a configuration, or its training part, by content."""
    canonical = json.dumps(part, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def _rotated_width(config: TrialConfig) -> int:
    return config.attention_dim if config.backbone == "hstu" else config.hidden_dim // config.num_heads


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
