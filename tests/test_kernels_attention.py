"""Both attentions on packed rows: values and gradients against the reference and the papers' padded formulas."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from virtualmle.kernels.hstu import reference as hstu_reference
from virtualmle.kernels.hstu.attention import hstu_attention
from virtualmle.kernels.jagged import reference as softmax_reference
from virtualmle.kernels.jagged.packing import PackingPlan, num_distances
from virtualmle.kernels.jagged.softmax_attention import softmax_attention

torch.set_num_threads(1)

OPS = {
    "hstu": (hstu_attention, hstu_reference.hstu_attention),
    "softmax": (softmax_attention, softmax_reference.softmax_attention),
}
SHAPES = [
    pytest.param([1], id="one token"),
    pytest.param([7], id="a batch of one"),
    pytest.param([16], id="exactly the least width"),
    pytest.param([17, 15, 1], id="one over the least width"),
    pytest.param([0, 4, 0, 9], id="empty sequences"),
    pytest.param([23, 24, 25, 1, 1, 2], id="around a multiple of eight"),
]


def offsets_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def padded_formula(name, q, k, v, lengths, scale, table, causal):
    """The formula of the papers, independent of the code under test: pad to (batch, n), all pairs, mask, weight."""
    n = max(*lengths, 1)
    valid = torch.arange(n)[None, :] < torch.tensor(lengths)[:, None]  # (batch, n)
    padded = []
    for x in (q, k, v):
        dense = x.new_zeros(len(lengths), n, *x.shape[1:])
        padded.append(dense.masked_scatter(valid[:, :, None, None], x))
    scores = torch.einsum("bnhd,bmhd->bhnm", padded[0], padded[1])
    allowed = valid[:, None, None, :].expand(-1, 1, n, -1)
    if causal:
        allowed = allowed & torch.ones(n, n, dtype=torch.bool).tril()
    if name == "softmax":
        scores = scores * scale
    if table is not None:
        reach = (table.shape[1] if causal else (table.shape[1] + 1) // 2) - 1
        longest = 0 if causal else reach
        bias = [[table[:, max(-reach, min(longest, j - i)) + reach] for j in range(n)] for i in range(n)]
        scores = scores + torch.stack([torch.stack(row, -1) for row in bias], -2)
    if name == "softmax":
        weights = scores.masked_fill(~allowed, -1e300).softmax(-1)
    else:
        weights = scores / (1 + torch.exp(-scores)) * scale * allowed
    return torch.einsum("bhnm,bmhd->bnhd", weights, padded[2])[valid]


def inputs(lengths, heads, dqk, dv, tables, max_len, causal, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    total = sum(lengths)
    table = draw(tables, num_distances(max_len, causal)) if tables else None
    return [draw(total, heads, dqk), draw(total, heads, dqk), draw(total, heads, dv), table]


def values_and_gradients(function, tensors):
    out = function(*tensors)
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    leaves = [tensor for tensor in tensors if tensor is not None]
    return [out, *torch.autograd.grad((out * weight).sum(), leaves)]


def check(name, lengths, heads, dqk, dv, tables, max_len, causal):
    op, plain = OPS[name]
    offsets, scale = offsets_of(lengths), 0.3
    plan = PackingPlan.build(offsets)
    tensors = inputs(lengths, heads, dqk, dv, tables, max_len, causal)

    def packed(q, k, v, table):
        return op(q, k, v, plan=plan, scale=scale, position_table=table, causal=causal)

    def looped(q, k, v, table):
        return plain(q, k, v, offsets=offsets, scale=scale, position_table=table, causal=causal)

    def padded(q, k, v, table):
        return padded_formula(name, q, k, v, lengths, scale, table, causal)

    wanted = values_and_gradients(padded, tensors)
    for function in (looped, packed):
        for got, want in zip(values_and_gradients(function, tensors), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", SHAPES)
@pytest.mark.parametrize("name", OPS)
def test_packed_and_reference_agree_with_the_padded_formula(name, lengths, causal):
    check(name, lengths, heads=2, dqk=5, dv=3, tables=2, max_len=30, causal=causal)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("tables", [0, 1, 3])
def test_heads_may_share_a_position_table_or_have_none(name, tables):
    check(name, [6, 2, 9], heads=3, dqk=4, dv=4, tables=tables, max_len=9, causal=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", OPS)
def test_distances_outside_the_table_take_its_last_entry(name, causal):
    check(name, [12, 3], heads=1, dqk=2, dv=2, tables=1, max_len=4, causal=causal)


@settings(deadline=None, max_examples=25)
@given(
    name=st.sampled_from(sorted(OPS)),
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=10).filter(any),
    heads=st.integers(1, 3),
    dqk=st.integers(1, 9),
    dv=st.integers(1, 9),
    shared=st.booleans(),
    causal=st.booleans(),
)
def test_any_jagged_batch_agrees(name, lengths, heads, dqk, dv, shared, causal):
    check(name, lengths, heads, dqk, dv, 1 if shared else heads, 20, causal)


@pytest.mark.parametrize("name", OPS)
def test_float32_stays_close_to_float64(name):
    op, _ = OPS[name]
    lengths = [9, 50, 3, 17, 1]
    plan = PackingPlan.build(offsets_of(lengths))
    tensors = [tensor.detach() for tensor in inputs(lengths, 2, 16, 16, 1, 50, True)]

    def run(dtype):
        q, k, v, table = (tensor.to(dtype) for tensor in tensors)
        return op(q, k, v, plan=plan, scale=0.02, position_table=table).double()

    exact = run(torch.float64)
    assert (run(torch.float32) - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize("name", OPS)
def test_a_batch_without_tokens_gives_an_empty_output(name):
    op, plain = OPS[name]
    offsets = offsets_of([0, 0])
    q = torch.zeros(0, 2, 4)
    assert op(q, q, q, plan=PackingPlan.build(offsets), scale=1.0).shape == (0, 2, 4)
    assert plain(q, q, q, offsets=offsets, scale=1.0).shape == (0, 2, 4)


@pytest.mark.parametrize("name", OPS)
def test_dropout_applies_to_the_weights_in_training_only(name):
    op, _ = OPS[name]
    lengths = [8] * 60
    plan = PackingPlan.build(offsets_of(lengths))
    q, k, v, _ = (tensor if tensor is None else tensor.detach() for tensor in inputs(lengths, 1, 4, 4, 0, 8, True))
    plain = op(q, k, v, plan=plan, scale=0.5)
    assert torch.equal(op(q, k, v, plan=plan, scale=0.5, dropout=0.5), plain)
    torch.manual_seed(0)
    dropped = torch.stack([op(q, k, v, plan=plan, scale=0.5, dropout=0.5, training=True) for _ in range(200)])
    first = plan.positions == 0  # a first token has one weight, which is either kept and doubled or dropped
    nearly = [(dropped[:, first] - factor * plain[first]).abs().amax(-1) < 1e-9 for factor in (0, 2)]
    assert (nearly[0] | nearly[1]).all() and nearly[0].any() and nearly[1].any()
    error = (dropped.mean(0) - plain).norm() / plain.norm()
    assert error < 0.2, "the mean over masks is the output without dropout"


def test_hstu_scale_does_not_depend_on_the_batch():
    q, k, v, _ = inputs([5, 30], 1, 4, 4, 0, 30, True)
    both = hstu_attention(q, k, v, plan=PackingPlan.build(offsets_of([5, 30])), scale=1 / 50)
    alone = hstu_attention(q[:5], k[:5], v[:5], plan=PackingPlan.build(offsets_of([5])), scale=1 / 50)
    torch.testing.assert_close(both[:5], alone, rtol=1e-12, atol=1e-12)
    first = F.silu((q[0] * k[0]).sum()) * v[0] / 50
    torch.testing.assert_close(both[0], first)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tables", [1, 2])
@pytest.mark.parametrize("name", OPS)
def test_time_tables_agree_with_the_reference_in_values_and_gradients(name, tables, causal):
    op, plain = OPS[name]
    lengths = [5, 40, 0, 3, 70]  # three groups of rows
    offsets, generator = offsets_of(lengths), torch.Generator().manual_seed(1)
    times = torch.randint(10**9, (sum(lengths),), generator=generator)
    times[:5] = torch.tensor([0, 0, 1, 2, 10**15])
    *tensors, position = inputs(lengths, 2, 4, 3, tables, 70, causal)
    time = torch.randn(tables, 128, dtype=torch.float64, generator=generator).requires_grad_()
    plan = PackingPlan.build(offsets, times=times)

    def packed(q, k, v, position, time):
        return op(q, k, v, plan=plan, scale=0.3, position_table=position, time_table=time, causal=causal)

    def looped(q, k, v, position, time):
        return plain(
            q, k, v, offsets=offsets, scale=0.3, position_table=position, time_table=time, times=times, causal=causal
        )

    for leaves in ([*tensors, position, time], [*tensors, None, time]):
        for got, want in zip(*(values_and_gradients(f, leaves) for f in (packed, looped)), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
