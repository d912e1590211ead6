"""The value and all gradients of every loss, against a simple float64 implementation of its formula."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from virtualmle.kernels.losses import linear_cross_entropy as linear_module
from virtualmle.kernels.losses.gathered_scores import gathered_scores
from virtualmle.models.batch import make_batch
from virtualmle.models.build import build_model
from virtualmle.models.config import make_config
from virtualmle.training.losses import apply_logq_correction, contrastive_loss, gbce_beta, sampled_softmax
from virtualmle.training.objective import Objective

torch.set_num_threads(1)

NUM_ITEMS = 11
TARGETS = torch.tensor([3, 3, 0, 10, 7, 2, 9])
SHARED_NEGATIVES = torch.tensor([1, 3, 3, 5, 10, 4])  # with repeats and accidental hits of three targets
OWN_NEGATIVES = torch.tensor([[1, 3, 4], [5, 5, 6], [0, 0, 0], [10, 1, 2], [3, 3, 7], [8, 9, 10], [0, 9, 1]])
DATASET = SimpleNamespace(num_items=NUM_ITEMS, items=np.array([0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10]))
TABLES = [
    pytest.param({"scores": "dot", "temperature": 1.0, "tie_embeddings": False}, id="dot-untied"),
    pytest.param({"scores": "cosine", "temperature": 0.1, "tie_embeddings": True}, id="cosine-tied"),
]
NEGATIVES = [pytest.param(SHARED_NEGATIVES, id="shared"), pytest.param(OWN_NEGATIVES, id="per-position")]


def setting(**knobs):
    """A small float64 model, the states of a batch, and an objective; a test can replace its draws."""
    torch.manual_seed(0)
    config = make_config("sasrec", hidden_dim=8, dropout=0.0, **knobs)
    model = build_model(config, NUM_ITEMS, seed=1).double()
    batch = make_batch(torch.tensor([1, 2, 3, 4, 5, 6, 7]), torch.tensor([0, 3, 7]), config)
    objective = Objective(config, DATASET, torch.device("cpu"), torch.Generator().manual_seed(0))
    return model, model(batch), objective


def with_draws(objective, drawn, monkeypatch):
    monkeypatch.setattr(objective.sampler, "draw", lambda *shape: drawn)
    return objective


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)


def assert_equal_with_gradients(model, loss, reference):
    assert loss.item() == pytest.approx(reference.item(), rel=1e-9)
    for gradient, expected in zip(gradients(model, loss), gradients(model, reference), strict=True):
        assert (gradient is None) == (expected is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)


def reference_scores(model, states):
    """Scores (n, NUM_ITEMS), computed one by one."""
    table = model.item_table()
    if model.config.scores == "cosine":
        table = table / table.norm(dim=1, keepdim=True)
        states = states / states.norm(dim=1, keepdim=True)
    rows = [[state @ vector for vector in table] for state in states]
    return torch.stack([torch.stack(row) for row in rows]) / model.config.temperature


def candidates_of(drawn, position, target):
    negatives = (drawn if drawn.dim() == 1 else drawn[position]).tolist()
    return [negative for negative in negatives if negative != target]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("block", [1, 1 << 21], ids=["many-blocks", "one-block"])
@pytest.mark.parametrize("knobs", TABLES)
def test_full_softmax_equals_its_formula(knobs, block, smoothing, monkeypatch):
    monkeypatch.setitem(linear_module.BLOCK_LOGITS, "cpu", block)
    monkeypatch.setattr(linear_module, "MIN_BLOCK_ROWS", 2)
    model, states, objective = setting(loss="full_softmax", label_smoothing=smoothing, **knobs)
    scores = reference_scores(model, states)
    log_probabilities = scores - scores.exp().sum(1, keepdim=True).log()
    weights = torch.full_like(scores, smoothing / NUM_ITEMS)
    weights[range(7), TARGETS] += 1 - smoothing
    reference = -(weights * log_probabilities).sum(1).mean()
    assert_equal_with_gradients(model, objective.loss(model.items, states, TARGETS), reference)


@pytest.mark.parametrize("logq", [False, True], ids=["plain", "logq"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("drawn", NEGATIVES)
@pytest.mark.parametrize("knobs", TABLES)
def test_sampled_softmax_equals_its_formula_without_accidental_hits(knobs, drawn, smoothing, logq, monkeypatch):
    model, states, objective = setting(
        label_smoothing=smoothing,
        logq_correction=logq,
        negative_power=0.5,
        num_negatives=drawn.shape[-1],
        negative_sharing="batch" if drawn.dim() == 1 else "position",
        **knobs,
    )
    scores = reference_scores(model, states)
    q = np.bincount(DATASET.items, minlength=NUM_ITEMS) ** 0.5
    q = q / q.sum()
    total = 0
    for position, target in enumerate(TARGETS.tolist()):
        target_score = scores[position, target]
        negative_scores = [
            scores[position, j] - (math.log(drawn.shape[-1] * q[j]) if logq else 0.0)
            for j in candidates_of(drawn, position, target)
        ]
        logits = torch.stack([target_score, *negative_scores])
        total = total + logits.exp().sum().log() - (1 - smoothing) * target_score - smoothing * logits.mean()
    loss = with_draws(objective, drawn, monkeypatch).loss(model.items, states, TARGETS)
    assert loss.item() == pytest.approx((total / 7).item(), rel=1e-6 if logq else 1e-9)  # log q is float32
    for gradient, expected in zip(gradients(model, loss), gradients(model, total / 7), strict=True):
        if gradient is not None:
            torch.testing.assert_close(gradient, expected, rtol=1e-5 if logq else 1e-8, atol=1e-8)


@pytest.mark.parametrize("drawn", NEGATIVES)
@pytest.mark.parametrize(("name", "calibration"), [("bce", 0.75), ("gbce", 0.75), ("gbce", 0.0)])
def test_binary_losses_equal_their_formulas(name, calibration, drawn, monkeypatch):
    count = drawn.shape[-1]
    model, states, objective = setting(
        loss=name, gbce_calibration=calibration, num_negatives=count,
        negative_sharing="batch" if drawn.dim() == 1 else "position",
    )
    scores, total = reference_scores(model, states), 0
    rate = count / (NUM_ITEMS - 1)
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate) if name == "gbce" else 1.0
    for position, target in enumerate(TARGETS.tolist()):
        positive = torch.sigmoid(scores[position, target]) ** beta
        negatives = [1 - torch.sigmoid(scores[position, j]) for j in candidates_of(drawn, position, target)]
        total = total - sum((probability.log() for probability in negatives), positive.log()) / (1 + count)
    loss = with_draws(objective, drawn, monkeypatch).loss(model.items, states, TARGETS)
    assert_equal_with_gradients(model, loss, total / 7)


def test_gbce_calibration_interpolates_between_plain_bce_and_calibrated_probabilities():
    assert gbce_beta(20, 1001, 0.0) == pytest.approx(1.0)
    assert gbce_beta(20, 1001, 1.0) == pytest.approx(20 / 1000)
    assert gbce_beta(5000, 1001, 1.0) == 1.0, "the sampling rate is at most 1"


@pytest.mark.parametrize("sign", [1, -1])
def test_binary_losses_stay_finite_at_extreme_scores(sign):
    model, states, objective = setting(loss="gbce", temperature=0.01)
    with torch.no_grad():
        model.item_table().mul_(sign * 1e4)
    loss = objective.loss(model.items, states, TARGETS)
    assert loss.isfinite() and all(g is None or g.isfinite().all() for g in gradients(model, loss))


def test_a_position_with_accidental_hits_only_has_zero_loss_and_finite_gradients(monkeypatch):
    model, states, objective = setting()
    loss = with_draws(objective, torch.tensor([4, 4]), monkeypatch).loss(model.items, states, torch.full((7,), 4))
    assert loss.item() == 0.0
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients(model, loss))


def test_with_all_items_as_negatives_the_sampled_softmax_equals_the_full_softmax(monkeypatch):
    model, states, sampled = setting()
    *_, full = setting(loss="full_softmax")
    loss = with_draws(sampled, torch.arange(NUM_ITEMS), monkeypatch).loss(model.items, states, TARGETS)
    assert loss.item() == pytest.approx(full.loss(model.items, states, TARGETS).item(), rel=1e-12)


@pytest.mark.parametrize("num_negatives", [1, 4])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_with_logq_the_sampled_partition_function_is_unbiased(power, num_negatives):
    _, _, objective = setting(negative_power=power, num_negatives=num_negatives, negative_sharing="position")
    scores = torch.randn(NUM_ITEMS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rounds, target = 40_000, 10  # the draws contain the target, which is left out
    drawn = objective.sampler.draw(rounds, num_negatives)
    logq = objective.sampler.log_q[drawn]
    full = scores.exp().sum()

    def deviation(negatives, hits):
        """Difference between the mean estimate and the sum over the catalogue, in standard errors."""
        sums = scores[target].exp() + negatives.exp().masked_fill(hits, 0).sum(1)
        return abs(sums.mean() - full) / (sums.std() / rounds**0.5)

    corrected = apply_logq_correction(scores[drawn], logq, num_negatives)
    assert deviation(corrected, drawn == target) < 4
    assert deviation(scores[drawn], drawn == target) > 10, "uncorrected scores would pass too"
    assert deviation(corrected, torch.tensor(False)) > 10, "counting accidental hits would pass too"


def test_the_contrastive_loss_equals_its_formula():
    torch.manual_seed(2)
    first, second = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    total = 0
    for a, b in ((first, second), (second, first)):
        for i in range(5):
            similar = torch.stack([torch.cosine_similarity(a[i], b[j], dim=0) / 0.2 for j in range(5)])
            total = total + (similar.exp().sum().log() - similar[i]) / 10
    loss = contrastive_loss(first, second, 0.2)
    assert loss.item() == pytest.approx(total.item(), rel=1e-12)
    both = (torch.autograd.grad(value, (first, second)) for value in (loss, total))
    for gradient, expected in zip(*both, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_gathered_scores_pass_gradcheck():
    states, table = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 6))
    candidates = torch.tensor([[0, 0, 5], [1, 2, 1], [5, 5, 5], [3, 4, 0]])
    scores = gathered_scores(states, table, candidates)
    torch.testing.assert_close(scores, torch.einsum("nd,nmd->nm", states, table[candidates]))
    torch.autograd.gradcheck(lambda s, t: gathered_scores(s, t, candidates), (states, table))


def test_dense_and_row_sparse_look_ups_give_the_same_loss_and_gradient(monkeypatch):
    model, states, objective = setting(negative_sharing="position", num_negatives=3, scores="cosine")
    with_draws(objective, OWN_NEGATIVES, monkeypatch)
    dense_loss = objective.loss(model.items, states, TARGETS)  # 28 candidates of 11 items
    monkeypatch.setattr(model.items, "row_sparse", True)
    sparse_loss = objective.loss(model.items, states, TARGETS)
    assert sparse_loss.item() == pytest.approx(dense_loss.item(), rel=1e-12)
    dense, sparse = (torch.autograd.grad(loss, model.items.output)[0] for loss in (dense_loss, sparse_loss))
    assert sparse.is_sparse and not dense.is_sparse
    torch.testing.assert_close(sparse.to_dense(), dense)


@pytest.mark.parametrize("sharing", ["batch", "position"])
def test_a_step_over_a_large_catalogue_makes_no_tensor_of_its_size(sharing):
    num_items = 250_000
    dataset = SimpleNamespace(num_items=num_items, items=np.arange(num_items))
    config = make_config(
        "sasrec", hidden_dim=8, scores="cosine", num_negatives=20, negative_sharing=sharing,
        negative_power=0.5, logq_correction=True,
    )
    items = build_model(config, num_items, seed=0).items
    objective = Objective(config, dataset, torch.device("cpu"), torch.Generator().manual_seed(0))
    states, targets = torch.randn(30, 8, requires_grad=True), torch.randint(num_items, (30,))
    with LargestResult() as largest:
        objective.loss(items, states, targets).backward()
    assert largest.numel < num_items, "an operation made a tensor as large as the catalogue"
    assert items.output.grad.is_sparse and len(items.output.grad.coalesce().indices()[0]) <= 30 * 21


class LargestResult(TorchDispatchMode):
    """Records the size of the largest dense tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and "detach" not in str(func):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_label_smoothing_ignores_accidental_hits():
    own, negatives = torch.tensor([1.0]), torch.tensor([[2.0, 50.0]])
    collisions = torch.tensor([[False, True]])
    expected = math.log(math.e + math.e**2) - 0.8 * 1 - 0.2 * 1.5
    assert sampled_softmax(own, negatives, collisions, 0.2).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rows_only", [False, True], ids=["dense", "row-sparse"])
