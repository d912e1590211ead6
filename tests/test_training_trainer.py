"""Training with early stopping on a tiny prepared dataset."""

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
from virtualmle.training.metrics import metrics_from_ranks
from virtualmle.training.objective import Objective
from virtualmle.training.trainer import fit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tiny_dataset_dir):
    return PreparedDataset.load(tiny_dataset_dir)


def small(backbone="sasrec", **knobs):
    defaults = {"hidden_dim": 16, "linear_dim": 8, "attention_dim": 8, "lr": 0.01, "epochs": 3, "batch_size": 32}
    return make_config(backbone, **{**defaults, "num_negatives": 20, **knobs})


def equal_weights(first, second):
    return all(torch.equal(tensor, copy_weights(second)[name]) for name, tensor in copy_weights(first).items())


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
@pytest.mark.parametrize("loss", ["full_softmax", "sampled_softmax"])
def test_training_beats_the_untrained_model_by_far(backbone, loss, dataset):
    config = small(backbone, loss=loss, epochs=6)
    untrained, _ = evaluate_validation(build_model(config, dataset.num_items, 0), dataset, config, None)
    fitted = fit(config, dataset, 0, CPU)
    assert fitted.curve[-1].loss < fitted.curve[0].loss
    assert max(record.ndcg10 for record in fitted.curve) > 1.5 * metrics_from_ranks(untrained)["ndcg@10"]


def test_the_weights_of_the_best_epoch_are_restored(dataset):
    config = small(epochs=8, lr=0.1, patience=8)
    for seed in range(8):  # rounding differs between processors, and with it the epoch that is best
        fitted = fit(config, dataset, seed, CPU)
        values = [record.ndcg10 for record in fitted.curve]
        if values[-1] < max(values):
            break
    assert len(values) == 8 and values[-1] < max(values), "this test needs a last epoch that is not the best"
    assert fitted.best_epoch == 1 + values.index(max(values))
    ranks, _ = evaluate_validation(fitted.model, dataset, config, None)
    assert metrics_from_ranks(ranks)["ndcg@10"] == max(values)


def test_training_stops_after_patience_epochs_without_improvement(dataset, monkeypatch):
    scripted = iter([5, 3, 4, 4, 9])  # the rank of every user after each epoch
    ranks = lambda *_: [(np.full(dataset.num_users, next(scripted), np.int32), 0)]  # noqa: E731
    monkeypatch.setattr(trainer_module, "evaluate_variants", ranks)
    seen = []
    fitted = fit(small(epochs=50, patience=2), dataset, 0, CPU, seen.append)
    assert [record.epoch for record in fitted.curve] == [1, 2, 3, 4] and seen == fitted.curve
    assert fitted.best_epoch == 2


def test_equal_seeds_give_equal_weights_and_different_seeds_do_not(dataset):
    config = small(epochs=1)
    first, same, other = (fit(config, dataset, seed, CPU).model for seed in (1, 1, 2))
    assert equal_weights(first, same) and not equal_weights(first, other)


def test_scoring_knobs_do_not_affect_the_weights(dataset):
    bare = fit(small(), dataset, 0, CPU)
    fused = fit(small(transition_weight=8.0, popularity_weight=2.0, score_normalisation="none"), dataset, 0, CPU)
    assert equal_weights(bare.model, fused.model)
    assert [record.ndcg10 for record in bare.curve] == [record.ndcg10 for record in fused.curve]


def test_a_loss_that_is_not_finite_is_an_error_that_names_epoch_and_lr(dataset, monkeypatch):
    monkeypatch.setattr(Objective, "loss", lambda self, items, states, *rest: items.score(states).sum() * math.nan)
    with pytest.raises(TrainingError, match=r"steps of epoch 1: lr=0\.01 may be too high; grad_clip=1"):
        fit(small(), dataset, 0, CPU)


