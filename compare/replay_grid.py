"""The grid of a protocol page: every combination of the values of its knobs, as training runs with their cells."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..data.errors import ConfigError, ReplayError
from ..models.config import TrialConfig, fingerprint, make_config, train_hash
from ..models.knobs.declaration import Value
from ..sandbox.action_space import ActionSpace, Knob, effective

MAX_COMBINATIONS = 200_000


class TrainingRun(NamedTuple):
    """One training configuration of a grid, with all cells that share it."""

    train_hash: str
    cells: list[TrialConfig]


def training_runs(space: ActionSpace, backbone: str) -> list[TrainingRun]:
    """The distinct configurations of a backbone, grouped by training run; the default is the first cell of the first.

    Combinations that the engine refuses are left out. Of combinations that differ only in knobs without an effect, the
    one with these knobs at their defaults represents all. Raises ReplayError for a knob with a range, and for too many
    combinations.
    """
    runs: dict[str, TrainingRun] = {}
    seen: set[str] = set()
    for settings in _combinations(space, backbone):
        try:
            config = make_config(backbone, **settings)
        except ConfigError:
            continue
        key = fingerprint(effective(config))
        if key not in seen:
            seen.add(key)
            identity = train_hash(config)
            runs.setdefault(identity, TrainingRun(identity, [])).cells.append(config)
    return list(runs.values())


def values_of(knob: Knob, backbone: str) -> list[Value]:
    """The values of a knob in a grid, its default first. Raises ReplayError for a knob with a range."""
    default = knob.defaults[backbone]
    values: list[Value]
    if knob.type in ("choice", "bool"):
        values = [*knob.choices] or [False, True]
    elif knob.levels or knob.low == knob.high:  # a knob that names trials has neither: a table has no ensembles
        values = [*knob.levels] or [default]
    else:
        raise ReplayError(
            f"{knob.name} has the range {knob.low:g} … {knob.high:g}, and a grid needs its values; "
            f"list them in the page, e.g. {knob.low:g}, {knob.high:g}, or remove the row to fix the knob"
        )
    return [default, *(value for value in values if value != default)]


def _combinations(space: ActionSpace, backbone: str) -> Iterator[dict[str, Any]]:
    knobs = space.knobs(backbone)
    columns = [values_of(knob, backbone) for knob in knobs]
    total = math.prod(map(len, columns))
    if total > MAX_COMBINATIONS:
        raise ReplayError(
            f"the page has {total:,} combinations for {backbone}, and at most {MAX_COMBINATIONS:,} can be built; "
            "remove knobs or values from the page"
        )
    names = [knob.name for knob in knobs]
    for values in itertools.product(*columns):
        yield dict(zip(names, values, strict=True))
