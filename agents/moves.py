"""The engineer's prior knowledge: which values of a knob are worth a trial, and what each move usually gains.

The gains are relative to the incumbent's NDCG@10 on sparse sequences (short histories, thousands of items). They order
the first trials only; later, measured effects decide (`follow_ups.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..models.knobs.declaration import Value
from ..sandbox.action_space import Knob
from ..tools.views import KnobValues
from .drawing import bounds
from .space import Space

LADDERS: dict[str, tuple[float, ...]] = {
    "hidden_dim": (16, 32, 64, 128, 256),
    "num_blocks": (1, 2, 3, 4),
    "num_heads": (1, 2, 4, 8),
    "linear_dim": (8, 16, 32, 64, 128),
    "attention_dim": (8, 16, 32, 64, 128),
    "dropout": (0.0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8),
    "embedding_dropout": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    "attention_dropout": (0.0, 0.1, 0.2, 0.35, 0.5),
    "weight_decay": (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1),
    "lr": (1e-4, 3e-4, 6e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    "batch_size": (32, 64, 128, 256, 512, 1024),
    "epochs": (10, 20, 40, 80, 160),
    "patience": (3, 5, 8, 12, 20),
    "num_negatives": (64, 128, 250, 500, 1000, 2000, 4000),
    "temperature": (0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.5, 1.0, 2.0),
    "max_len": (5, 10, 20, 50, 100, 200),
    "readout_k": (2, 3, 5, 10),
    "popularity_weight": (0.0, 0.1, 0.25, 0.5, 1.0, 2.0),
    "transition_weight": (0.0, 1.0, 2.0, 4.0, 8.0, 16.0),
    "transition_window": (1, 2, 3, 5, 10),
    "cooccurrence_weight": (0.0, 1.0, 2.0, 4.0, 8.0, 16.0),
    "cooccurrence_window": (1, 3, 5, 10, 20),
}
"""Values of each numeric knob, far enough apart for their effects to be distinguishable from noise."""

GENERIC_RUNGS = 7
BUNDLE_SHARE = 0.5
"""Expected gain of a bundle as a share of the sum of its moves: low enough that a configuration that did well on a
similar dataset comes first, and high enough that the bundle comes before its moves one by one."""
BUNDLE_MOST = 0.19
"""The largest expected gain of a bundle: the moves of a long one overlap."""


@dataclass(frozen=True)
class Move:
    """A candidate trial; `gain` is the expected change in NDCG@10, relative to the incumbent's."""

    changes: KnobValues
    gain: float
    reason: str
    base: str = "incumbent"
    opening: bool = field(default=False, kw_only=True)


def _opening(gain: float, reason: str, **changes: Any) -> Move:
    return Move(changes, gain, reason, opening=True)


_BOTH = (
    _opening(0.12, "the default learning rate is low for so few epochs", lr=1e-3),
    _opening(0.10, "the last item predicts the next one; needs no training", transition_weight=8.0),
    _opening(0.09, "every item serves as a negative, so the gradient has no sampling error", loss="full_softmax"),
    _opening(0.055, "items of the same histories are related; needs no training", cooccurrence_weight=4.0),
    _opening(0.035, "training ends before the model has learnt what it can", epochs=80, patience=8),
    _opening(0.05, "short histories overfit, and more dropout reduces this", dropout=0.5),
    _opening(0.04, "smaller batches give more updates per epoch", batch_size=64),
    _opening(0.035, "embeddings of rare items overfit first", embedding_dropout=0.5),
    _opening(0.03, "single events of a history are noisy, and so is the attention to them", attention_dropout=0.5),
    _opening(0.03, "a second block can model compositions of transitions", num_blocks=2),
    _opening(0.03, "slow changes of a history say more than its single events", frequency_rescaling=0.7),
    _opening(0.03, "post-norm keeps the item vectors and the states on one scale", norm_placement="post"),
    _opening(0.03, "few epochs need larger steps", lr=2e-3),
    _opening(0.025, "transitions from the last three events, within three steps; needs no training",
             transition_window=3, transition_normalisation="sqrt", transition_recent=3, transition_recency=0.5),
    _opening(0.02, "wider hidden states separate more items", hidden_dim=256),
    _opening(0.02, "more negatives approximate the full softmax better", num_negatives=2000),
    _opening(0.018, "the distance between events matters more than their absolute position", position="relative"),
    _opening(0.015, "the last few events carry most of the signal", max_len=20),
    _opening(0.013, "soft targets reduce overfitting", label_smoothing=0.1),
    _opening(0.012, "decoupled weight decay shrinks embeddings of rare items", optimizer="adamw", weight_decay=0.01),
    _opening(0.01, "averaged weights are less noisy than the last ones", ema_decay=0.99),
    _opening(0.01, "the time between two events indicates whether they are related", time_bias=True),
    _opening(0.02, "popularity is a strong predictor for short histories; needs no training", popularity_weight=0.5),
    _opening(0.004, "averaged hidden states are less noisy than the last one alone", readout="mean"),
)