def test_a_later_divergence_names_its_epoch_and_the_likely_cause(dataset, monkeypatch):
    original, reported = Objective.loss, []

    def diverging(self, items, states, *rest):
        return original(self, items, states, *rest) * (math.nan if reported else 1)

    monkeypatch.setattr(Objective, "loss", diverging)
    with pytest.raises(TrainingError, match=r"steps of epoch 2: temperature=0\.1 may be too low for dot scores"):
        fit(small(temperature=0.1), dataset, 0, CPU, reported.append)


def test_a_score_that_is_not_finite_names_the_epoch(dataset, monkeypatch):
    def overwrite(self, factor=1.0):
        self.parameters[0].data.fill_(math.inf)

    monkeypatch.setattr("virtualmle.training.optimizer.FusedAdam.step", overwrite)
    with pytest.raises(TrainingError, match=r"epoch 1"):
        fit(small(batch_size=16384), dataset, 0, CPU)


def test_averaged_weights_are_evaluated_and_restored(dataset):
    config = small(ema_decay=0.9, epochs=2)
    fitted = fit(config, dataset, 0, CPU)
    ranks, _ = evaluate_validation(fitted.model, dataset, config, None)
    assert metrics_from_ranks(ranks)["ndcg@10"] == fitted.curve[fitted.best_epoch - 1].ndcg10
    raw = fit(small(epochs=2), dataset, 0, CPU)
    assert [r.loss for r in raw.curve] == [r.loss for r in fitted.curve], "averaging must not change the training"
    assert not equal_weights(raw.model, fitted.model)


@pytest.mark.parametrize("knobs", [
    {"loss": "bce"}, {"loss": "gbce", "negative_sharing": "position"}, {"logq_correction": True, "negative_power": 0.5},
    {"augmentation": "mixed"}, {"contrastive_weight": 0.1}, {"contrastive_weight": 0.2, "augmentation": "crop"},
    {"schedule": "cosine", "warmup_epochs": 1.0}, {"grad_clip": 0.01}, {"ema_decay": 0.9}, {"embedding_l2": 1e-4},
    {"max_norm": 0.05}, {"token_dropout": 0.2}, {"window_stride": 2, "max_len": 3}, {"label_smoothing": 0.1},
    {"time_bias": True}, {"position": "rotary"}, {"conv_kernel": 3}, {"frequency_filter": True},
    {"frequency_rescaling": 0.5}, {"latent_steps": 1},
    {"norm": "rms", "norm_placement": "post"}, {"shared_blocks": True, "num_blocks": 2},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_every_knob_changes_training_and_the_loss_still_falls(backbone, knobs, dataset):
    plain = fit(small(backbone, epochs=2, num_blocks=knobs.get("num_blocks", 1), max_len=knobs.get("max_len", 50)),
                dataset, 0, CPU)
    fitted = fit(small(backbone, epochs=2, **knobs), dataset, 0, CPU)
    assert fitted.curve[-1].loss < fitted.curve[0].loss
    shapes = [{n: w.shape for n, w in copy_weights(f.model).items()} for f in (plain, fitted)]
    assert shapes[0] != shapes[1] or not equal_weights(plain.model, fitted.model)


@pytest.mark.parametrize("knobs", [
    {},
    {"backbone": "hstu"},
    {"position": "relative", "readout": "attention", "supervision": "last"},
    {"backbone": "hstu", "position": "none", "readout": "last_k", "ffn": "swiglu"},
    {"position": "both", "ffn": "swiglu", "readout": "mean", "tie_embeddings": True, "causal": False,
     "supervision": "last", "num_blocks": 2},
], ids=str)  # fmt: skip
def test_every_parameter_gets_a_gradient(knobs, dataset):
    config = small(**knobs)
    model = build_model(config, dataset.num_items, 0).train()
    batch = next(TrainBatches(dataset, config, CPU, 0).epoch())
    model.score(batch.supervised(model(batch.inputs))).sin().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
