"""Training batches against a reference that slices the train events of each user."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.data.readers import read_log
from virtualmle.kernels.jagged.time_buckets import time_buckets
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
    """(inputs, targets) of every sequence, in the order of the batches."""
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
def test_an_epoch_contains_every_user_with_two_events_once(max_len, supervision):
    assert sorted(examples(max_len=max_len, supervision=supervision)) == expected(max_len, supervision == "last")


@pytest.mark.parametrize("filename", ["unit_ms.csv", "unit_iso_frac.csv", "unit_compact.csv"])
def test_time_buckets_do_not_depend_on_the_unit_of_the_log(shared_logs, tmp_path, filename):
    def buckets(name):
        folder = tmp_path / name
        prepare(read_log(shared_logs / name), "log", folder, PrepareOptions(k_core=1), bytes(range(32)))
        dataset = PreparedDataset.load(folder)
        batch = next(TrainBatches(dataset, make_config("hstu", time_bias=True), torch.device("cpu"), 0).epoch())
        times = batch.inputs.plan.times
        return time_buckets(times[:, None] - times)

    in_seconds = buckets("unit_s.csv")
    assert buckets(filename).equal(in_seconds)
    assert 43 in in_seconds  # six days


def test_supervised_states_are_those_of_the_event_before_the_target():
    config = make_config("sasrec", supervision="last")
    batch = next(TrainBatches(DATASET, config, torch.device("cpu"), 0).epoch())
    states = batch.inputs.items[:, None].float()
    assert (batch.supervised(states).squeeze(1).long() + 1).tolist() == batch.targets.tolist()


def test_every_epoch_is_shuffled_differently_and_reproducibly():
    first, again = examples(seed=3, epochs=4), examples(seed=3, epochs=4)
    assert first == again
    orders = {tuple(inputs[0] for inputs, _ in first[start : start + 4]) for start in range(0, 16, 4)}
    assert len(orders) > 1
    assert examples(seed=4, epochs=4) != first


def test_a_dataset_without_any_example_is_an_error():
    single_events = SimpleNamespace(items=np.array([1, 2], np.int32), offsets=np.array([0, 1, 2]), num_items=3)
    with pytest.raises(TrainingError, match="two train events"):
        TrainBatches(single_events, make_config("sasrec"), torch.device("cpu"), 0)


def reference_windows(max_len, stride, last_only):
    """The events of every example, found by walking back from the end of each history."""
    found = []
    for history in HISTORIES:
        end = len(history)
        while end >= 2:
            events = history[:end][-(max_len + 1) :]
            found.append((events[:-1], events[-1:] if last_only else events[1:]))
            reaches_first = len(events) == end
            end = end - stride if stride else 0
            if reaches_first and not last_only:
                break
            if end < 2 and stride and not reaches_first and not last_only:
                end = 2  # the last window starts at the first event
    return sorted(found)


@pytest.mark.parametrize("stride", [0, 1, 2, 3])
@pytest.mark.parametrize("max_len", [2, 3, 50])
def test_windows_with_last_supervision_are_every_stride_th_prefix(max_len, stride):
    found = sorted(examples(max_len=max_len, supervision="last", window_stride=stride))
    assert found == reference_windows(max_len, stride, True)


@pytest.mark.parametrize(("max_len", "stride"), [(2, 1), (2, 2), (3, 1), (3, 2), (3, 3), (50, 3)])
def test_windows_with_all_supervision_cover_every_target_of_a_long_history(max_len, stride):
    found = examples(max_len=max_len, window_stride=stride)
    assert {target for _, targets in found for target in targets} == {i for h in HISTORIES for i in h[1:]}
    assert all(len(inputs) <= max_len for inputs, _ in found)
    assert len(found) == len({tuple(inputs) for inputs, _ in found}), "no window occurs twice"
    if max_len == 50:
        assert sorted(found) == expected(50, False), "a window that covers the history needs no further one"


@pytest.mark.parametrize("kind", ["crop", "reorder", "mask", "mixed"])
def test_targets_follow_their_inputs_in_an_augmented_sequence(kind):
    for inputs, targets in examples(augmentation=kind, augmentation_share=1.0, max_len=50, epochs=6):
        assert inputs[1:] == targets[:-1], "inputs and targets are one sequence, shifted by one"
        history = next(h for h in HISTORIES if inputs[0] in h)
        assert set(inputs + targets) <= set(history)


def test_augmentation_with_share_zero_changes_nothing():
    assert examples(augmentation="crop", augmentation_share=0.0) == examples()


def test_masked_items_are_hidden_and_keep_their_positions():
    config = make_config("sasrec", augmentation="mask", augmentation_share=1.0, augmentation_ratio=0.6)
    batch = next(TrainBatches(DATASET, config, torch.device("cpu"), 0, 5).epoch())
    assert batch.inputs.masked.any() and len(batch.inputs.masked) == len(batch.inputs.items)
    assert sorted(batch.inputs.offsets.diff().tolist()) == [1, 2, 3, 5]


def test_views_are_two_augmentations_of_the_same_sequences():
    config = make_config("sasrec", augmentation="crop", augmentation_ratio=0.5, augmentation_share=0.0,
                         contrastive_weight=0.1)
    batch = next(TrainBatches(DATASET, config, torch.device("cpu"), 0).epoch())
    plain = batch.inputs.items.split(batch.inputs.offsets.diff().tolist())
    for view in batch.views:
        for items, kept in zip(plain, view.items.split(view.offsets.diff().tolist()), strict=True):
            assert 1 <= len(kept) <= len(items) and set(kept.tolist()) <= set(items.tolist())
    config = config.model_copy(update={"augmentation": "none"})
    batch = next(TrainBatches(DATASET, config, torch.device("cpu"), 0).epoch())
    assert batch.views[0] is batch.views[1] is batch.inputs, "without augmentation only dropout makes the views differ"


def test_times_stay_with_their_events():
    dataset = SimpleNamespace(**vars(DATASET), timestamps=np.arange(16) * 100)
    config = make_config("hstu", time_bias=True, max_len=3)
    batch = next(TrainBatches(dataset, config, torch.device("cpu"), 0).epoch())
    assert torch.equal(batch.inputs.plan.times, batch.inputs.items * 100)
