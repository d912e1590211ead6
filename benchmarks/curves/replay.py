"""Replay of recorded trials as sessions, with the Program's own verdicts, raced by a rule or not.

A replay takes the trials of one dataset and backbone in some order. The first trial is never raced. A stopped trial
costs its seconds until it stopped, and is never the incumbent. Of every trial, also of a stopped one, the verdict is
known that it would have had at its end against the incumbent of that moment; a stopped trial that would have been kept
is *lost*.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from recorded import Curve

from virtualmle.sandbox.program import TrialSize, judge
from virtualmle.sandbox.statistics import Comparison, z_score
from virtualmle.training.metrics import ndcg_per_user
from virtualmle.training.racing import LADDER

KEEP_Z = 1.0
END = 10**6  # an epoch after the last of every trial
Floats = NDArray[np.float64]

Rule = Callable[["Pool", int, int, Sequence[int]], int | None]
"""(pool, candidate, incumbent, trials that ended before) -> the epoch after which the candidate stops, or None."""


class Pool:
    """The trials of one dataset and backbone, with the comparisons of all pairs at their ends and at any epoch."""

    def __init__(self, curves: Sequence[Curve]) -> None:
        self.curves = [curve for curve in curves if not curve.cause]
        self.num_users = self.curves[0].ranks.shape[1]
        self._differences: dict[tuple[int, int, bool], tuple[Floats, Floats]] = {}

    def __len__(self) -> int:
        return len(self.curves)

    def differences(self, row_epoch: int, column_epoch: int, *, bare: bool = False) -> tuple[Floats, Floats]:
        """Delta and standard error (trials, trials) of the row minus the column, each at its best until its epoch."""
        key = (row_epoch, column_epoch, bare)
        if key not in self._differences:
            rows, columns = self._values(row_epoch, bare), self._values(column_epoch, bare)
            delta = rows.mean(axis=1, dtype=np.float64)[:, None] - columns.mean(axis=1, dtype=np.float64)[None, :]
            squares = [(values.astype(np.float64) ** 2).mean(axis=1) for values in (rows, columns)]
            products = (rows @ columns.T).astype(np.float64) / self.num_users
            variance = squares[0][:, None] + squares[1][None, :] - 2 * products - delta**2
            self._differences[key] = delta, np.sqrt(np.maximum(variance, 0) / (self.num_users - 1))
        return self._differences[key]

    def compare(
        self, candidate: int, base: int, candidate_epoch: int = END, base_epoch: int = END, *, bare: bool = False
    ) -> Comparison:
        """Candidate minus base, each at its best until an epoch; as they are judged, or the models without priors."""
        matrices = self.differences(candidate_epoch, base_epoch, bare=bare)
        delta, se = (float(matrix[candidate, base]) for matrix in matrices)
        return Comparison(delta, se, z_score(delta, se), self.num_users)

    def _values(self, epoch: int, bare: bool) -> NDArray[np.float32]:
        """NDCG@10 (trials, users) of each trial at its best until `epoch`; judged, a re-scoring has its final one."""
        best = [_ranks(curve, epoch, bare) for curve in self.curves]
        return np.stack([ndcg_per_user(ranks).astype(np.float32) for ranks in best])


def _ranks(curve: Curve, epoch: int, bare: bool) -> NDArray[np.uint8]:
    """The ranks of a trial at its best until `epoch`."""
    if not bare and (curve.rescored or epoch >= END):
        return curve.final_ranks
    return np.asarray((curve.ranks if bare else curve.judged_ranks)[curve.best_until(epoch, judged=not bare)])


@dataclass
class Played:
    """One replay, trial by trial in its order."""

    order: list[int] = field(default_factory=list)
    would_keep: list[bool] = field(default_factory=list)
    stopped_at: list[int | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    full_seconds: list[float] = field(default_factory=list)
    oracle_seconds: list[float] = field(default_factory=list)
    """With a rule that knows how every trial ends, and stops those that will not be kept at the first rung."""
    best: float = 0.0  # the best NDCG@10 of a trial that ran to its end

    def add(self, index: int, curve: Curve, would_keep: bool, stopped_at: int | None) -> None:
        full = curve.seconds_until(END)
        self.order.append(index)
        self.would_keep.append(would_keep)
        self.stopped_at.append(stopped_at)
        self.seconds.append(full if stopped_at is None else curve.seconds_until(stopped_at))
        self.full_seconds.append(full)
        self.oracle_seconds.append(full if would_keep else curve.seconds_until(LADDER[0]))
        if stopped_at is None:
            self.best = max(self.best, curve.final)

    @property
    def stopped(self) -> list[bool]:
        return [stop is not None for stop in self.stopped_at]

    @property
    def lost(self) -> list[bool]:
        return [keep and stop is not None for keep, stop in zip(self.would_keep, self.stopped_at, strict=True)]


def play(pool: Pool, order: Sequence[int], rule: Rule | None) -> Played:
    """Replay the trials of a pool in an order."""
    played, ended = Played(), list[int]()
    incumbent: int | None = None
    top: int | None = None
    for index in order:
        curve = pool.curves[index]
        keep = incumbent is None or top is None or would_keep(pool, index, incumbent, top)
        stop = None
        if rule and incumbent is not None and not curve.rescored:
            stop = rule(pool, index, incumbent, ended)
        played.add(index, curve, keep, stop)
        if stop is not None:
            continue
        ended.append(index)
        if keep:
            incumbent = index
            top = index if top is None or curve.final > pool.curves[top].final else top
    return played


def would_keep(pool: Pool, candidate: int, incumbent: int, top: int) -> bool:
    """The Program's verdict at the end of the candidate."""
    sizes = [TrialSize(str(index), pool.curves[index].parameters) for index in (candidate, incumbent)]
    against_top = None if top == incumbent else (str(top), pool.compare(candidate, top))
    judgement = judge(*sizes, pool.compare(candidate, incumbent), KEEP_Z, best_kept=against_top)
    return judgement.verdict == "keep"


def orders(pool: Pool, count: int, length: int, seed: int) -> list[list[int]]:
    """`count` random sessions of at most `length` different trials of a pool."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(len(pool))[:length].tolist() for _ in range(count)]


def is_slow_starter(curve: Curve) -> bool:
    """Whether a trial had less than half of its final NDCG@10 after a quarter of its epochs to the best one."""
    quarter = max(1, math.ceil(int(curve.ndcg10.argmax() + 1) / 4))
    return curve.final > 0 and float(curve.ndcg10[:quarter].max()) < curve.final / 2
