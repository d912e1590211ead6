"""Soft targets from item transitions, against a plain float64 implementation that counts with loops."""

from collections import Counter

import pytest
import torch

from tests.small_parts import TABLES, train_part
from virtualmle.models.build import build_model
from virtualmle.models.config import make_config
from virtualmle.training import distillation
from virtualmle.training.batches import TrainBatches
from virtualmle.training.objective import Objective

torch.set_num_threads(1)

NUM_ITEMS = 9
HISTORIES = [[0, 1, 2, 3], [0, 1, 3], [0, 2, 3, 0, 1], [0, 4], [5, 6], [1, 2, 0, 7], [3, 3, 3]]  # 5 has one successor
DATASET = train_part(HISTORIES, NUM_ITEMS)
EVENTS = [(before, after) for history in HISTORIES for before, after in zip(history, history[1:], strict=False)]
LATEST, TARGETS = torch.tensor(EVENTS).T.contiguous()


def setting(**knobs):
    """A small float64 model, states for all transitions, and an objective."""
    config = make_config("sasrec", hidden_dim=8, dropout=0.0, loss="full_softmax", **knobs)
    model = build_model(config, NUM_ITEMS, seed=1).double()
    torch.manual_seed(0)
    states = torch.randn(len(TARGETS), 8, dtype=torch.float64, requires_grad=True)
    return model, states, Objective(config, DATASET, torch.device("cpu"), torch.Generator().manual_seed(0))


def reference_losses(model, states, weight, smoothing, strongest=32):
    """The cross-entropies (n,) with the soft target distributions, each written out in full."""
    table = model.item_table()
    if model.config.scores == "cosine":
        table, states = table / table.norm(dim=1, keepdim=True), states / states.norm(dim=1, keepdim=True)
    log_probabilities = (states @ table.T / model.config.temperature).log_softmax(dim=1)
    losses = []
    for row, (latest, target) in enumerate(EVENTS):
        counts = Counter(after for before, after in EVENTS if before == latest)
        kept = dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:strongest])
        if target in kept:
            kept[target] -= 1
        hard = torch.zeros(NUM_ITEMS, dtype=torch.float64)
        hard[target] = 1
        soft = torch.tensor([kept.get(item, 0) for item in range(NUM_ITEMS)], dtype=torch.float64)
        mixed = (1 - weight) * hard + weight * soft / soft.sum() if soft.sum() else hard
        losses.append(-(((1 - smoothing) * mixed + smoothing / NUM_ITEMS) * log_probabilities[row]).sum())
    return torch.stack(losses)


def gradients(model, states, loss):
    return torch.autograd.grad(loss, [states, *model.parameters()], allow_unused=True, retain_graph=True)


@pytest.mark.parametrize("strongest", [32, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("knobs", TABLES)
def test_loss_and_gradients_equal_the_cross_entropy_with_soft_targets(knobs, smoothing, strongest, monkeypatch):
    monkeypatch.setitem(distillation.COUNTED, "transition_neighbours", strongest)
    model, states, objective = setting(prior_distillation=0.3, label_smoothing=smoothing, **knobs)
    reference = reference_losses(model, states, 0.3, smoothing, strongest).mean()
    loss = objective.loss(model.items, states, TARGETS, latest=LATEST)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-9)
    for gradient, expected in zip(gradients(model, states, loss), gradients(model, states, reference), strict=True):
        assert (gradient is None) == (expected is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)


def test_rows_that_are_not_counted_affect_neither_loss_nor_gradients():
    model, states, objective = setting(prior_distillation=0.3)
    counted = torch.arange(len(TARGETS)) % 3 > 0
    loss = objective.loss(model.items, states, TARGETS, counted, LATEST)
    reference = reference_losses(model, states, 0.3, 0.0)[counted].mean()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)  # the loss of uncounted rows is a float32 scalar
    assert not gradients(model, states, loss)[0][~counted].any()


def test_transitions_are_counted_in_train_histories_only_and_whatever_the_scoring_knobs_are():
    plain, scored = (
        setting(prior_distillation=0.3, **knobs)[2].successors
        for knobs in ({}, {"transition_weight": 4.0, "transition_window": 3, "transition_direction": "both"})
    )
    found = {
        (row, int(column)): int(count)
        for row in range(NUM_ITEMS)
        for column, count in zip(plain.columns[row], plain.counts[row], strict=True)
        if count
    }
    assert found == Counter(EVENTS)
    assert plain.columns.equal(scored.columns) and plain.counts.equal(scored.counts)


def test_the_default_and_sampled_losses_count_nothing():
    assert setting()[2].successors is None
    config = make_config("sasrec", loss="sampled_softmax", prior_distillation=0.5)
    assert Objective(config, DATASET, torch.device("cpu"), torch.Generator()).successors is None


@pytest.mark.parametrize("supervision", ["all", "last"])
def test_the_input_item_of_a_supervised_row_is_the_event_before_its_target(supervision):
    config = make_config("sasrec", supervision=supervision, batch_size=16)
    for batch in TrainBatches(DATASET, config, torch.device("cpu"), seed=0).epoch():
        latest = batch.supervised(batch.inputs.items)
        expected = EVENTS if supervision == "all" else [(history[-2], history[-1]) for history in HISTORIES]
        assert Counter(zip(latest.tolist(), batch.targets.tolist(), strict=True)) == Counter(expected)
