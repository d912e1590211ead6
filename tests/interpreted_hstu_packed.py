"""The packed kernels in Triton's interpreter against the float64 reference; test_kernels_hstu_packed.py runs this file.

To run it alone:

    TRITON_INTERPRET=1 pytest tests/interpreted_hstu_packed.py

In float32 a tile has 32 tokens (16 at width 256), so that 31, 32 and 33 are lengths around a tile boundary.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from virtualmle.kernels.hstu import reference
from virtualmle.kernels.hstu.attention_call import AttentionCall
from virtualmle.kernels.hstu.packed_backward_triton import packed_backward
from virtualmle.kernels.hstu.packed_forward_triton import packed_forward
from virtualmle.kernels.hstu.packed_launch import packed_configuration
from virtualmle.kernels.hstu.philox import dropout_factors
from virtualmle.kernels.jagged.packing import num_distances

torch.set_num_threads(1)
NAMES = ("out", "dq", "dk", "dv", "position", "time")


@dataclass(frozen=True)
class Case:
    """One attention call: its sequences and options."""

    lengths: tuple[int, ...]
    max_len: int
    heads: int = 2
    dqk: int = 8
    dv: int = 8
    positions: int = 1  # rows of the position table, 0 = no table
    entries: int | None = None  # of the position table; by default num_distances(max_len, causal)
    times: int = 1  # rows of the time table, 0 = no table
    next_times: bool = False
    causal: bool = True
    deterministic: bool = False
    dropout: float = 0.0
    dtype: torch.dtype = torch.float32
    time_dtype: torch.dtype = torch.int64


def tensors_of(case):
    """Float64 leaves with values of the kernels' dtype, the output's gradient, and an AttentionCall without tables."""
    generator = torch.Generator().manual_seed(sum(case.lengths) + case.dqk)
    total = sum(case.lengths)

    def draw(*shape):
        values = torch.randn(*shape, dtype=torch.float64, generator=generator)
        return values.to(case.dtype).double().requires_grad_()

    entries = case.entries or num_distances(case.max_len, case.causal)
    leaves = [draw(total, case.heads, case.dqk), draw(total, case.heads, case.dqk), draw(total, case.heads, case.dv)]
    leaves += [draw(case.positions, entries) if case.positions else None]
    leaves += [draw(case.times, 128) if case.times else None]
    spread = 10 ** torch.randint(0, 9, (total,), generator=generator)
    times = (torch.rand(total, generator=generator, dtype=torch.float64) * spread).to(case.time_dtype)
    call = AttentionCall(
        torch.tensor([0, *case.lengths]).cumsum(0).to(torch.int32),
        case.max_len,
        scale=1.5 / case.max_len,
        alpha=case.dqk**-0.5,
        causal=case.causal,
        dropout=case.dropout,
        seed=torch.tensor([-(2**40) - 17]),
        deterministic=case.deterministic,
        times=times,
        next_times=times + 1000 if case.next_times else None,
    )
    return leaves, draw(total, case.heads, case.dv).detach(), call


def expected_results(case, leaves, grad, call):
    if case.dropout:
        out = attention_with_dropout(case, leaves, call)
    else:
        out = reference.hstu_attention(
            *leaves[:3],
            offsets=call.offsets,
            scale=call.scale,
            alpha=call.alpha,
            position_table=leaves[3],
            time_table=leaves[4],
            times=call.times,
            next_times=call.next_times,
            causal=case.causal,
        )
    present = [leaf for leaf in leaves if leaf is not None]
    gradients = iter(torch.autograd.grad((out * grad).sum(), present))
    return [out, *(None if leaf is None else next(gradients) for leaf in leaves)]


def attention_with_dropout(case, leaves, call):
    """The formula without biases, with the dropout factors drawn on the CPU."""
    q, k, v, *_ = leaves
    places = torch.arange(len(q))
    heads = torch.arange(case.heads)[:, None, None]
    factors = dropout_factors(call.seed, places[None, None, :], places[None, :, None], heads, case.dropout)
    owner = torch.repeat_interleave(torch.arange(len(case.lengths)), torch.tensor(case.lengths))
    allowed = (owner[:, None] == owner) & (places[:, None] >= places)
    scores = call.alpha * torch.einsum("ihd,jhd->hij", q, k)
    weights = scores * torch.sigmoid(scores) * call.scale * allowed * factors
    return torch.einsum("hij,jhd->ihd", weights, v)


def computed(case, leaves, grad, call):
    def of(tensor):
        return None if tensor is None else tensor.detach().to(case.dtype)

    def table(tensor):
        return None if tensor is None else tensor.detach().float()

    call = replace(call, position_table=table(leaves[3]), time_table=table(leaves[4]))
    q, k, v = map(of, leaves[:3])
    return [packed_forward(q, k, v, call), *packed_backward(grad.to(case.dtype), q, k, v, call)]


def check(case, tolerance=1e-5):
    leaves, grad, call = tensors_of(case)
    want, got = expected_results(case, leaves, grad, call), computed(case, leaves, grad, call)
    for name, expected, actual in zip(NAMES, want, got, strict=True):
        assert (expected is None) == (actual is None), name
        if expected is not None:
            error = (actual.double() - expected).norm() / expected.norm()
            assert error <= tolerance, f"{name}: {error:.1e}"  # NaN fails too


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory that no kernel has written is NaN."""
    real = torch.Tensor.new_empty

    def poisoned(tensor, *size, **options):
        empty = real(tensor, *size, **options)
        return empty.fill_(float("nan")) if empty.is_floating_point() else empty

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case((1,), 1), id="a single token, max_len 1"),
        pytest.param(Case((9,), 50), id="a batch of one"),
        pytest.param(Case((0, 5, 0, 0, 3, 0), 10), id="empty sequences, also first and last"),
        pytest.param(Case((31, 1), 40), id="one below a tile, then one to fill it"),
        pytest.param(Case((32, 32), 32), id="sequences that are exactly tiles"),
        pytest.param(Case((33, 30, 2), 33), id="one above a tile, and a sequence across a tile boundary"),
        pytest.param(Case((3, 64, 1), 64), id="spans three tiles"),
        pytest.param(Case((5, 65, 31), 65, next_times=True), id="max_len one above two tiles; the next event's time"),
        pytest.param(Case((20, 20), 20, dqk=8, dv=25), id="values wider than queries, neither a power of two"),
        pytest.param(Case((20, 9), 20, dqk=25, dv=5), id="queries wider than values"),
        pytest.param(Case((17, 40), 40, dqk=32, dv=32, heads=1), id="width 32, one head"),
        pytest.param(Case((17, 40), 40, dqk=64, dv=16, positions=0), id="width 64, no position table"),
        pytest.param(Case((17, 20), 40, dqk=128, dv=64, times=0, heads=1), id="width 128, no time table"),
        pytest.param(Case((17, 4), 17, dqk=256, dv=16, positions=0, times=0, heads=1), id="width 256, no table"),
        pytest.param(Case((33, 7), 33, causal=False), id="keys after the query"),
        pytest.param(Case((31, 33, 20), 70, causal=False, positions=2, times=2), id="later keys, one table per head"),
        pytest.param(Case((31, 33), 70, positions=2, times=2), id="one table per head"),
        pytest.param(Case((40, 12), 40, entries=9), id="a position table shorter than the sequence"),
        pytest.param(Case((40, 12), 40, entries=90), id="a position table longer than max_len"),
        pytest.param(Case((40, 12), 40, entries=9, causal=False), id="a table too short in both directions"),
        pytest.param(Case((40, 12), 40, entries=1, causal=False), id="a table of one entry"),
        pytest.param(Case((40, 12), 40, entries=99, causal=False), id="a table longer than both directions"),
        pytest.param(Case((33, 12), 40, deterministic=True), id="buckets summed in order"),
        pytest.param(Case((12, 9), 12, deterministic=True, causal=False, time_dtype=torch.int32), id="int32 seconds"),
        pytest.param(Case((2, 256), 256, heads=1, times=0), id="the longest max_len of the family"),
    ],
)
def test_output_and_every_gradient_agree_with_the_reference(case):
    check(case)


