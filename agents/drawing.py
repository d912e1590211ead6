"""Candidate values of a knob: its choices, a random value, a rounded number. `Knob.check` decides what is valid."""

import math

import numpy as np

from ..models.knobs.declaration import Value
from ..sandbox.action_space import Knob

SIGNIFICANT_DIGITS = 3


def choices_of(knob: Knob) -> tuple[Value, ...]:
    """The values of a boolean or categorical knob; empty for a numeric knob."""
    return (False, True) if knob.type == "bool" else knob.choices


def bounds(knob: Knob) -> tuple[float, float]:
    """The lowest and the highest value of a numeric knob."""
    assert knob.low is not None and knob.high is not None  # numeric knobs have bounds, other knobs have none
    return knob.low, knob.high


def draw(knob: Knob, generator: np.random.Generator) -> Value:
    """A random value from the whole range, uniform on the knob's own scale (linear or log) or over its levels."""
    if choices := choices_of(knob):
        return choices[int(generator.integers(len(choices)))]
    if knob.levels:
        return knob.levels[int(generator.integers(len(knob.levels)))]
    low, high = bounds(knob)
    if knob.scale == "log" and low > 0:
        return tidy(knob, math.exp(generator.uniform(math.log(low), math.log(high))))
    return tidy(knob, float(generator.uniform(low, high)))


def tidy(knob: Knob, value: float) -> int | float:
    """`value` clipped to the bounds, with the knob's type and `SIGNIFICANT_DIGITS` digits; or the nearest level."""
    if knob.levels:
        return min(knob.levels, key=lambda level: abs(level - value))
    low, high = bounds(knob)
    bounded = min(max(value, low), high)
    if knob.type == "int":
        return int(min(max(round(bounded), math.ceil(low)), math.floor(high)))
    short = float(f"{bounded:.{SIGNIFICANT_DIGITS}g}")
    return short if low <= short <= high else bounded
