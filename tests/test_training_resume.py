"""Resuming from a saved state gives bit for bit the result of a run without interruption."""

import pytest
import torch

from virtualmle.data.prepared import PreparedDataset
from virtualmle.models.config import make_config
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
