"""The opening of a session: the bundle of opening moves for the model, and what earlier sessions add to it. Pure.

A configuration of an earlier session is a recommendation for the knobs that its session could vary. If that session
lacked knobs that the bundle sets, its configuration never replaces the bundle: it is completed by the bundle, and its
training settings count only where both values were measured and its own was clearly better.
"""

import math
from collections.abc import Callable, Collection, Mapping

from ..models.config import SCORING_KNOBS
from ..models.knobs.declaration import Value
from ..tools.views import KnobValues, PooledEffect
from .moves import Move, bundle_of, openings
from .space import Space
from .sweeps import is_scoring

BUNDLED_GAIN = 0.03
"""Smallest expected gain of the opening moves that are tried together in one bundle."""
CLEAR_EFFECT_Z = 2.0
"""Minimum z of a pooled effect that is followed without a rule."""
DATASET_SPREAD = 0.03
"""Standard deviation of a knob's effect between datasets, relative to NDCG@10."""


def bundled(space: Space, gain_of: Callable[[Move], float]) -> list[Move]:
    """The opening moves for the model as one trial over the default; none if fewer than two have a gain."""
    first_of_knob: dict[str, Move] = {}
    for move in sorted(openings(space), key=lambda move: -move.gain):
        if not is_scoring(move.changes):
            first_of_knob.setdefault(next(iter(move.changes)), move)
    gains = [(move, gain_of(move)) for move in first_of_knob.values() if move.gain >= BUNDLED_GAIN]
    return bundle_of([(move, gain) for move, gain in gains if gain >= BUNDLED_GAIN], space)


def completed(
    config: KnobValues, offered: Collection[str], bundle: KnobValues, effects: Mapping[str, PooledEffect], space: Space
) -> KnobValues:
    """A configuration of a session that could vary the knobs `offered` only, completed by the opening bundle.

    It is returned as it is if its session could vary all knobs of the bundle. Score priors are kept: they were chosen
    together, need no training, and are swept again over the new model.
    """
    if set(bundle) <= set(offered):
        return config
    scored = {name: value for name, value in config.items() if name in SCORING_KNOBS}
    theirs, ours = space.complete(config), space.complete(bundle)
    better = {
        name: theirs[name]
        for name in offered
        if name in space.knobs and name not in SCORING_KNOBS
        and _is_better(effects.get(name), theirs[name], ours[name], space.defaults[name])
    }  # fmt: skip
    return bundle | better | scored


def _is_better(effect: PooledEffect | None, value: Value, other: Value, default: Value) -> bool:
    """Whether both values were measured, and the first one was clearly better than the other one."""
    rows = effect.values if effect else []
    measured = {default: (0.0, 0.0), **{row.value: (row.mean_relative, row.se) for row in rows}}
    if value == other or value not in measured or other not in measured:
        return False
    (mean, error), (other_mean, other_error) = measured[value], measured[other]
    return mean - other_mean >= CLEAR_EFFECT_Z * math.hypot(error, other_error, DATASET_SPREAD)
