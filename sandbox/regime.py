"""The regime of a dataset in a few words, from its train-only profile: what makes one dataset like another. Pure."""

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
"""Per regime: the number that it is read from, upper bounds with their words, and the word beyond the last bound."""


def regime(profile: Mapping[str, Any]) -> dict[str, str]:
    """A word per regime; those whose number the profile lacks are left out."""
    words = {}
    for name, (feature, bounds, beyond) in REGIMES.items():
        value = profile.get(feature)
        if isinstance(value, int | float) and not isinstance(value, bool):
            words[name] = next((word for bound, word in bounds if value < bound), beyond)
    return words