@pytest.mark.parametrize("drawn", NEGATIVES)
@pytest.mark.parametrize("knobs", TABLES)
def test_the_fused_op_equals_the_separate_operations(knobs, drawn, rows_only, monkeypatch):
    model, states, objective = setting(
        label_smoothing=0.1, logq_correction=True, negative_power=0.5, num_negatives=drawn.shape[-1],
        negative_sharing="batch" if drawn.dim() == 1 else "position", **knobs,
    )
    monkeypatch.setattr(model.items, "row_sparse", rows_only)
    separate = with_draws(objective, drawn, monkeypatch).loss(model.items, states, TARGETS)
    fused = objective.fused_sampled_softmax(model.items, states, TARGETS, drawn)
    assert fused.item() == pytest.approx(separate.item(), rel=1e-9)
    leaves = (model.items.output, states)
    pairs = zip(*(torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (fused, separate)), strict=True)
    for pair in pairs:
        assert pair[0].is_sparse == pair[1].is_sparse
        torch.testing.assert_close(*(g.to_dense() if g.is_sparse else g for g in pair), rtol=1e-8, atol=1e-10)


def test_the_fused_op_over_a_large_catalogue_makes_no_tensor_of_its_size():
    num_items = 250_000
    dataset = SimpleNamespace(num_items=num_items, items=np.arange(num_items))
    config = make_config("sasrec", hidden_dim=8, num_negatives=20, negative_sharing="position")
    items = build_model(config, num_items, seed=0).items
    objective = Objective(config, dataset, torch.device("cpu"), torch.Generator().manual_seed(0))
    states, targets = torch.randn(30, 8, requires_grad=True), torch.randint(num_items, (30,))
    with LargestResult() as largest:
        objective.fused_sampled_softmax(items, states, targets, objective.sampler.draw(30, 20)).backward()
    assert largest.numel < num_items, "an operation made a tensor as large as the catalogue"
    assert items.output.grad.is_sparse and len(items.output.grad.coalesce().indices()[0]) <= 30 * 21


@pytest.mark.parametrize("logq", [False, True], ids=["plain", "logq"])
@pytest.mark.parametrize("drawn", NEGATIVES)
@pytest.mark.parametrize("knobs", TABLES)
def test_padding_rows_have_no_effect_on_the_fused_op(knobs, drawn, logq, monkeypatch):
    model, states, objective = setting(
        label_smoothing=0.1, logq_correction=logq, negative_power=0.5, num_negatives=drawn.shape[-1],
        negative_sharing="batch" if drawn.dim() == 1 else "position", **knobs,
    )
    counted = torch.tensor([True, False, True, True, False, True, False])
    separate = with_draws(objective, drawn, monkeypatch).loss(model.items, states, TARGETS, counted)
    fused = objective.fused_sampled_softmax(model.items, states, TARGETS, drawn, counted)
    assert fused.item() == pytest.approx(separate.item(), rel=1e-6)  # log q is float32
    leaves = (model.items.output, states)
    gradients_of = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (fused, separate)]
    for gradient, expected in zip(*gradients_of, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-9)
    assert not gradients_of[0][1][~counted].any()
