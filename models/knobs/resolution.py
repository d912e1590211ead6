"""The resolution of a numeric knob: values that round to the same number are the same value.

Without a resolution, lr = .0003 and .00030000001 would be two trials of one configuration, and the better of the two
would be kept: a search for a lucky run under the name of tuning.
"""

import math
from dataclasses import dataclass
from decimal import Decimal

DIGITS = 2


@dataclass(frozen=True)
class Resolution:
    """The grid of a knob's values: multiples of `step`, or two significant digits if `step` is None.

    step: as text, so that multiples are exact decimals. powers: beside numbers of two digits, powers of two belong to
    the grid. complement: the two digits are those of 1 - value, for decays near 1. finest: smaller digits do not count,
    for ranges that include 0, where two tiny values act alike.
    """

    step: str | None = None
    powers: bool = False
    complement: bool = False
    finest: str | None = None

    def __str__(self) -> str:
        """The resolution in words: "multiples of 0.01", "2 significant digits"."""
        if self.step is not None:
            return "integers" if self.step == "1" else f"multiples of {self.step}"
        if self.complement:
            return f"{DIGITS} significant digits of 1 - value"
        more = ", powers of 2" if self.powers else f", multiples of {self.finest}" if self.finest else ""
        return f"{DIGITS} significant digits{more}"

    def nearest(self, value: float) -> float:
        """The number of the grid that is nearest to `value`, which must be finite."""
        if self.step is not None:
            return _multiple(value, self.step)
        if self.finest is not None and abs(value) < 10 * float(self.finest):
            return _multiple(value, self.finest)
        if self.complement:
            return float(1 - Decimal(_two_digits(1 - value)))
        candidates = [float(_two_digits(value))]
        if self.powers and value >= 1:
            candidates += [2.0 ** math.floor(math.log2(value)), 2.0 ** math.ceil(math.log2(value))]
        return min(candidates, key=lambda candidate: abs(candidate - value))


def _multiple(value: float, step: str) -> float:
    return float(round(value / float(step)) * Decimal(step)) + 0.0  # -0.0 and 0 must have the same fingerprint


def _two_digits(value: float) -> str:
    return f"{value:.{DIGITS - 1}e}"
