"""Which changes act on which diagnosis, by what mechanism, and what each has gained where it was measured.

Only knowledge that needs no session is here. Gains are shares of NDCG@10 and enter a proposal at half their size, until
this session or a closed one has measured one of the knobs. A remedy without a gain is a change with a mechanism that
nobody has measured on sparse sequences.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..data.errors import ConfigError
from ..models.config import TrialConfig
from .action_space import Knob
from .diagnosis import Diagnosis, Kind

USUAL = "its usual gain, docs/engineer.md"
BEAUTY_TOOLS = "measured on Beauty and Tools, docs/log.md"
RISE = "the rise in the last quarter of the curve"
MAX_RISE = 1.0  # a model that has only just begun to learn rises by any factor


class Remedy(NamedTuple):
    """A change and why it acts; `gain` is None if nobody has measured it.

    target: knob -> the value to set, or the ladder of values (a tuple) of which the next above the current one is set.
    """

    kinds: tuple[Kind, ...]
    target: Mapping[str, Any]
    mechanism: str
    gain: float | None = None
    source: str = ""
    backbones: tuple[str, ...] = ("sasrec", "hstu")


UNDER_TRAINED: Kind = "under-trained"
MEMORISING: Kind = "memorising"
POPULARITY_BOUND: Kind = "popularity-bound"
PRIOR_BOUND: Kind = "prior-bound"

REMEDIES: tuple[Remedy, ...] = (
    Remedy((UNDER_TRAINED,), {"lr": (1e-3, 2e-3)}, "larger steps get as far in fewer epochs", 0.08, BEAUTY_TOOLS),
    Remedy((UNDER_TRAINED,), {"epochs": (20, 40, 80)}, "the epochs end while the curve still rises"),
    Remedy((UNDER_TRAINED,), {"batch_size": 128}, "more updates per epoch", 0.02, USUAL),
    Remedy(
        (UNDER_TRAINED, POPULARITY_BOUND, PRIOR_BOUND), {"loss": "full_softmax"},
        "every item is a negative in every step, popular ones no less than others", 0.09, USUAL,
    ),
    Remedy(
        (MEMORISING,), {"embedding_dropout": (0.3, 0.5)},
        "hides parts of every item vector, so that single items cannot be recognised", 0.035, USUAL,
    ),
    Remedy(
        (MEMORISING,), {"dropout": (0.5, 0.65)}, "training sees another thinned model in every step", 0.045, USUAL,
    ),
    Remedy((MEMORISING,), {"label_smoothing": 0.1}, "bounds how certain the model gets of a target", 0.013, USUAL),
    Remedy(
        (MEMORISING,), {"optimizer": "adamw", "weight_decay": 0.01}, "shrinks what single users leave in the weights",
        0.012, USUAL,
    ),
    Remedy((MEMORISING,), {"token_dropout": 0.2}, "every epoch sees another part of each history"),
    Remedy((MEMORISING,), {"augmentation": "mask"}, "every epoch sees another version of each sequence"),
    Remedy(
        (POPULARITY_BOUND,), {"scores": "cosine", "temperature": 0.07},
        "takes out the norm of item vectors, by which popular items rank high", 0.05, USUAL, ("sasrec",),
    ),
    Remedy(
        (POPULARITY_BOUND,), {"negative_power": 0.5, "logq_correction": True},
        "popular items become negatives more often",
    ),
    Remedy((POPULARITY_BOUND,), {"max_norm": 1.0}, "bounds the norm by which popular items rank high"),
    Remedy(
        (POPULARITY_BOUND,), {"transition_weight": 8.0}, "adds what followed the user's own last item", 0.08,
        BEAUTY_TOOLS,
    ),
    Remedy(
        (PRIOR_BOUND,),
        {"transition_window": 3, "transition_normalisation": "sqrt", "transition_recent": 3, "transition_recency": 0.5},
        "the prior carries the score but reads the last event only", 0.025, USUAL,
    ),
    Remedy(
        (PRIOR_BOUND,), {"cooccurrence_weight": 4.0}, "adds relations without an order, which transitions do not have",
        0.025, BEAUTY_TOOLS,
    ),
    Remedy(
        (), {"transition_weight": 8.0}, "the last item predicts the next one", 0.08, BEAUTY_TOOLS,
    ),
    Remedy((), {"cooccurrence_weight": 4.0}, "items of the same histories are related", 0.025, BEAUTY_TOOLS),
    Remedy((), {"hidden_dim": (128, 256)}, "wider states separate more items", 0.02, USUAL),
    Remedy((), {"position": "relative"}, "the distance of events matters more than their place", 0.018, USUAL),
)  # fmt: skip
"""In the order of the diagnoses; the last ones act on none and are proposed for their gain."""


def changes_of(remedy: Remedy, config: TrialConfig, knobs: Mapping[str, Knob]) -> dict[str, Any] | None:
    """The changes that the remedy makes to `config` within the protocol's ranges; None if it has none left to make."""
    if config.backbone not in remedy.backbones or not set(remedy.target) <= set(knobs):
        return None
    changes = {}
    for name, target in remedy.target.items():
        current = getattr(config, name)
        value = _next(target, current, knobs[name]) if isinstance(target, tuple) else target
        if value is None or not _offered(knobs[name], value):
            return None
        if value != current:
            changes[name] = value
    return changes or None


def remedies_for(diagnosis: Diagnosis | None) -> Iterator[Remedy]:
    """The remedies that act on a diagnosis; for None, those that act on none.

    The gain of more epochs is the rise in the last quarter of the curve: if each further quarter adds half of the one
    before, training for twice as long adds about as much again.
    """
    for remedy in REMEDIES:
        if diagnosis is None and not remedy.kinds:
            yield remedy
        elif diagnosis and diagnosis.kind in remedy.kinds:
            rises = diagnosis.rise and "epochs" in remedy.target
            yield remedy._replace(gain=min(diagnosis.rise, MAX_RISE), source=RISE) if rises else remedy


def _next(ladder: Sequence[float], current: float, knob: Knob) -> float | None:
    """The first value above the current one: of the protocol's levels if it lists them, otherwise of the ladder."""
    above = [value for value in (knob.levels or ladder) if value > current and _offered(knob, value)]
    return min(above) if above else None


def _offered(knob: Knob, value: Any) -> bool:
    try:
        knob.check(value)
    except ConfigError:
        return False
    return True
