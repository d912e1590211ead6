"""Optimizer, schedule and weight average against those of torch or a simple loop."""

import math

import pytest
import torch

from virtualmle.models import item_table
from virtualmle.models.build import build_model
from virtualmle.models.config import make_config
from virtualmle.training.averaging import WeightAverage
from virtualmle.training.optimizer import FusedAdam
from virtualmle.training.schedule import lr_factor

torch.set_num_threads(1)
NUM_ITEMS, STEPS = 23, 6


def model_of(config):
    return build_model(config, NUM_ITEMS, seed=1)


def random_gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator) for p in model.parameters()]


def train(config, change=lambda model, gradients: None, after=lambda model: None):
    """Weights after a few steps of our optimizer, and of torch's with `change` before and `after` after each step."""
    ours, theirs = model_of(config), model_of(config)
    optimizer = FusedAdam(ours, config)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    reference = kind(
        theirs.parameters(), lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay
    )
    for step in range(STEPS):
        factor = 1 - step / 10
        gradients = random_gradients(ours, step)
        for model in (ours, theirs):
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
        optimizer.step(factor)
        change(theirs, config)
        reference.param_groups[0]["lr"] = config.lr * factor
        reference.step()
        after(theirs)
    return list(zip(ours.parameters(), theirs.parameters(), strict=True))


def assert_equal(pairs):
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def tiny(**knobs):
    return make_config("sasrec", hidden_dim=8, max_len=5, lr=0.01, **knobs)


@pytest.mark.parametrize(
    "knobs",
    [
        pytest.param({}, id="adam"),
        pytest.param({"weight_decay": 0.1}, id="adam-decay"),
        pytest.param({"optimizer": "adamw", "weight_decay": 0.1}, id="adamw-decay"),
        pytest.param({"beta1": 0.5, "beta2": 0.95}, id="betas"),
    ],
)
def test_updates_equal_those_of_torch_with_a_changing_learning_rate(knobs):
    assert_equal(train(tiny(**knobs)))


@pytest.mark.parametrize("largest", [0.5, 1e5])
def test_clipping_bounds_the_global_gradient_norm(largest):
    def clip(model, config):
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)

    assert_equal(train(tiny(grad_clip=largest), clip))


def test_embedding_l2_changes_the_gradients_of_the_item_tables_only():
    def add_l2(model, config):
        for table in (model.items.input, model.items.untied):
            table.grad += config.embedding_l2 * table.detach()

    assert_equal(train(tiny(embedding_l2=0.3), add_l2))


def test_max_norm_rescales_long_item_vectors_and_keeps_short_ones():
    def rescale(model):
        with torch.no_grad():
            for table in (model.items.input, model.items.untied):
                norms = table.norm(dim=1, keepdim=True)
                table.mul_(torch.where(norms > 0.06, 0.06 / norms, 1.0))

    pairs = train(tiny(max_norm=0.06), after=rescale)
    for ours, theirs in pairs:  # torch's renorm stays 1e-7 below the bound each time
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert max(pair[0].detach().norm(dim=1).max() for pair in pairs[:2]) == pytest.approx(0.06, rel=1e-4)


@pytest.mark.parametrize("extra", [{}, {"embedding_l2": 0.2}, {"max_norm": 0.05}, {"grad_clip": 0.1}], ids=str)
def test_a_sparse_gradient_updates_only_its_rows_and_as_torch_does(extra, monkeypatch):
    monkeypatch.setattr(item_table, "ROW_SPARSE_ABOVE", 1)
    config = tiny(tie_embeddings=True, **extra)
    model, other = model_of(config), model_of(config)
    before, table = model.items.input.detach().clone(), other.items.input
    optimizer, reference = FusedAdam(model, config), torch.optim.SparseAdam([table], lr=config.lr)
    for step in range(STEPS):
        rows = torch.tensor([1, 4, 4, 7 + step])
        values = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        gradient = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=True).coalesce()
        used, numbers = gradient.indices()[0].clone(), gradient.values().clone()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        model.items.input.grad = gradient
        optimizer.step()
        with torch.no_grad():
            numbers += config.embedding_l2 * table[used]
            if config.grad_clip:
                numbers *= min(1.0, config.grad_clip / numbers.norm().item())
        table.grad = torch.sparse_coo_tensor(used[None], numbers, table.shape, check_invariants=True)
        reference.step()
        if config.max_norm:
            with torch.no_grad():
                table[used] = table[used] * (config.max_norm / table[used].norm(dim=1, keepdim=True)).clamp(max=1)
    # torch's sparse Adam adds epsilon before the bias correction, which matters for the smallest gradients
    torch.testing.assert_close(model.items.input, table, rtol=1e-4, atol=1e-5)
    untouched = [row for row in range(NUM_ITEMS) if row not in {1, 4, *range(7, 7 + STEPS)}]
    assert torch.equal(model.items.input[untouched], before[untouched])


def test_the_learning_rate_warms_up_and_decays():
    constant = make_config("sasrec", epochs=4)
    assert {lr_factor(constant, step, 10) for step in range(40)} == {1.0}
    warm = make_config("sasrec", epochs=4, warmup_epochs=0.5)
    assert [lr_factor(warm, step, 10) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    linear = make_config("sasrec", epochs=4, warmup_epochs=1.0, schedule="linear")
    assert [lr_factor(linear, step, 10) for step in (9, 10, 25, 39)] == pytest.approx([1.0, 1.0, 0.5, 1 / 30])
    cosine = make_config("sasrec", epochs=4, schedule="cosine")
    expected = [(1 + math.cos(math.pi * step / 40)) / 2 for step in range(40)]
    assert [lr_factor(cosine, step, 10) for step in range(40)] == pytest.approx(expected)


def test_a_weight_average_equals_a_simple_loop_and_is_applied_only_temporarily():
    config = tiny(ema_decay=0.8)
    model = model_of(config)
    average = WeightAverage(model, config.ema_decay)
    expected = [parameter.detach().double() for parameter in model.parameters()]
    for step in range(1, 9):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))
        average.update(average.next_share())
        decay = min(0.8, (1 + step) / (10 + step))
        now = [parameter.detach().double() for parameter in model.parameters()]
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, now, strict=True)]
    own = [parameter.detach().clone() for parameter in model.parameters()]
    with average.applied():
        for parameter, wanted in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.detach().double(), wanted, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(parameter, before) for parameter, before in zip(model.parameters(), own, strict=True))
