"""The two clocks of a session: trials and training seconds; the best so far on each, and when a level was reached."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from .outcome import SessionResult
from .statistics import RESAMPLES, Floats

Clock = Literal["trials", "seconds"]
CLOCKS: tuple[Clock, ...] = ("trials", "seconds")


@dataclass(frozen=True)
class Course:
    """The course of one session: after trial i, `times[i]` has passed and `best[i]` is the best NDCG@10 so far.

    `best` is 0 before the first finished trial.
    """

    times: tuple[float, ...]
    best: tuple[float, ...]

    @property
    def end(self) -> float:
        """The time at which the session ended."""
        return self.times[-1] if self.times else 0.0

    def at(self, moments: Sequence[float]) -> Floats:
        """The best so far at each of `moments`; after the end of the session it stays what it was."""
        if not self.times:
            return np.zeros(len(moments))
        index = np.searchsorted(np.asarray(self.times), np.asarray(moments, dtype=float) + 1e-9, side="right")
        return np.concatenate([[0.0], np.asarray(self.best, dtype=float)])[index]

    def reach(self, level: float) -> tuple[float, bool]:
        """The time at which the best so far reached `level`; or the end of the session, and False if it never did."""
        found = next((time for time, best in zip(self.times, self.best, strict=True) if best >= level), None)
        return (self.end, False) if found is None else (found, True)

    @property
    def time_of_best(self) -> float:
        """The time at which the final best was found."""
        return self.reach(self.best[-1])[0] if self.best else 0.0


def course(session: SessionResult, clock: Clock) -> Course:
    """The course of a session on a clock. Trials that the machine failed used no budget and do not count."""
    best = accumulate((trial.ndcg10 or 0.0 for trial in session.trials), max)
    spent = [trial.train_seconds if clock == "seconds" else 1.0 for trial in session.trials]
    return Course(tuple(accumulate(spent)), tuple(best))


def anytime(courses: Sequence[Course], trials: int) -> float:
    """The mean over the sessions of the best so far after each of `trials` trials, averaged; on the clock of trials."""
    moments = [float(number) for number in range(1, trials + 1)]
    return float(np.mean([one.at(moments).mean() for one in courses])) if courses else 0.0


@dataclass(frozen=True)
class Band:
    """The mean best so far of several sessions at `moments`, and its 95 % bootstrap interval over the sessions."""

    moments: Floats
    mean: Floats
    low: Floats
    high: Floats


def band(courses: Sequence[Course], moments: Sequence[float]) -> Band | None:
    """The band of sessions, from the first moment at which all of them have finished a trial; None if there is none."""
    values = np.array([one.at(moments) for one in courses])
    started = np.flatnonzero((values > 0).all(axis=0)) if len(values) else np.array([], dtype=int)
    if not len(started):
        return None
    values, where = values[:, started[0] :], np.asarray(moments, dtype=float)[started[0] :]
    mean = values.mean(axis=0)
    if len(values) < 2:
        return Band(where, mean, mean, mean)
    rows = np.random.default_rng(0).integers(len(values), size=(RESAMPLES // 4, len(values)))
    low, high = np.quantile(values[rows].mean(axis=1), [0.025, 0.975], axis=0)
    return Band(where, mean, low, high)
