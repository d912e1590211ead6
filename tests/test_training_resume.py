"""Resuming from a saved state gives bit for bit the result of a run without interruption."""

import errno
import os
from contextlib import nullcontext

import pytest
import torch

from virtualmle.data.prepared import PreparedDataset
from virtualmle.models.config import make_config
from virtualmle.training import trainer
from virtualmle.training.checkpoint import copy_weights
from virtualmle.training.errors import TrainingError
from virtualmle.training.trainer import fit

CPU = torch.device("cpu")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dataset(tiny_dataset_dir):
    return PreparedDataset.load(tiny_dataset_dir)


def small(backbone="sasrec", **knobs):
    defaults = {"hidden_dim": 16, "linear_dim": 8, "attention_dim": 8, "lr": 0.01, "epochs": 5, "batch_size": 32}
    return make_config(backbone, **{**defaults, "num_negatives": 20, "patience": 5, **knobs})


class KilledError(Exception):
    """Simulates a SIGKILL between two epochs."""


def stop_after(epoch):
    def on_epoch(record):
        if record.epoch > epoch:
            raise KilledError

    return on_epoch


def without_seconds(curve):
    return [(record.epoch, record.loss, record.ndcg10) for record in curve]


@pytest.mark.parametrize("epoch", [1, 3])
@pytest.mark.parametrize("knobs", [
    pytest.param({}, id="sasrec"),
    pytest.param({"backbone": "hstu", "ema_decay": 0.9, "schedule": "cosine", "warmup_epochs": 2.0}, id="hstu-ema"),
    pytest.param({"augmentation": "mixed", "contrastive_weight": 0.1, "negative_power": 0.5}, id="augmented"),
    pytest.param({"token_dropout": 0.2, "loss": "bce", "negative_sharing": "position"}, id="per-position"),
])  # fmt: skip
def test_a_resumed_run_equals_one_without_interruption(knobs, epoch, dataset, tmp_path):
    config, state = small(**knobs), tmp_path / "state.safetensors"
    uninterrupted = fit(config, dataset, 7, CPU)
    with pytest.raises(KilledError):
        fit(config, dataset, 7, CPU, stop_after(epoch), save_to=state, save_every=0)
    torch.manual_seed(99)  # as in another process
    reported = []
    resumed = fit(config, dataset, 7, CPU, reported.append, resume_from=state)
    assert without_seconds(resumed.curve) == without_seconds(uninterrupted.curve)
    assert [record.epoch for record in reported] == list(range(epoch + 1, 6)), "only new epochs are reported"
    assert resumed.best_epoch == uninterrupted.best_epoch
    expected, weights = copy_weights(uninterrupted.model), copy_weights(resumed.model)
    assert all(torch.equal(expected[name], weights[name]) for name in expected)


@pytest.mark.parametrize("change", [{"seed": 8}, {"lr": 0.02}], ids=str)
def test_a_state_of_another_run_is_refused(change, dataset, tmp_path):
    state = tmp_path / "state.safetensors"
    fit(small(epochs=1), dataset, 7, CPU, save_to=state, save_every=0)
    seed = change.pop("seed", 7)
    with pytest.raises(TrainingError, match="belongs to another"):
        fit(small(epochs=1, **change), dataset, seed, CPU, resume_from=state)


def test_a_truncated_state_is_an_error_with_a_clear_message(dataset, tmp_path):
    state = tmp_path / "state.safetensors"
    fit(small(epochs=1), dataset, 7, CPU, save_to=state, save_every=0)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="cannot be read as a training state"):
        fit(small(epochs=1), dataset, 7, CPU, resume_from=state)


SHARED = [
    pytest.param({}, {}, id="sasrec"),
    pytest.param({"backbone": "hstu", "ema_decay": 0.9, "warmup_epochs": 2.0}, {}, id="hstu-ema-warm-up"),
    pytest.param({"schedule": "cosine", "epochs": 12}, {"epochs": 12}, id="cosine-patience-only"),
    pytest.param({"backbone": "hstu", "augmentation": "mixed", "contrastive_weight": 0.1}, {}, id="augmented"),
]


def assert_equal(one, other):
    assert without_seconds(one.curve) == without_seconds(other.curve) and one.best_epoch == other.best_epoch
    first, second = copy_weights(one.model), copy_weights(other.model)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [row.tolist() for row in one.epoch_ranks] == [row.tolist() for row in other.epoch_ranks]


@pytest.mark.parametrize(("knobs", "fixed"), SHARED)
def test_more_epochs_or_patience_continue_a_finished_training(knobs, fixed, dataset, tmp_path):
    scratch = fit(small(**{"epochs": 12, **knobs, "patience": 9}), dataset, 7, CPU)
    state, later = tmp_path / "first", tmp_path / "second"
    first = fit(small(**{**knobs, "epochs": 3, **fixed, "patience": 1 if fixed else 2}), dataset, 7, CPU, save_to=state)
    torch.manual_seed(99)  # as in another process
    middle = small(**{**knobs, "epochs": 9, "patience": 9, **fixed})  # 9 is evaluated only as a last epoch
    second = fit(middle, dataset, 7, CPU, save_to=later, resume_from=state)
    assert second.resumed_epochs == first.curve[-1].epoch and second.curve[-1].epoch == middle.epochs
    reported = []
    longest = small(**{"epochs": 12, **knobs, "patience": 9})
    third = fit(longest, dataset, 7, CPU, reported.append, resume_from=later)
    assert_equal(third, scratch)
    assert [r.epoch for r in third.curve] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12]
    assert [r.epoch for r in reported] == ([] if fixed else [10, 12]), "only new epochs are trained"


def test_fewer_epochs_or_less_patience_take_the_recorded_part(dataset, tmp_path):
    state = tmp_path / "state"
    longer = fit(small(epochs=14, patience=14, lr=0.03), dataset, 7, CPU, save_to=state)
    best = longer.best_epoch
    assert best == 8, "the learning rate is chosen so that the best epoch is not the last"
    for limits in ({"epochs": best, "patience": 14}, {"epochs": 10, "patience": 14}, {"epochs": 14, "patience": 4}):
        config, reported = small(lr=0.03, **limits), []
        recorded = fit(config, dataset, 7, CPU, reported.append, resume_from=state)
        assert not reported and recorded.resumed_epochs == recorded.curve[-1].epoch
        assert_equal(recorded, fit(config, dataset, 7, CPU))


def test_a_state_without_the_weights_of_the_best_epoch_is_refused(dataset, tmp_path):
    state = tmp_path / "state"
    best = fit(small(epochs=6), dataset, 7, CPU, save_to=state).best_epoch
    with pytest.raises(TrainingError, match=f"without the weights .* epochs={best - 1}"):
        fit(small(epochs=best - 1), dataset, 7, CPU, resume_from=state)
    with pytest.raises(TrainingError, match="belongs to another"):
        fit(small(epochs=9, schedule="linear"), dataset, 7, CPU, resume_from=state)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_only_a_full_disk_may_cost_the_state_of_a_training_that_is_over(code, dataset, tmp_path, monkeypatch):
    def refuse(path, state):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(trainer, "write_state", refuse)  # a full disk cannot be had in a test without mounting one
    expected = pytest.raises(OSError) if code == errno.EROFS else nullcontext()
    with expected:
        assert fit(small(epochs=2), dataset, 7, CPU, save_to=tmp_path / "state").curve[-1].epoch == 2
    with pytest.raises(OSError):  # in the middle, the state is what a killed trial resumes from
        fit(small(epochs=2), dataset, 7, CPU, save_to=tmp_path / "state", save_every=0)
