"""Training batches against plain slicing of each user's train events."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from virtualmle.models.config import make_config
from virtualmle.training.batches import TrainBatches
from virtualmle.training.errors import TrainingError

HISTORIES = [[0, 1, 2, 3, 4, 5], [6, 7], [8], [9, 10, 11, 12], [13, 14, 15]]
DATASET = SimpleNamespace(
    items=np.concatenate(HISTORIES).astype(np.int32),
    offsets=np.cumsum([0, *map(len, HISTORIES)]),
    num_items=16,
)


def examples(seed=0, epochs=1, **knobs):
    """(inputs, targets) of every sequence, in the order of the epochs' batches."""
    config = make_config("sasrec", **{"max_len": 3, **knobs})
    batches = TrainBatches(DATASET, config.model_copy(update={"batch_size": 2}), torch.device("cpu"), seed)
    found = []
    for _ in range(epochs):
        for batch in batches.epoch():
            lengths = batch.inputs.offsets.diff()
            targets = batch.targets.split([1] * len(lengths) if batch.last_only else lengths.tolist())
            inputs = batch.inputs.items.split(lengths.tolist())
            found += [(i.tolist(), t.tolist()) for i, t in zip(inputs, targets, strict=True)]
    return found


def expected(max_len, last_only):
    pairs = [(h[:-1][-max_len:], h[1:][-max_len:]) for h in HISTORIES if len(h) > 1]
    return sorted((inputs, targets[-1:] if last_only else targets) for inputs, targets in pairs)


@pytest.mark.parametrize("max_len", [2, 3, 50])
@pytest.mark.parametrize("supervision", ["all", "last"])
def test_an_epoch_holds_every_user_with_two_events_once(max_len, supervision):
    assert sorted(examples(max_len=max_len, supervision=supervision)) == expected(max_len, supervision == "last")


def test_supervised_states_are_those_that_see_what_comes_before_the_target():
    config = make_config("sasrec", supervision="last")
    batch = next(TrainBatches(DATASET, config, torch.device("cpu"), 0).epoch())
    states = batch.inputs.items[:, None].float()
    assert (batch.supervised(states).squeeze(1).long() + 1).tolist() == batch.targets.tolist()


def test_epochs_are_shuffled_anew_and_reproducibly():
    first, again = examples(seed=3, epochs=4), examples(seed=3, epochs=4)
    assert first == again
    orders = {tuple(inputs[0] for inputs, _ in first[start : start + 4]) for start in range(0, 16, 4)}
    assert len(orders) > 1
    assert examples(seed=4, epochs=4) != first


def test_a_dataset_without_any_example_is_an_error():
    lonely = SimpleNamespace(items=np.array([1, 2], np.int32), offsets=np.array([0, 1, 2]), num_items=3)
    with pytest.raises(TrainingError, match="two train events"):
        TrainBatches(lonely, make_config("sasrec"), torch.device("cpu"), 0)
