"""Both losses, values and every gradient, against a plain float64 implementation written from the formula."""

import pytest
import torch

from virtualmle.models.batch import make_batch
from virtualmle.models.build import build_model
from virtualmle.models.config import make_config
from virtualmle.training.losses import full_softmax, sampled_softmax

NUM_ITEMS = 11
TARGETS = torch.tensor([3, 3, 0, 10, 7, 2, 9])
NEGATIVES = torch.tensor([1, 3, 3, 5, 10, 4])  # with repeats, and with accidental hits of three targets
VARIANTS = [
    pytest.param({"scores": "dot", "temperature": 1.0, "tie_embeddings": False}, id="dot-untied"),
    pytest.param({"scores": "cosine", "temperature": 0.1, "tie_embeddings": True}, id="cosine-tied"),
]


def model_and_states(knobs):
    torch.manual_seed(0)
    config = make_config("sasrec", hidden_dim=8, dropout=0.0, **knobs)
    model = build_model(config, NUM_ITEMS, seed=1).double()
    batch = make_batch(torch.tensor([1, 2, 3, 4, 5, 6, 7]), torch.tensor([0, 3, 7]), config)
    return model, model(batch)


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)


def plain_loss(model, states, candidates_of):
    table = model.item_table()
    if model.config.scores == "cosine":
        table = table / table.norm(dim=1, keepdim=True)
        states = states / states.norm(dim=1, keepdim=True)
    total = 0
    for position, target in enumerate(TARGETS.tolist()):
        logits = torch.stack([states[position] @ table[i] for i in candidates_of(target)]) / model.config.temperature
        own = states[position] @ table[target] / model.config.temperature
        total = total + logits.exp().sum().log() - own
    return total / len(TARGETS)


def assert_equal_with_gradients(model, ours, plain):
    assert ours.item() == pytest.approx(plain.item(), rel=1e-10)
    for one, other in zip(gradients(model, ours), gradients(model, plain), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("knobs", VARIANTS)
def test_full_softmax_equals_its_formula(knobs):
    model, states = model_and_states(knobs)
    ours = full_softmax(model, states, TARGETS)
    assert_equal_with_gradients(model, ours, plain_loss(model, states, lambda target: range(NUM_ITEMS)))


@pytest.mark.parametrize("knobs", VARIANTS)
def test_sampled_softmax_equals_its_formula_with_accidental_hits_left_out(knobs):
    model, states = model_and_states(knobs)
    ours = sampled_softmax(model, states, TARGETS, NEGATIVES)
    plain = plain_loss(model, states, lambda t: [t, *(n for n in NEGATIVES.tolist() if n != t)])
    assert_equal_with_gradients(model, ours, plain)


def test_a_position_whose_every_negative_is_its_target_has_no_loss_and_finite_gradients():
    model, states = model_and_states({})
    loss = sampled_softmax(model, states, torch.full((7,), 4), torch.tensor([4, 4]))
    assert loss.item() == 0.0
    for gradient in gradients(model, loss):
        assert gradient is None or gradient.isfinite().all()


def test_all_items_as_negatives_make_the_sampled_loss_the_full_one():
    model, states = model_and_states({})
    sampled = sampled_softmax(model, states, TARGETS, torch.arange(NUM_ITEMS))
    assert sampled.item() == pytest.approx(full_softmax(model, states, TARGETS).item(), rel=1e-12)
