"""The losses over items without Triton: the references, the blocks, and the ops."""

import math

import pytest
import torch

from virtualmle.kernels.losses import reference
from virtualmle.kernels.losses import sampled_softmax_blocks as blocks
from virtualmle.kernels.losses.arguments import LossArgumentError
from virtualmle.kernels.losses.linear_cross_entropy import linear_cross_entropy
from virtualmle.kernels.losses.sampled_softmax import sampled_softmax_loss

torch.set_num_threads(1)

COUNT, NUM_ITEMS, WIDTH = 7, 11, 5
VARIANTS = [
    pytest.param({}, False, id="dot"),
    pytest.param({"cosine": True, "temperature": 0.3, "label_smoothing": 0.2}, True, id="cosine-smoothed-logq"),
]
SHARING = pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])


def inputs(shared=True, dtype=torch.float64):
    """States, table, targets and negatives, with repeats and with negatives equal to targets; and log q."""
    generator = torch.Generator().manual_seed(0)
    states, table = (
        torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for rows in (COUNT, NUM_ITEMS)
    )
    targets = torch.randint(NUM_ITEMS, (COUNT,), generator=generator)
    negatives = torch.randint(NUM_ITEMS, (6,) if shared else (COUNT, 6), generator=generator)
    negatives[..., 0] = targets[0]
    return (states, table, targets, negatives), torch.randn(NUM_ITEMS, generator=generator).log_softmax(0)


def test_the_reference_of_the_full_loss_equals_torchs_cross_entropy():
    (states, table, targets, _), _ = inputs()
    for smoothing in (0.0, 0.2):
        ours = reference.linear_cross_entropy(states, table, targets, smoothing)
        wanted = torch.nn.functional.cross_entropy(states @ table.T, targets, label_smoothing=smoothing)
        torch.testing.assert_close(ours, wanted)


@SHARING
def test_the_reference_of_the_sampled_loss_equals_its_formula_per_position(shared):
    (states, table, targets, negatives), log_q = inputs(shared)
    total = 0.0
    for i, y in enumerate(targets.tolist()):
        drawn = (negatives if shared else negatives[i]).tolist()
        own = torch.cosine_similarity(states[i], table[y], dim=0) / 0.3
        others = [
            torch.cosine_similarity(states[i], table[c], dim=0) / 0.3 - log_q[c] - math.log(6) for c in drawn if c != y
        ]
        logits = torch.stack([own, *others])
        total = total + logits.logsumexp(0) - 0.8 * own - 0.2 * logits.mean()
    ours = reference.sampled_softmax_loss(
        states, table, targets, negatives, log_q=log_q, cosine=True, temperature=0.3, label_smoothing=0.2
    )
    torch.testing.assert_close(ours, total / COUNT, rtol=1e-6, atol=0)  # log q is float32


@pytest.mark.parametrize(("terms", "with_logq"), VARIANTS)
@SHARING
def test_the_references_pass_gradcheck(shared, terms, with_logq):
    (states, table, targets, negatives), log_q = inputs(shared)
    q = log_q.double() if with_logq else None
    assert torch.autograd.gradcheck(
        lambda s, w: reference.sampled_softmax_loss(s, w, targets, negatives, log_q=q, **terms), (states, table)
    )
    assert torch.autograd.gradcheck(lambda s, w: reference.linear_cross_entropy(s, w, targets, 0.2), (states, table))


@pytest.mark.parametrize("block", [1, 1 << 21], ids=["many-blocks", "one-block"])
@pytest.mark.parametrize(("terms", "with_logq"), VARIANTS)
@SHARING
def test_the_blocks_equal_the_reference(shared, terms, with_logq, block, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block)
    leaves, log_q = inputs(shared)
    losses = [
        loss(*leaves, log_q=log_q if with_logq else None, **terms)
        for loss in (sampled_softmax_loss, reference.sampled_softmax_loss)
    ]
    torch.testing.assert_close(*losses)
    for one, other in zip(*(torch.autograd.grad(loss, leaves[:2]) for loss in losses), strict=True):
        torch.testing.assert_close(one, other)


@SHARING
def test_zero_vectors_have_finite_cosine_gradients(shared):
    (states, table, targets, negatives), _ = inputs(shared)
    with torch.no_grad():
        states[1], table[targets[0]] = 0, 0
    losses = [
        loss(states, table, targets, negatives, cosine=True)
        for loss in (sampled_softmax_loss, reference.sampled_softmax_loss)
    ]
    for one, other in zip(*(torch.autograd.grad(loss, (states, table)) for loss in losses), strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)


@SHARING
def test_the_loss_of_no_positions_is_nan(shared):
    (states, table, targets, negatives), _ = inputs(shared)
    none = states[:0].detach().requires_grad_()
    loss = sampled_softmax_loss(none, table, targets[:0], negatives if shared else negatives[:0])
    assert loss.isnan() and torch.autograd.grad(loss, none)[0].shape == (0, WIDTH)


def test_a_second_derivative_raises_an_error():
    leaves, _ = inputs()
    weighted = sampled_softmax_loss(*leaves) * torch.ones((), dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(weighted, leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_the_ops_pass_opcheck_and_compile_as_one_graph():
    (states, table, targets, negatives), log_q = inputs()
    terms = (0.5, True, 0.1, "ieee")
    torch.library.opcheck(
        torch.ops.virtualmle.sampled_softmax.default, (states, table, targets, negatives, log_q, *terms)
    )
    torch.library.opcheck(torch.ops.virtualmle.linear_cross_entropy.default, (states, table, targets, 0.1, "ieee"))

    def both(s, w):
        return sampled_softmax_loss(2 * s, w, targets, negatives, cosine=True) + linear_cross_entropy(s, w, targets)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        *(torch.autograd.grad(form(states, table), (states, table)) for form in (compiled, both)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"states": torch.zeros(7, 4)}, r"states must be \(n, d\) and table \(V, d\)"),
        ({"table": torch.zeros(11, 5, dtype=torch.float16)}, "one floating dtype"),
        ({"targets": torch.zeros(7, dtype=torch.int32)}, "targets must be .* int64"),
        ({"negatives": torch.zeros(6, 3, dtype=torch.int64)}, r"negatives must be \(7, 3\)"),
        ({"negatives": torch.zeros(0, dtype=torch.int64)}, "m >= 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"label_smoothing": 1.5}, r"label_smoothing must lie in \[0, 1\]"),
        ({"log_q": torch.zeros(10)}, "one entry per row of the table"),
        ({"precision": "fast"}, "precision must be one of"),
    ],
)
def test_invalid_arguments_raise_an_error_that_names_the_problem(changed, text):
    (states, table, targets, negatives), _ = inputs(dtype=torch.float32)
    arguments = {"states": states, "table": table, "targets": targets, "negatives": negatives} | changed
    with pytest.raises(LossArgumentError, match=text):
        sampled_softmax_loss(**arguments)
