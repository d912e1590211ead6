"""The trials whose learning curves are recorded: what a session would try, drawn from a seeded generator.

Two sessions per dataset and backbone. In the session `climb` a trial changes one to three knobs of the incumbent, as an
engineer does; in the session `draw` every trial is a new design, as a sampler does. Slow starters have a good share in
both: low learning rates, warm-up, large dropout, and a full softmax over cosine scores at a low temperature.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from virtualmle.models.config import TrialConfig, make_config

Values = dict[str, Any]
SESSIONS = ("climb", "draw")
BACKBONES = ("sasrec", "hstu")


@dataclass(frozen=True)
class Size:
    """How many trials a dataset gets for each backbone and session, and what its trials may cost."""

    trials: int
    epochs: tuple[int, int]
    widths: tuple[int, ...]
    full_softmax: float  # share of the designs with it; it costs several epochs of a sampled loss on a large catalogue
    full_width: int  # largest width with a full softmax
    full_epochs: int  # most epochs with a full softmax


SIZES = {
    "office": Size(29, (12, 24), (32, 64, 64, 128), 0.4, 64, 24),
    "tools": Size(6, (10, 20), (32, 64, 64), 0.25, 32, 10),
    "beauty": Size(3, (8, 18), (32, 32), 0.25, 32, 8),
}

SAMPLED: tuple[Values, ...] = (
    {"loss": "sampled_softmax", "scores": "dot", "temperature": 1.0},
    {"loss": "sampled_softmax", "scores": "cosine", "temperature": 0.05},
    {"loss": "sampled_softmax", "scores": "cosine", "temperature": 0.07},
    {"loss": "sampled_softmax", "scores": "cosine", "temperature": 0.1},
    {"loss": "bce", "scores": "dot", "temperature": 1.0},
    {"loss": "gbce", "scores": "dot", "temperature": 1.0},
)
FULL: tuple[Values, ...] = (
    {"loss": "full_softmax", "scores": "dot", "temperature": 1.0},
    {"loss": "full_softmax", "scores": "cosine", "temperature": 0.05},
    {"loss": "full_softmax", "scores": "cosine", "temperature": 0.07},
    {"loss": "full_softmax", "scores": "cosine", "temperature": 0.1},
)


def first_trial(dataset: str, backbone: str) -> TrialConfig:
    """Where the session `climb` starts: the plain baseline at half its width."""
    return make_config(backbone, hidden_dim=64, epochs=min(20, SIZES[dataset].epochs[1]))


def drawn(rng: np.random.Generator, dataset: str, backbone: str) -> TrialConfig:
    """A whole design of the session `draw`."""
    size = SIZES[dataset]
    values: Values = {
        **_one(rng, FULL if rng.random() < size.full_softmax else SAMPLED),
        "lr": _learning_rate(rng),
        "dropout": _one(rng, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)),
        "embedding_dropout": _one(rng, (0.0, 0.0, 0.2, 0.3, 0.5)),
        "hidden_dim": _one(rng, size.widths),
        "num_blocks": _one(rng, (1, 1, 2)),
        "num_heads": _one(rng, (1, 2, 4)),
        "batch_size": _one(rng, (128, 256, 256, 512)),
        "max_len": _one(rng, (20, 50)),
        "num_negatives": _one(rng, (100, 200, 500, 1000)),
        "warmup_epochs": _one(rng, (0.0, 0.0, 0.0, 1.0, 3.0, 5.0)),
        "schedule": _one(rng, ("constant", "constant", "cosine", "linear")),
        "weight_decay": _one(rng, (0.0, 0.0, 0.01, 0.1)),
        "tie_embeddings": _one(rng, (True, False)),
        "epochs": int(rng.integers(size.epochs[0], size.epochs[1] + 1)),
        "patience": _one(rng, (3, 4, 5, 6)),
    }
    return make_config(backbone, **_affordable(values, size))


def moved(rng: np.random.Generator, dataset: str, incumbent: TrialConfig) -> TrialConfig:
    """A trial of the session `climb`: one to three moves away from the incumbent."""
    size = SIZES[dataset]
    moves = _moves(rng, size, incumbent)
    count = rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15])
    values = incumbent.model_dump()
    for index in rng.permutation(len(moves))[:count]:
        values |= moves[index]
    return make_config(values.pop("backbone"), **_affordable(values, size))


def _moves(rng: np.random.Generator, size: Size, incumbent: TrialConfig) -> list[Values]:
    """The moves of an engineer; a loss stands in the list three times, because it matters most."""
    lower, higher = incumbent.lr / 3, incumbent.lr * 3
    moves: list[Values] = [_one(rng, FULL if rng.random() < size.full_softmax else SAMPLED) for _ in range(3)]
    return moves + [
        {"lr": _rounded(min(3e-3, max(1e-4, _one(rng, (lower, higher)))))},
        {"lr": _learning_rate(rng)},
        {"dropout": _one(rng, (0.1, 0.3, 0.5, 0.7))},
        {"embedding_dropout": _one(rng, (0.0, 0.2, 0.3, 0.5))},
        {"token_dropout": _one(rng, (0.0, 0.1, 0.2))},
        {"hidden_dim": _one(rng, tuple(sorted(set(size.widths))))},
        {"num_blocks": _one(rng, (1, 2))},
        {"num_heads": _one(rng, (1, 2, 4))},
        {"batch_size": _one(rng, (128, 256, 512))},
        {"max_len": _one(rng, (20, 50))},
        {"num_negatives": _one(rng, (200, 1000))},
        {"negative_power": _one(rng, (0.0, 0.5)), "logq_correction": _one(rng, (True, False))},
        {"warmup_epochs": _one(rng, (0.0, 2.0, 5.0))},
        {"schedule": _one(rng, ("cosine", "linear")), "epochs": size.epochs[1]},
        {"weight_decay": _one(rng, (0.0, 0.01, 0.1))},
        {"label_smoothing": _one(rng, (0.0, 0.1))},
        {"ema_decay": _one(rng, (0.0, 0.99, 0.999))},
        {"tie_embeddings": not incumbent.tie_embeddings},
        {"position": _one(rng, ("absolute", "relative", "both", "none"))},
        {"norm_placement": _one(rng, ("pre", "post"))},
    ]


def _affordable(values: Values, size: Size) -> Values:
    """The design, made affordable: a full softmax on a large catalogue with a small width and fewer epochs."""
    epochs = min(max(values["epochs"], size.epochs[0]), size.epochs[1])
    if values["loss"] == "full_softmax":
        epochs = min(epochs, size.full_epochs)
        values = {**values, "hidden_dim": min(values["hidden_dim"], size.full_width)}
    return {**values, "epochs": epochs}


def _learning_rate(rng: np.random.Generator) -> float:
    """1e-4 to 3e-3, uniform in the logarithm."""
    return _rounded(float(np.exp(rng.uniform(np.log(1e-4), np.log(3e-3)))))


def _rounded(value: float) -> float:
    """Two significant digits."""
    return float(f"{value:.1e}")


def _one(rng: np.random.Generator, choices: tuple[Any, ...]) -> Any:
    return choices[int(rng.integers(len(choices)))]
