"""The registered op on a CPU: values, gradients, torch.library's checks, and rejected arguments."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from virtualmle.data.errors import KernelError
from virtualmle.kernels.hstu import reference
from virtualmle.kernels.hstu.attention import hstu_attention
from virtualmle.kernels.hstu.op import hstu_attention_op
from virtualmle.kernels.hstu.philox import dropout_factors
from virtualmle.kernels.jagged.packing import PackingPlan, num_distances

torch.set_num_threads(1)


def offsets_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()


def seconds(total, seed=0):
    return torch.randint(0, 10**8, (total,), generator=torch.Generator().manual_seed(seed))


def values_and_gradients(function, leaves):
    out = function(*leaves)
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True, materialize_grads=True)]


def check(lengths, heads, dqk, dv, tables, causal, next_times):
    total, offsets, max_len = sum(lengths), offsets_of(lengths), max([*lengths, 1])
    leaves = [draw(total, heads, dqk), draw(total, heads, dqk, seed=1), draw(total, heads, dv, seed=2)]
    leaves += [draw(tables, num_distances(max_len, causal)), draw(tables, 128)]
    times = seconds(total)
    terms = dict(offsets=offsets, scale=0.3, alpha=0.7, times=times, causal=causal)
    terms["next_times"] = times + seconds(total, 1) if next_times else None

    def op(q, k, v, position, time):
        return hstu_attention(q, k, v, position_table=position, time_table=time, max_len=max_len, **terms)

    def plain(q, k, v, position, time):
        return reference.hstu_attention(q, k, v, position_table=position, time_table=time, **terms)

    for got, want in zip(values_and_gradients(op, leaves), values_and_gradients(plain, leaves), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param([1], id="one token"),
        pytest.param([40, 0, 3, 70, 0], id="three groups of rows, and empty sequences"),
        pytest.param([0, 0], id="no tokens"),
        pytest.param([], id="no sequence"),
    ],
)
def test_the_op_agrees_with_the_reference(lengths, causal):
    check(lengths, heads=2, dqk=5, dv=3, tables=2, causal=causal, next_times=True)


@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=8),
    dqk=st.integers(1, 9),
    dv=st.integers(1, 9),
    shared=st.booleans(),
    causal=st.booleans(),
    next_times=st.booleans(),
)
def test_any_jagged_batch_agrees(lengths, dqk, dv, shared, causal, next_times):
    check(lengths, 2, dqk, dv, 1 if shared else 2, causal, next_times)


def test_the_op_and_the_training_path_give_the_same_results():
    lengths = [5, 40, 3]
    times, offsets = seconds(48), offsets_of(lengths)
    plan = PackingPlan.build(offsets.long(), times=times)
    leaves = [draw(48, 2, 4), draw(48, 2, 4, seed=1), draw(48, 2, 3, seed=2), draw(1, 40), draw(1, 128)]

    def run(*leaves, **sequences):
        q, k, v, position, time = leaves
        return hstu_attention(q, k, v, position_table=position, time_table=time, scale=0.1, alpha=0.5, **sequences)

    by_plan = values_and_gradients(lambda *x: run(*x, plan=plan), leaves)
    by_op = values_and_gradients(lambda *x: run(*x, offsets=offsets, max_len=40, times=times), leaves)
    for got, want in zip(by_op, by_plan, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_those_of_finite_differences(dropout):
    lengths = [4, 0, 6]
    leaves = [draw(10, 2, 3), draw(10, 2, 3, seed=1), draw(10, 2, 2, seed=2), draw(2, 6), draw(1, 128)]
    times = seconds(10)

    def attend(q, k, v, position, time):
        return hstu_attention(
            q, k, v, offsets=offsets_of(lengths), max_len=6, scale=0.5, alpha=0.7, position_table=position,
            time_table=time, times=times, dropout=dropout, training=True, seed=3,
        )  # fmt: skip

    def plain(q, k, v, position, time):
        return reference.hstu_attention(
            q, k, v, offsets=offsets_of(lengths), scale=0.5, position_table=position, time_table=time, times=times
        )

    assert torch.autograd.gradcheck(attend, leaves, fast_mode=True)
    assert torch.autograd.gradcheck(plain, leaves, fast_mode=True)


def research_attention(q, k, v, pos_w, ts_w, times, n):
    """A re-implementation of the HSTU authors' research code: pad to n, all pairs, silu, 1 / n, lower triangle.

    times: for each sequence, the times of its events and of the next event. The bias of (i, j) uses the time of event i
    + 1.
    """
    outputs = []
    for sequence in range(len(times)):
        t = torch.zeros(n + 1, dtype=torch.float64)
        t[: len(times[sequence])] = times[sequence].double()
        length = len(q[sequence])
        queries, keys, values = (
            torch.cat((x[sequence], x[sequence].new_zeros(n - length, *x[sequence].shape[1:]))) for x in (q, k, v)
        )
        scores = torch.einsum("nhd,mhd->hnm", queries, keys)
        position = torch.stack([pos_w[n - 1 - i : 2 * n - 1 - i] for i in range(n)])  # [i, j] is pos_w[n - 1 + j - i]
        gap = (t[1:, None] - t[None, :-1]).abs().clamp(min=1)
        bucket = (gap.log() / 0.301).trunc().clamp(0, 128).long()
        weights = torch.nn.functional.silu(scores + position + ts_w[bucket]) / n * torch.ones(n, n).tril()
        outputs.append(torch.einsum("hnm,mhd->nhd", weights, values)[:length])
    return torch.cat(outputs)


def test_with_next_times_the_op_equals_the_research_codes_attention():
    max_len, lengths = 12, [5, 12, 1]
    n = max_len + 11  # the padded length of the research code
    total, bounds = sum(lengths), torch.tensor([0, *lengths]).cumsum(0).tolist()
    leaves = [draw(total, 2, 4), draw(total, 2, 4, seed=1), draw(total, 2, 3, seed=2)]
    leaves += [draw(2 * n - 1), draw(129)]
    events = [seconds(length + 1, seed=length).sort().values for length in lengths]

    def research(q, k, v, pos_w, ts_w):
        parts = ([x[a:b] for a, b in zip(bounds, bounds[1:], strict=False)] for x in (q, k, v))
        return research_attention(*parts, pos_w, ts_w, events, n)

    def op(q, k, v, pos_w, ts_w):
        return hstu_attention(
            q, k, v, offsets=offsets_of(lengths), max_len=max_len, scale=1 / n,
            position_table=pos_w[None, :n], time_table=ts_w[None, :128],
            times=torch.cat([t[:-1] for t in events]), next_times=torch.cat([t[1:] for t in events]),
        )  # fmt: skip

    for got, want in zip(values_and_gradients(op, leaves), values_and_gradients(research, leaves), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_the_seed_determines_the_dropout_mask():
    lengths, places = [6, 9], torch.arange(15)
    q, k, v = draw(15, 2, 4), draw(15, 2, 4, seed=1), draw(15, 2, 3, seed=2)
    terms = dict(offsets=offsets_of(lengths), max_len=9, scale=0.5, dropout=0.4)
    got = hstu_attention(q, k, v, **terms, training=True, seed=11)
    owner = torch.tensor([0] * 6 + [1] * 9)
    allowed = (owner[:, None] == owner) & (places[:, None] >= places)
    heads = torch.arange(2)[:, None, None]
    factors = dropout_factors(torch.tensor([11]), places, places[:, None], heads, 0.4)
    weights = torch.nn.functional.silu(torch.einsum("ihd,jhd->hij", q, k)) * 0.5 * allowed * factors
    torch.testing.assert_close(got, torch.einsum("hij,jhd->ihd", weights, v))
    assert torch.equal(hstu_attention(q, k, v, **terms), hstu_attention(q, k, v, **{**terms, "dropout": 0.0}))
    torch.manual_seed(0)
    drawn = [hstu_attention(q, k, v, **terms, training=True) for _ in range(2)]
    torch.manual_seed(0)
    assert torch.equal(hstu_attention(q, k, v, **terms, training=True), drawn[0])
    assert not torch.equal(*drawn)


def op_arguments():
    times = seconds(9)
    tables = draw(2, 12).float().detach().requires_grad_(), draw(1, 128).float().detach().requires_grad_()
    q, k, v = (draw(9, 2, 4, seed=s, dtype=torch.float32) for s in range(3))
    return (q, k, v, offsets_of([4, 5]), *tables, times, times + 7, torch.tensor([3]), 12, 0.3, 0.7, True, 0.2, False)


def test_the_op_passes_opcheck():
    torch.library.opcheck(hstu_attention_op, op_arguments())


def test_torch_compile_accepts_the_op_without_a_graph_break():
    q, k, v, offsets, position, time, times, *_ = op_arguments()

    def attend(q, k, v, offsets, times, position, time):
        return hstu_attention(
            q * 2, k, v, offsets=offsets, max_len=12, scale=0.3, position_table=position, time_table=time, times=times
        ).square()

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=True)
    for part in (slice(0, 9), slice(0, 4)):
        bounds = offsets if part.stop == 9 else offsets[:2]
        leaves = [x[part].detach().requires_grad_() for x in (q, k, v)] + [position, time]

        def run(function, bounds=bounds, part=part):
            return lambda q, k, v, p, t: function(q, k, v, bounds, times[part], p, t)

        for got, want in zip(*(values_and_gradients(run(f), leaves) for f in (compiled, attend)), strict=True):
            torch.testing.assert_close(got, want)


GOOD = dict(
    q=torch.zeros(9, 2, 4),
    k=torch.zeros(9, 2, 4),
    v=torch.zeros(9, 2, 3),
    offsets=offsets_of([4, 5]),
    max_len=5,
    scale=0.1,
    position_table=torch.zeros(1, 5),
    time_table=torch.zeros(2, 128),
    times=torch.zeros(9, dtype=torch.int64),
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(offsets=None), "pass a plan, or offsets"),
        (dict(max_len=None), "pass a plan, or offsets"),
        (dict(max_len=0), "max_len=0 is below 1"),
        (dict(max_len=4), "a sequence has 5 tokens but max_len=4"),
        (dict(offsets=torch.tensor([1, 9], dtype=torch.int32)), "offsets begin at 1"),
        (dict(offsets=torch.tensor([0, 5, 4, 9], dtype=torch.int32)), "offsets decrease after sequence 1"),
        (dict(offsets=torch.tensor([0, 4, 8], dtype=torch.int32)), "offsets end at 8 but there are 9 tokens"),
        (dict(offsets=torch.tensor([0.0, 9.0])), "offsets are torch.float32"),
        (dict(offsets=torch.zeros(1, 2, dtype=torch.int32)), r"of shape \(1, 2\)"),
        (dict(offsets=torch.zeros(3, dtype=torch.int32, device="meta")), "offsets is on meta but q on cpu"),
        (dict(k=torch.zeros(9, 2, 5)), "give q and k"),
        (dict(q=torch.zeros(9, 8), k=torch.zeros(9, 8)), "give q and k"),
        (dict(v=torch.zeros(8, 2, 3)), "give q and k"),
        (dict(q=torch.zeros(9, 2, 0), k=torch.zeros(9, 2, 0)), "no width"),
        (dict(v=torch.zeros(9, 2, 3).half()), "give all three in one dtype"),
        (dict(v=torch.zeros(9, 2, 3, device="meta")), "v is on meta but q on cpu"),
        (dict(position_table=torch.zeros(3, 5)), r"position_table .* give \(1 or 2, entries\)"),
        (dict(position_table=torch.zeros(1, 0)), r"give \(1 or 2, entries\)"),
        (dict(time_table=torch.zeros(1, 128, dtype=torch.int64)), "floating"),
        (dict(time_table=torch.zeros(1, 127)), "127 entries; give 128"),
        (dict(times=None), "pass times"),
        (dict(times=torch.zeros(8, dtype=torch.int64)), r"times is torch.int64 of shape \(8,\)"),
        (dict(times=torch.zeros(9)), "give integer seconds"),
        (dict(next_times=torch.zeros(9, dtype=torch.int32)), "in the dtype of times"),
        (dict(plan=PackingPlan.build(torch.tensor([0, 8]))), "the plan has 8 tokens but q has 9"),
        (dict(plan=PackingPlan.build(torch.tensor([0, 9]))), "a sequence has 9 tokens but max_len=5"),
    ],
)
def test_invalid_arguments_raise_an_error_that_names_the_problem(change, message):
    hstu_attention(**GOOD)
    terms = {**GOOD, **change}
    with pytest.raises(KernelError, match=message):
        hstu_attention(**terms)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (torch.tensor([2, 3]), "begin at 2"),
        (torch.tensor([0, 3, 1]), "decrease after sequence 1"),
        (torch.tensor([], dtype=torch.int64), r"of shape \(0,\)"),
    ],
)
def test_a_plan_with_invalid_offsets_is_rejected(offsets, message):
    with pytest.raises(KernelError, match=message):
        PackingPlan.build(offsets)


def test_a_plan_gives_times_relative_to_each_sequences_first_event():
    times = torch.tensor([10**9, 10**9 + 5, 77, 77 + 2**33])
    plan = PackingPlan.build(torch.tensor([0, 2, 2, 4]), times=times)
    assert plan.relative_times.tolist() == [0, 5, 0, 2**31 - 1] and plan.relative_times.dtype == torch.int32
    assert plan.device_offsets.tolist() == [0, 2, 2, 4] and plan.device_offsets.dtype == torch.int32
    with pytest.raises(KernelError, match="3 times for 4 tokens"):
        PackingPlan.build(torch.tensor([0, 4]), times=times[:3])


def test_rows_are_laid_out_at_first_use():
    made = []
    plan = PackingPlan.build(torch.tensor([0, 2]))
    watched = replace(plan, lay_out=lambda: made.append(1) or plan.lay_out())
    assert watched.longest == 2 and watched.positions.tolist() == [0, 1] and not made
    assert watched.groups and watched.slots.numel() == 2 and made == [1]


def test_alpha_scales_only_the_scores():
    q, k, v = draw(9, 2, 4), draw(9, 2, 4, seed=1), draw(9, 2, 3, seed=2)
    plan = PackingPlan.build(torch.tensor([0, 9]))
    halved = hstu_attention(q, k, v, plan=plan, scale=0.1, alpha=1 / math.sqrt(4))
    torch.testing.assert_close(halved, hstu_attention(q / 2, k, v, plan=plan, scale=0.1))
