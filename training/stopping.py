"""Which epochs are evaluated, and when early stopping ends a training. Pure functions, without torch.

Every epoch is evaluated until `DENSE_UNTIL`, then every second one, and the last one that `epochs` allows. The epochs
depend on nothing else, so that trainings which differ in `epochs` or `patience` evaluate the same weights. Measured on
96 trainings of 12 epochs (benchmarks/bench_engine.py), the selected NDCG@10 is .4 % lower in the mean than with all.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .spec import EpochRecord

DENSE_UNTIL, STRIDE = 8, 2
JUDGED_STRIDE = 2

Point = tuple[int, float]
"""An evaluated epoch, and its NDCG@10."""


class Part(NamedTuple):
    """The part of a recorded curve that a training under other limits has in common with it."""

    num_records: int
    best_epoch: int  # the best of these records; 0 = none
    ended: bool  # whether training ends with the last of them; False: it goes on


def on_grid(epoch: int) -> bool:
    """Whether an epoch (1 = first) is evaluated whatever `epochs` is."""
    return epoch <= DENSE_UNTIL or epoch % STRIDE == 0


def evaluated_epochs(epochs: int) -> list[int]:
    """The evaluated epochs of a training of at most `epochs`, ascending."""
    return [epoch for epoch in range(1, epochs + 1) if on_grid(epoch) or epoch == epochs]


def judged_epochs(epochs: Iterable[int]) -> list[int]:
    """Those of the evaluated `epochs` after which the scores with score priors are ranked as well, if racing asks."""
    return [epoch for epoch in epochs if epoch % JUDGED_STRIDE == 0]


def seconds_per_epoch(curve: Sequence[EpochRecord]) -> float:
    """Seconds of training and evaluation per epoch of a training whose evaluated epochs are these; at least one.

    The first record also has the seconds in which the process warms up: it counts only as long as it is the only one.
    """
    first, last = curve[0], curve[-1]
    measured, epochs = (curve[1:], last.epoch - first.epoch) if len(curve) > 1 else (curve, _epochs_of(first.epoch))
    return sum(record.train_seconds + record.evaluate_seconds for record in measured) / epochs


def _epochs_of(epoch: int) -> int:
    """How many epochs were trained since the evaluation before the one after `epoch`."""
    return 1 if on_grid(epoch - 1) or epoch == 1 else STRIDE


def points(curve: Sequence[EpochRecord]) -> list[Point]:
    """Epoch and NDCG@10 of every record."""
    return [(record.epoch, record.ndcg10) for record in curve]


def best_epoch(curve: Sequence[Point]) -> int:
    """The epoch with the largest NDCG@10, the first of equal ones; 0 for an empty curve."""
    return max(curve, key=lambda point: (point[1], -point[0]), default=(0, 0.0))[0]


def has_ended(epoch: int, best_epoch: int, epochs: int, patience: int) -> bool:
    """Whether training ends after an evaluated epoch: epochs used up, or `patience` epochs after the best one."""
    return epoch >= epochs or epoch - best_epoch >= patience


def common_part(curve: Sequence[Point], epochs: int, patience: int) -> Part | None:
    """What a training under `epochs` and `patience` shares with a recorded `curve` of epochs on the grid.

    None if that training evaluates an epoch in between that the record has left out.
    """
    best, level = 0, float("-inf")
    for number, (epoch, ndcg10) in enumerate(curve, 1):
        if epoch > epochs:
            return None
        if ndcg10 > level:
            best, level = epoch, ndcg10
        if has_ended(epoch, best, epochs, patience):
            return Part(number, best, True)
    return Part(len(curve), best, False)


def epochs_saved(curve: Sequence[Point], epochs: int, patience: int) -> int:
    """The epochs that a training need not do again, given the state after the last epoch of `curve`; 0: all of them.

    Besides the weights after its last epoch, a state has those of the best epoch on the curve.
    """
    part = common_part(curve, epochs, patience)
    if part is None or not part.num_records or part.best_epoch != best_epoch(curve):
        return 0
    return curve[part.num_records - 1][0]
