"""Constants of the rule that are chosen on all datasets but one, tried on that one."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from replay import Pool

from virtualmle.training import racing

Row = Mapping[str, object]
MOST_LOST = 0.02
GRID: dict[str, tuple[float, ...]] = {"STEEPEST": (1.3, 1.5, 1.7), "LOW_POPULARITY": (0.0, 1.2, 1.5)}
"""The constants of training/racing.py among which the choice is made."""


def choices() -> list[dict[str, float]]:
    return [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]


@contextmanager
def constants(values: Mapping[str, float]) -> Iterator[None]:
    """Constants of training/racing.py, changed for as long as the context lasts."""
    before = {name: getattr(racing, name) for name in values}
    for name, value in values.items():
        setattr(racing, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(racing, name, value)


def held_out(pools: Mapping[str, Pool], measure: Callable[[], Mapping[str, Row]]) -> dict[str, dict[str, object]]:
    """By dataset: the constants chosen on the others, and the figures of these constants on the dataset."""
    tried = choices()
    found = []
    for values in tried:
        with constants(values):
            found.append(measure())
    result: dict[str, dict[str, object]] = {}
    for dataset in dict.fromkeys(name.split()[0] for name in pools):
        inside = [name for name in pools if name.split()[0] == dataset]
        scores = [_score([rows[name] for name in pools if name not in inside]) for rows in found]
        best = max(range(len(tried)), key=lambda index: scores[index])
        for name in inside:
            result[name] = {**found[best][name], **tried[best]}
    return result


def _score(rows: Sequence[Row]) -> tuple[bool, float]:
    """First few trials lost, then many seconds saved."""
    kept = np.array([float(str(row["would be kept"])) for row in rows])
    lost = float((kept * [float(str(row["lost"])) for row in rows]).sum() / kept.sum())
    saved = float(np.mean([float(str(row["saved"])) for row in rows]))
    return (lost <= MOST_LOST, saved if lost <= MOST_LOST else -lost)
