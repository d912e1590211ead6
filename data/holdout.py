"""The length of a hold-out (30d, 12h, 4w, 10%), and the two cuts that it makes in the time of a log.

Not covered: which events become targets (`splits.py`).
"""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .time_units import SECONDS_PER_DAY

UNIT_SECONDS = {"h": 3_600, "d": SECONDS_PER_DAY, "w": 7 * SECONDS_PER_DAY}
LENGTH = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(h|d|w|%)")


@dataclass(frozen=True)
class Holdout:
    """The length of the test part, and of the validation part before it: a number of hours, days, weeks or percent."""

    number: float
    unit: str  # h, d, w, or % of the events

    @property
    def seconds(self) -> int | None:
        """The length in seconds, rounded; None for a share of the events."""
        return None if self.unit == "%" else round(self.number * UNIT_SECONDS[self.unit])

    def times(self, factor: int) -> "Holdout":
        """A hold-out that is `factor` times as long."""
        return Holdout(self.number * factor, self.unit)

    def __str__(self) -> str:
        return f"{self.number:.10g}{self.unit}"


@dataclass(frozen=True)
class Cuts:
    """Unix seconds. Train events are before `valid_from`, and test events are those from `test_from` on."""

    valid_from: int
    test_from: int


def parse_holdout(text: str) -> Holdout:
    """Read a length such as 30d, 12h, 4w or 10%. Raises DataError if it is none, or if it leaves no train part."""
    match = LENGTH.fullmatch(text.strip().lower())
    if not match or float(match[1]) <= 0:
        raise DataError(
            f"holdout={text!r:.60} is not a length; use hours, days, weeks or a share of the events, "
            "e.g. 12h, 30d, 4w or 10%"
        )
    holdout = Holdout(float(match[1]), match[2])
    if holdout.unit == "%" and holdout.number >= 50:
        raise DataError(f"holdout={text} leaves no train part, because validation is as long as test; 10% is usual")
    return holdout


def cuts_of(timestamps: npt.NDArray[np.int64], holdout: Holdout) -> Cuts:
    """The cuts of a log with these times, Unix seconds (num_events,), in any order.

    A length of time counts back from the last event: with 30d, the last 30 times 86,400 seconds are test, and the 30
    days before them are validation. A share counts events; all events with the time of a cut come after it, so the
    parts may be larger than the share. Raises DataError if no event is left before the first cut, or between the cuts.
    """
    ordered = np.sort(timestamps)
    seconds = holdout.seconds
    if seconds is not None:
        end = int(ordered[-1]) + 1
        cuts = Cuts(end - 2 * seconds, end - seconds)
    else:
        count = max(1, round(len(ordered) * holdout.number / 100))
        cuts = Cuts(*(int(ordered[max(0, len(ordered) - parts * count)]) for parts in (2, 1)))
    num_train, num_visible = np.searchsorted(ordered, [cuts.valid_from, cuts.test_from])
    if not num_train or num_train == num_visible:
        days = (int(ordered[-1]) - int(ordered[0])) / SECONDS_PER_DAY
        part = "before the validation part" if not num_train else "in the validation part"
        raise DataError(
            f"holdout={holdout} leaves no event {part}, which is as long as the test part: the log covers "
            f"{days:,.1f} days; use a {'shorter' if not num_train else 'longer'} hold-out"
        )
    return cuts
