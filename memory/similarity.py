"""Similarity of two datasets, computed from their train-only profiles. Pure functions: no database, no dataset."""

import functools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

UNKNOWN = 0.5
"""The neutral similarity, used if nothing can be compared."""

SMALLEST = 1e-6  # lower bound on the log scale; densities of large catalogues are around 1e-5


def profile_similarity(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """Symmetric similarity in [0, 1] of two profiles; 1 means equal numbers.

    The mean over features of exp(-|log10(a / b)|), which does not depend on the unit: 10,000 against 100,000 users
    gives 1/e. Entries of nested mappings are separate features; text is ignored. A feature that only one profile has
    counts as `UNKNOWN`, and two profiles without any feature have the similarity `UNKNOWN`.
    """
    left, right = dict(_features("", a)), dict(_features("", b))
    names = left.keys() | right.keys()
    if not names:
        return UNKNOWN
    return math.fsum(_feature_similarity(left.get(name), right.get(name)) for name in sorted(names)) / len(names)


@functools.lru_cache(maxsize=10_000)
def text_similarity(a: str, b: str) -> float:
    """`profile_similarity` of two profiles in JSON, cached because a server compares the same few datasets often."""
    return profile_similarity(json.loads(a), json.loads(b))


def _feature_similarity(a: float | None, b: float | None) -> float:
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
