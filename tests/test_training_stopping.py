"""Which epochs are evaluated, and what trainings with other limits have in common with a recorded curve."""

import random

import pytest

from virtualmle.training.racing import LADDER
from virtualmle.training.stopping import Part, best_epoch, common_part, epochs_saved, evaluated_epochs, has_ended

LEVELS = [random.Random(7).random() for _ in range(60)]  # NDCG@10 after epochs 1, 2, ...


def trained(epochs: int, patience: int) -> list[tuple[int, float]]:
    """The curve of a training from scratch, as the trainer's loop records it."""
    curve: list[tuple[int, float]] = []
    for epoch in evaluated_epochs(epochs):
        curve.append((epoch, LEVELS[epoch - 1]))
        if has_ended(epoch, best_epoch(curve), epochs, patience):
            break
    return curve


def test_every_epoch_is_evaluated_at_first_then_every_second_and_always_the_last() -> None:
    assert evaluated_epochs(3) == [1, 2, 3]
    assert evaluated_epochs(13) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 13]
    assert set(evaluated_epochs(13)) - {13} <= set(evaluated_epochs(100)), "limits change nothing but the last epoch"
    assert all(rung in evaluated_epochs(100) or rung + 1 in evaluated_epochs(100) for rung in LADDER)


@pytest.mark.parametrize("epochs", [1, 2, 7, 8, 9, 10, 19, 20, 33, 60])
@pytest.mark.parametrize("patience", [1, 2, 3, 5, 8, 20])
def test_a_shared_curve_is_what_training_from_scratch_would_record(epochs: int, patience: int) -> None:
    expected = trained(epochs, patience)
    for source in ((1, 1), (5, 3), (9, 9), (20, 2), (20, 20), (60, 4), (60, 60)):
        on_grid = [(epoch, level) for epoch, level in trained(*source) if epoch in evaluated_epochs(1000)]
        part = common_part(on_grid, epochs, patience)
        if part is None:
            assert epochs % 2 and epochs > 8 and on_grid[-1][0] > epochs, "only the last epoch may be missing"
            continue
        shared = on_grid[: part.num_records]
        assert shared == expected[: part.num_records] and part.best_epoch == best_epoch(shared)
        assert part.ended == (len(shared) == len(expected))


def test_a_prefix_is_of_use_only_with_the_weights_of_its_best_epoch() -> None:
    curve = [(1, 0.1), (2, 0.3), (3, 0.2), (4, 0.25), (5, 0.4)]
    assert common_part(curve, 20, 2) == Part(4, 2, True)
    assert epochs_saved(curve, 20, 2) == 0, "the state has the weights of epoch 5, not those of epoch 2"
    assert epochs_saved(curve[:4], 20, 2) == 4
    assert epochs_saved(curve, 20, 5) == 5 and epochs_saved(curve, 5, 5) == 5
    assert epochs_saved([], 20, 5) == 0
