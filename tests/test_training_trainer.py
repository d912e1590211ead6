"""Training on a tiny prepared dataset, and its optimizer against torch's own."""

import math

import numpy as np
import pytest
import torch

from virtualmle.data.prepared import PreparedDataset
from virtualmle.models.build import build_model
from virtualmle.models.config import make_config
from virtualmle.training import trainer as trainer_module
from virtualmle.training.batches import TrainBatches
from virtualmle.training.checkpoint import copy_weights
from virtualmle.training.errors import TrainingError
from virtualmle.training.evaluate import evaluate_validation
from virtualmle.training.losses import full_softmax
from virtualmle.training.metrics import metrics_from_ranks
from virtualmle.training.optimizer import FusedAdam
from virtualmle.training.trainer import fit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tiny_dataset_dir):
    return PreparedDataset.load(tiny_dataset_dir)


def small(backbone="sasrec", **knobs):
    defaults = {"hidden_dim": 16, "linear_dim": 8, "attention_dim": 8, "lr": 0.01, "epochs": 3, "batch_size": 32}
    return make_config(backbone, **{**defaults, "num_negatives": 20, **knobs})


def equal_weights(one, other):
    return all(torch.equal(tensor, copy_weights(other)[name]) for name, tensor in copy_weights(one).items())


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
@pytest.mark.parametrize("loss", ["full_softmax", "sampled_softmax"])
def test_training_beats_the_untrained_model_by_far(backbone, loss, dataset):
    config = small(backbone, loss=loss, epochs=6)
    untrained, _ = evaluate_validation(build_model(config, dataset.num_items, 0), dataset, config, None)
    fitted = fit(config, dataset, 0, CPU)
    assert fitted.curve[-1].loss < fitted.curve[0].loss
    assert max(record.ndcg10 for record in fitted.curve) > 1.5 * metrics_from_ranks(untrained)["ndcg@10"]


def test_the_weights_of_the_best_epoch_come_back(dataset):
    config = small(epochs=8, lr=0.1, patience=8)
    fitted = fit(config, dataset, 0, CPU)
    values = [record.ndcg10 for record in fitted.curve]
    assert len(values) == 8 and values[-1] < max(values), "the case needs a worse last epoch"
    assert fitted.best_epoch == 1 + values.index(max(values))
    ranks, _ = evaluate_validation(fitted.model, dataset, config, None)
    assert metrics_from_ranks(ranks)["ndcg@10"] == max(values)


def test_training_stops_after_patience_epochs_without_a_better_one(dataset, monkeypatch):
    scripted = iter([5, 3, 4, 4, 9])  # everybody's rank after each epoch
    ranks = lambda *_: (np.full(dataset.num_users, next(scripted), np.int32), 0)  # noqa: E731
    monkeypatch.setattr(trainer_module, "evaluate_validation", ranks)
    seen = []
    fitted = fit(small(epochs=50, patience=2), dataset, 0, CPU, seen.append)
    assert [record.epoch for record in fitted.curve] == [1, 2, 3, 4] and seen == fitted.curve
    assert fitted.best_epoch == 2


def test_equal_seeds_give_equal_weights_and_other_seeds_do_not(dataset):
    config = small(epochs=1)
    one, two, other = (fit(config, dataset, seed, CPU).model for seed in (1, 1, 2))
    assert equal_weights(one, two) and not equal_weights(one, other)


def test_scoring_knobs_never_reach_the_weights(dataset):
    bare = fit(small(), dataset, 0, CPU)
    fused = fit(small(transition_weight=8.0, popularity_weight=2.0, score_normalisation="none"), dataset, 0, CPU)
    assert equal_weights(bare.model, fused.model)
    assert [record.ndcg10 for record in bare.curve] == [record.ndcg10 for record in fused.curve]


def test_a_loss_that_stops_being_finite_is_an_error_that_names_epoch_and_lr(dataset, monkeypatch):
    monkeypatch.setattr(trainer_module, "sampled_softmax", lambda *_: full_softmax(*_[:3]) * math.nan)
    with pytest.raises(TrainingError, match=r"became nan in epoch 1: lr=0\.01 may be too high"):
        fit(small(), dataset, 0, CPU)


@pytest.mark.parametrize("knobs", [
    {},
    {"backbone": "hstu"},
    {"position": "relative", "readout": "attention", "supervision": "last"},
    {"backbone": "hstu", "position": "none", "readout": "last_k", "ffn": "swiglu"},
    {"position": "both", "ffn": "swiglu", "readout": "mean", "tie_embeddings": True, "causal": False,
     "supervision": "last", "num_blocks": 2},
], ids=str)  # fmt: skip
def test_every_parameter_takes_part_in_a_step(knobs, dataset):
    config = small(**knobs)
    model = build_model(config, dataset.num_items, 0).train()
    batch = next(TrainBatches(dataset, config, CPU, 0).epoch())
    full_softmax(model, batch.supervised(model(batch.inputs)), batch.targets).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_optimizer_is_bit_for_bit_that_of_torch(optimizer):
    config = make_config("sasrec", optimizer=optimizer, lr=0.02, weight_decay=0.1)
    shapes = [(5, 3), (7,)]
    ours = [torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_() for shape in shapes]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    reference = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    optimizers = FusedAdam(ours, config), reference(theirs, lr=0.02, weight_decay=0.1, fused=True)
    for _ in range(5):
        for tensors, stepping in zip((ours, theirs), optimizers, strict=True):
            stepping.zero_grad()
            sum((tensor**2).sum().sin() for tensor in tensors).backward()
            stepping.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
