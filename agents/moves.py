"""What the engineer knows beforehand: which values are worth a trial, and what each move usually gains.

The gains are shares of the incumbent's NDCG@10 on sparse sequences (short histories, thousands of items). They order
the first trials only: from then on measured effects decide (`following.py`).
"""

from dataclasses import dataclass, field
from typing import Any

from ..sandbox.action_space import Knob
from ..tools.views import KnobValues
from .drawing import bounds, tidy
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
    "epochs": (10, 20, 40, 80),
    "patience": (3, 5, 10),
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
"""The values of a numeric knob that are far enough apart to tell from noise."""

GENERIC_RUNGS = 7


@dataclass(frozen=True)
class Move:
    """A trial worth running: `gain` is the expected change of NDCG@10 as a share of the incumbent's."""

    changes: KnobValues
    gain: float
    reason: str
    base: str = "incumbent"
    opening: bool = field(default=False, kw_only=True)


def _opening(gain: float, reason: str, **changes: Any) -> Move:
    return Move(changes, gain, reason, opening=True)


_BOTH = (
    _opening(0.12, "the default learning rate is cautious for few epochs", lr=1e-3),
    _opening(0.10, "the next item often follows the last one directly; costs no training", transition_weight=8.0),
    _opening(0.09, "every item as a negative gives the exact gradient of the ranking", loss="full_softmax"),
    _opening(0.055, "items seen in the same histories; costs no training", cooccurrence_weight=4.0),
    _opening(0.035, "item vectors over-fit first when items are rare", embedding_dropout=0.3),
    _opening(0.03, "few epochs want large steps", lr=2e-3),
    _opening(0.025, "several of the last events, and what followed them within three steps; costs no training",
             transition_window=3, transition_normalisation="sqrt", transition_recent=3, transition_recency=0.5),
    _opening(0.02, "a wider state separates more items", hidden_dim=256),
    _opening(0.02, "more negatives come closer to the full softmax", num_negatives=2000),
    _opening(0.02, "smaller batches make more steps per epoch", batch_size=128),
    _opening(0.019, "a second block sees compositions of transitions", num_blocks=2),
    _opening(0.018, "the distance between events matters more than their index", position="relative"),
    _opening(0.015, "most of the evidence lies in the last few events", max_len=20),
    _opening(0.013, "a target that is not certain over-fits less", label_smoothing=0.1),
    _opening(0.012, "decoupled decay keeps rare items' vectors short", optimizer="adamw", weight_decay=0.01),
    _opening(0.01, "averaged weights are steadier than the last ones", ema_decay=0.99),
    _opening(0.01, "the time between two events says whether they belong together", time_bias=True),
    _opening(0.008, "popular items are the safer guess for short histories", popularity_weight=0.25),
    _opening(0.004, "averaging the states is steadier than the last one alone", readout="mean"),
)

OPENINGS: dict[str, tuple[Move, ...]] = {
    "sasrec": (
        *_BOTH,
        _opening(0.05, "cosine scores with a low temperature stop popular items from winning by norm",
                 scores="cosine", temperature=0.07),
        _opening(0.045, "short histories over-fit: more dropout", dropout=0.5),
        _opening(0.03, "one table for input and output halves what rare items must learn", tie_embeddings=True),
        _opening(0.017, "a gated feed-forward is the stronger one at equal width", ffn="swiglu"),
    ),
    "hstu": (
        *_BOTH,
        _opening(0.03, "a milder softmax for a catalogue of this size", temperature=0.07),
        _opening(0.03, "less dropout where the model under-fits", dropout=0.2),
        _opening(0.02, "wider gates and values per head", linear_dim=32, attention_dim=32),
        _opening(0.018, "several heads attend to several past items", num_heads=2),
        _opening(0.01, "separate tables for input and output", tie_embeddings=False),
    ),
}
"""The generic order, by what each decision usually gains: one decision a move (two knobs where neither acts alone),
from the literature that docs/knobs.md names. No finished recipe: how the moves add up is what a session finds out,
and what memory carries to the next one."""


def rungs(name: str, space: Space) -> list[int | float]:
    """The values of a numeric knob worth trying within its bounds, ascending."""
    knob = space.knobs[name]
    low, high = bounds(knob)
    values = LADDERS.get(name) or _generic(knob)
    typed = {int(v) if knob.type == "int" else float(v) for v in values if low <= v <= high}
    return sorted(typed | {space.defaults[name]})


def neighbour(name: str, value: float, direction: int, space: Space) -> int | float | None:
    """The next rung above (+1) or below (-1) `value`, or None at the end of the ladder."""
    beyond = [rung for rung in rungs(name, space) if (rung - value) * direction > 0]
    return (min(beyond) if direction > 0 else max(beyond)) if beyond else None


def _generic(knob: Knob) -> tuple[float, ...]:
    """Evenly spaced rungs on the knob's scale, for knobs that the table does not know."""
    low, high = bounds(knob)
    parts = [step / (GENERIC_RUNGS - 1) for step in range(GENERIC_RUNGS)]
    if knob.scale == "log" and low > 0:
        return tuple(tidy(knob, low * (high / low) ** part) for part in parts)
    return tuple(tidy(knob, low + (high - low) * part) for part in parts)
