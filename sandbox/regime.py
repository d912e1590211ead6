"""Describe a dataset in a few words (its regime: size, density, pace, ...) from its train-only profile. Pure."""

from collections.abc import Mapping
from typing import Any

REGIMES: dict[str, tuple[str, tuple[tuple[float, str], ...], str]] = {
    "size": ("users", ((10_000, "small"), (200_000, "medium")), "large"),
    "catalogue": ("items", ((2_000, "small"), (50_000, "medium")), "large"),
    "histories": ("length_median", ((7, "short"), (20, "medium")), "long"),
    "density": ("density", ((0.0005, "very sparse"), (0.005, "sparse")), "dense"),
    "popularity": ("popularity_gini", ((0.4, "even"), (0.7, "skewed")), "very skewed"),
    "repeats": ("repeat_rate", ((0.01, "none"), (0.1, "some")), "many"),
    "pace": ("median_gap_days", ((0.5, "sessions"), (14.0, "days to weeks")), "months"),
}
"""Per regime: the profile field, exclusive upper bounds with their words, and the word above the last bound."""


def regime(profile: Mapping[str, Any]) -> dict[str, str]:
    """One word per regime; regimes whose field is missing from the profile are left out."""
    words = {}
    for name, (field, bounds, above) in REGIMES.items():
        value = profile.get(field)
        if isinstance(value, int | float) and not isinstance(value, bool):
            words[name] = next((word for bound, word in bounds if value < bound), above)
    return words