def test_half_precision_errors_stay_within_its_rounding():
    check(Case((31, 3, 40), 70, dqk=16, dv=16, dtype=torch.float16), tolerance=2e-3)


@settings(deadline=None, max_examples=8)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any),
    dqk=st.integers(1, 20),
    dv=st.integers(1, 20),
    causal=st.booleans(),
    deterministic=st.booleans(),
    next_times=st.booleans(),
)
def test_any_jagged_batch_agrees(lengths, dqk, dv, causal, deterministic, next_times):
    check(
        Case(
            tuple(lengths), max(lengths), 1, dqk, dv, causal=causal, deterministic=deterministic, next_times=next_times
        )
    )


def test_forward_and_backward_use_the_dropout_mask_drawn_on_the_cpu():
    check(Case((33, 7, 40), 40, positions=0, times=0, dropout=0.3))


def test_tokens_after_the_last_sequence_are_not_read_and_get_zero_outputs_and_gradients():
    case = Case((20, 15), 40)
    leaves, grad, call = tensors_of(case)
    want = computed(case, leaves, grad, call)
    junk = torch.full((40, case.heads, 8), float("nan"), dtype=torch.float64)
    longer = [torch.cat((x, junk)) for x in (*leaves[:3], grad)]
    call = replace(call, times=torch.cat((call.times, torch.zeros(40, dtype=torch.int64))))
    got = computed(case, [*longer[:3], *leaves[3:]], longer[3], call)
    for name, alone, padded in zip(NAMES, want, got, strict=True):
        if name in ("position", "time"):
            torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(padded[:35], alone) and (padded[35:] == 0).all(), name


def test_a_change_in_one_sequence_does_not_change_the_others():
    case = Case((9, 12, 8), 12)
    leaves, grad, call = tensors_of(case)
    before = computed(case, leaves, grad, call)[:4]
    changed = [leaf.detach().clone() for leaf in leaves]
    for leaf in changed[:3]:
        leaf[9:21] += 1
    for old, new in zip(before, computed(case, changed, grad, call), strict=False):
        assert torch.equal(old[:9], new[:9]) and torch.equal(old[21:], new[21:])
        assert not torch.equal(old[9:21], new[9:21])


def test_views_into_a_joint_projection_give_the_same_results():
    case = Case((9, 12), 12, dqk=8, dv=8)
    leaves, grad, call = tensors_of(case)
    flat = torch.cat([leaf.detach().flatten(1) for leaf in leaves[:3]], 1)
    views = [part.view(21, 2, 8) for part in flat.split(16, 1)]
    assert not views[0].is_contiguous()
    for a, b in zip(computed(case, leaves, grad, call), computed(case, [*views, *leaves[3:]], grad, call), strict=True):
        assert torch.equal(a, b)


def test_tile_sizes_depend_on_dtype_width_and_max_len():
    tiles = {
        packed_configuration(width, max_len, dtype)[0]
        for width in (16, 64, 256)
        for max_len in (50, 200)
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert tiles == {16, 32, 64}
