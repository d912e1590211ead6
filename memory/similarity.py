"""How alike two datasets are, judged by their train-only profiles. A pure function: no database, no dataset."""

import functools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

UNKNOWN = 0.5
"""The similarity where nothing can be compared: neither alike nor unlike."""

SMALLEST = 1e-6  # stands for zero on the logarithmic scale; densities of large catalogues are around 1e-5


def profile_similarity(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """Similarity in [0, 1] of two profiles: 1 = the same numbers; symmetric.

    The mean over the features of exp(-decades apart): 10,000 against 100,000 users score 1/e, whatever the unit.
    Nested mappings are read as features of their own; text is not compared. A feature that only one profile has
    counts as `UNKNOWN`, and so does a comparison without any feature.
    """
    left, right = dict(_features("", a)), dict(_features("", b))
    names = left.keys() | right.keys()
    if not names:
        return UNKNOWN
    return math.fsum(_alike(left.get(name), right.get(name)) for name in sorted(names)) / len(names)


@functools.lru_cache(maxsize=10_000)
def text_similarity(a: str, b: str) -> float:
    """The same of two profiles as JSON text: a server asks it of the same few datasets again and again."""
    return profile_similarity(json.loads(a), json.loads(b))


def _alike(a: float | None, b: float | None) -> float:
    if a is None or b is None:
        return UNKNOWN
    if a * b < 0:
        return 0.0
    decades = math.log10(max(abs(a), SMALLEST)) - math.log10(max(abs(b), SMALLEST))
    return math.exp(-abs(decades))


def _features(prefix: str, profile: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in profile.items():
        if isinstance(value, Mapping):
            yield from _features(f"{prefix}{name}.", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield prefix + name, float(value)
