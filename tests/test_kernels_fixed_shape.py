"""Plans of fixed shape against the loop over sequences, with NaN in all padding tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from virtualmle.kernels.hstu import reference as hstu_reference
from virtualmle.kernels.hstu.attention import hstu_attention
from virtualmle.kernels.jagged import reference as softmax_reference
from virtualmle.kernels.jagged.fixed_shape import fixed_plan, row_width, token_places
from virtualmle.kernels.jagged.look_up import look_up
from virtualmle.kernels.jagged.packing import num_distances
from virtualmle.kernels.jagged.softmax_attention import softmax_attention
from virtualmle.kernels.jagged.time_buckets import NUM_TIME_BUCKETS

torch.set_num_threads(1)
MAX_LEN, HEADS, WIDTH = 11, 2, 4
LENGTHS = st.lists(st.integers(0, MAX_LEN), min_size=1, max_size=6).filter(any)


def offsets_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def padded(tokens, num_padding):
    filler = tokens.new_full((num_padding, *tokens.shape[1:]), math.nan)
    return torch.cat((tokens, filler)).requires_grad_()


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, num_padding=st.integers(0, 9))
def test_a_plan_has_the_position_of_every_token(lengths, num_padding):
    offsets = offsets_of(lengths)
    places = token_places(offsets, sum(lengths) + num_padding)
    token_positions = [(sequence, position) for sequence, length in enumerate(lengths) for position in range(length)]
    rows = list(zip(places.sequences.tolist(), places.positions.tolist(), strict=True))
    assert rows == token_positions + [(0, 0)] * num_padding
    assert places.counted.tolist() == [True] * len(token_positions) + [False] * num_padding
    plan, width = fixed_plan(offsets, places, MAX_LEN), row_width(MAX_LEN)
    tokens = numbers(0, len(rows), 3)
    (grid,) = plan.gather(tokens)
    expected = torch.zeros(len(lengths), width, 3, dtype=torch.float64)
    for number, (sequence, position) in enumerate(token_positions):
        expected[sequence, position] = tokens[number]
    assert torch.equal(grid, expected)
    assert torch.equal(plan.scatter([grid])[: len(token_positions)], tokens[: len(token_positions)])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", ["softmax", "hstu"])
@settings(max_examples=12, deadline=None)
@given(lengths=LENGTHS, num_padding=st.integers(0, 9))
def test_attention_over_a_fixed_plan_equals_the_loop_and_padding_has_no_effect(
    kind, biased, causal, lengths, num_padding
):
    count, offsets = sum(lengths), offsets_of(lengths)
    parts = [numbers(seed, count, HEADS, WIDTH) for seed in range(3)]
    times = numbers(7, count).mul(1e5).long().sort().values
    tables = {}
    if biased:
        tables["position_table"] = numbers(5, HEADS, num_distances(MAX_LEN, causal)).requires_grad_()
        tables["time_table"] = numbers(6, HEADS, NUM_TIME_BUCKETS).requires_grad_()
    fast, plain = {"softmax": (softmax_attention, softmax_reference.softmax_attention),
                   "hstu": (hstu_attention, hstu_reference.hstu_attention)}[kind]  # fmt: skip
    ours = [padded(part, num_padding) for part in parts]
    plan_times = torch.cat((times, times.new_full((num_padding,), 1 << 40)))
    plan = fixed_plan(offsets, token_places(offsets, count + num_padding), MAX_LEN, plan_times)
    out = fast(*ours, plan=plan, scale=0.3, causal=causal, **tables)
    weight = numbers(9, *out[:count].shape)
    leaves = [*ours, *tables.values()]
    found = torch.autograd.grad((out[:count] * weight).sum(), leaves)
    theirs = [part.clone().requires_grad_() for part in parts]
    expected = plain(*theirs, offsets=offsets, scale=0.3, causal=causal, times=times, **tables)
    wanted = torch.autograd.grad((expected * weight).sum(), [*theirs, *tables.values()])
    torch.testing.assert_close(out[:count], expected)
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        torch.testing.assert_close(one[:count] if number < 3 else one, other)
        assert number > 2 or not one[count:].any(), "no gradient reaches a padding token"


def test_a_look_up_returns_the_rows_and_their_gradient():
    table = numbers(0, 5, 3).requires_grad_()
    index = torch.tensor([4, 0, 4])
    look_up(table, index).sum().backward()
    assert torch.equal(look_up(table, index), table[index])
    assert table.grad[:, 0].tolist() == [1, 0, 0, 0, 2]
    (sparse,) = torch.autograd.grad(look_up(table, index, sparse=True).sum(), table)
    assert sparse.is_sparse and torch.equal(sparse.to_dense(), table.grad)
