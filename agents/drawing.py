"""Candidate values of a knob: its choices, or a random value. `Knob.check` decides what is valid."""

import math

import numpy as np

from ..models.knobs.declaration import Value
from ..sandbox.action_space import Knob


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
        return knob.rounded(math.exp(generator.uniform(math.log(low), math.log(high))))
    return knob.rounded(float(generator.uniform(low, high)))
