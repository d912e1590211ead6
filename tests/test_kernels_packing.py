"""The packing plan: every token has its slot, whole sequences share a row, masks and biases are what they say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from virtualmle.kernels.packing import WIDTH_STEP, PackingPlan, num_distances

torch.set_num_threads(1)

LENGTHS = [
    pytest.param([], id="no sequence"),
    pytest.param([0], id="only an empty sequence"),
    pytest.param([1], id="a single token"),
    pytest.param([16], id="exactly the least width"),
    pytest.param([17, 16, 15], id="around the least width"),
    pytest.param([0, 3, 0, 0, 5, 0], id="empty among others"),
    pytest.param([50, 1, 49, 2, 48, 3, 50], id="pairs that fill a row exactly"),
    pytest.param([1] * 40, id="many single tokens"),
]
many_lengths = st.lists(st.integers(0, 40), max_size=40)


def offsets_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def check_plan(lengths):
    plan = PackingPlan.build(offsets_of(lengths))
    total = sum(lengths)
    assert plan.slots.unique().numel() == plan.slots.numel() == total
    assert plan.segments.shape == (plan.num_rows, plan.width)
    assert plan.width % WIDTH_STEP == 0 and plan.width >= max(lengths, default=0)
    assert plan.positions.tolist() == [step for length in lengths for step in range(length)]
    for sequence, (begin, length) in enumerate(zip(plan.offsets.tolist(), lengths, strict=False)):
        slots = plan.slots[begin : begin + length]
        assert (slots.diff() == 1).all() and slots.div(plan.width, rounding_mode="floor").unique().numel() <= 1
        assert (plan.segments.flatten()[slots] == sequence).all()
    assert (plan.segments == -1).sum() == plan.num_rows * plan.width - total == plan.empty.numel()
    # a row is closed only when the shortest sequence left does not fit, and that is no longer than what the row holds
    assert plan.num_rows <= 2 * total / plan.width + 1


@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_token_has_one_slot_and_sequences_lie_whole_in_a_row(lengths):
    check_plan(lengths)


@settings(deadline=None, max_examples=60)
@given(many_lengths)
def test_any_batch_packs(lengths):
    check_plan(lengths)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_scatter_undoes_gather_and_empty_slots_are_zero(lengths):
    plan = PackingPlan.build(offsets_of(lengths))
    x = torch.randn(sum(lengths), 2, 3) + 10
    rows = plan.gather(x)
    assert rows.shape == (plan.num_rows, plan.width, 2, 3)
    assert (rows[plan.segments == -1] == 0).all()
    assert torch.equal(plan.scatter(rows), x)


def test_gather_and_scatter_are_differentiable_twice():
    plan = PackingPlan.build(offsets_of([3, 1, 0, 2]))
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(plan.num_rows, plan.width, 2, dtype=torch.float64, requires_grad=True)
    for function, value in ((plan.gather, x), (plan.scatter, rows)):
        assert torch.autograd.gradcheck(function, (value,))
        assert torch.autograd.gradgradcheck(function, (value,))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.booleans())
def test_the_mask_allows_pairs_of_one_sequence_only(lengths, causal):
    plan = PackingPlan.build(offsets_of(lengths))
    seen = plan.mask(causal)
    full = torch.zeros(plan.num_rows * plan.width, plan.num_rows * plan.width, dtype=torch.bool)
    for row in range(plan.num_rows):
        part = slice(row * plan.width, (row + 1) * plan.width)
        full[part, part] = seen[row]
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    expected = owner[:, None] == owner[None, :]
    if causal:
        expected &= plan.positions[None, :] <= plan.positions[:, None]
    assert torch.equal(full[plan.slots][:, plan.slots], expected)
    assert seen.any(-1).all(), "a query without a key would make softmax NaN"


def test_masks_are_built_once_per_plan():
    plan = PackingPlan.build(offsets_of([3, 4]))
    assert plan.mask(True) is plan.mask(True)
    assert torch.equal(plan.mask(True, torch.float32), plan.mask(True).float())


@pytest.mark.parametrize("causal", [True, False])
def test_relative_bias_reads_the_entry_of_the_distance_and_clips_what_is_further(causal):
    max_len = 5
    plan = PackingPlan.build(offsets_of([9]))
    table = torch.randn(2, num_distances(max_len, causal))
    bias = plan.relative_bias(table, causal)
    assert bias.shape == (2, plan.width, plan.width)
    for i in range(9):
        for j in range(i + 1 if causal else 9):
            distance = max(-(max_len - 1), min(max_len - 1, j - i))
            assert torch.equal(bias[:, i, j], table[:, distance + max_len - 1])