OPENINGS: dict[str, tuple[Move, ...]] = {
    "sasrec": (
        *_BOTH,
        _opening(0.05, "cosine scores at a low temperature remove the popularity bias of embedding norms",
                 scores="cosine", temperature=0.07),
        _opening(0.08, "one embedding for input and output halves what rare items must learn", tie_embeddings=True),
        _opening(0.017, "a gated feed-forward layer is stronger at equal width", ffn="swiglu"),
    ),
    "hstu": (
        *_BOTH,
        _opening(0.03, "a softer softmax suits a catalogue of this size", temperature=0.07),
        _opening(0.03, "each head gets wider gates and values", linear_dim=64, attention_dim=64),
        _opening(0.018, "several heads can attend to different past items", num_heads=2),
        _opening(0.01, "input and output embeddings can differ", tie_embeddings=False),
    ),
}
"""The opening moves, with their usual gains from the literature that docs/knobs.md cites. Each move is one decision; it
changes several knobs only if they have no effect alone. Nothing is assumed about how the gains of several moves add up:
each session measures their sum, and memory passes the result on."""


def openings(space: Space) -> list[Move]:
    """The opening moves of a session: those whose knobs its action space offers, at the levels that it offers.

    A value that is not among the levels of its knob becomes the nearest level in the same direction from the default;
    without such a level the move is left out, and of moves that become equal the first stays.
    """
    offered: dict[str, Move] = {}
    for move in OPENINGS[space.backbone]:
        changes = {name: _offered_value(name, value, space) for name, value in move.changes.items()}
        if all(value is not None for value in changes.values()):
            offered.setdefault(repr(changes), replace(move, changes=changes))
    return list(offered.values())


def bundle_of(moves: Sequence[tuple[Move, float]], space: Space) -> list[Move]:
    """Moves with their gains as one move over the default; of two values for a knob the one with the larger gain.

    Fewer than two moves make no bundle.
    """
    changes: KnobValues = {}
    gains: list[float] = []
    for move, gain in sorted(moves, key=lambda pair: -pair[1]):
        if not move.changes.keys() & changes.keys() and space.allows(changes | move.changes, {}):
            changes, gains = changes | move.changes, [*gains, gain]
    if len(gains) < 2:
        return []
    reason = f"{len(gains)} changes that usually help, tried together; single steps from the result follow"
    return [Move(changes, min(BUNDLE_SHARE * sum(gains), BUNDLE_MOST), reason, "default")]


def _offered_value(name: str, value: Value, space: Space) -> Value | None:
    if space.offers(name, value):
        return value
    knob = space.knobs.get(name)
    if knob is None or not knob.levels or isinstance(value, bool | str):
        return None
    default = space.defaults[name]
    beyond = [level for level in knob.levels if (level - default) * (value - default) > 0]
    return min(beyond, key=lambda level: _distance(level, value), default=None)


def _distance(one: float, other: float) -> float:
    """The distance of two numbers, as a ratio where both are positive."""
    return abs(math.log(one / other)) if one > 0 and other > 0 else abs(one - other)


def rungs(name: str, space: Space) -> list[int | float]:
    """The ladder of a numeric knob within its bounds, including the default, ascending; or its levels."""
    knob = space.knobs[name]
    if knob.levels:
        return list(knob.levels)
    low, high = bounds(knob)
    values = LADDERS.get(name) or _generic(knob)
    typed = {int(v) if knob.type == "int" else float(v) for v in values if low <= v <= high}
    return sorted(typed | {space.defaults[name]})


def neighbour(name: str, value: float, direction: int, space: Space) -> int | float | None:
    """The next rung above (+1) or below (-1) `value`; None at the end of the ladder."""
    beyond = [rung for rung in rungs(name, space) if (rung - value) * direction > 0]
    return (min(beyond) if direction > 0 else max(beyond)) if beyond else None


def _generic(knob: Knob) -> tuple[float, ...]:
    """Evenly spaced rungs on the knob's scale, for knobs that `LADDERS` does not list."""
    low, high = bounds(knob)
    parts = [step / (GENERIC_RUNGS - 1) for step in range(GENERIC_RUNGS)]
    if knob.scale == "log" and low > 0:
        return tuple(knob.rounded(low * (high / low) ** part) for part in parts)
    return tuple(knob.rounded(low + (high - low) * part) for part in parts)
