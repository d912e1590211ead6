"""The packing plan: every token has its own slot, sequences are not split, and masks and biases are correct."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from virtualmle.kernels.jagged.packing import BASE_WIDTH, WIDTH_STEP, PackingPlan, num_distances

torch.set_num_threads(1)

LENGTHS = [
    pytest.param([], id="no sequence"),
    pytest.param([0], id="only an empty sequence"),
    pytest.param([1], id="a single token"),
    pytest.param([32], id="exactly the minimum width"),
    pytest.param([33, 32, 31], id="around the minimum width: two groups"),
    pytest.param([200, 3, 65, 64, 1, 130], id="four groups"),
    pytest.param([0, 3, 0, 0, 5, 0], id="empty sequences among others"),
    pytest.param([50, 1, 49, 2, 48, 3, 50], id="pairs that fill a row exactly"),
    pytest.param([1] * 40, id="many single tokens"),
]
many_lengths = st.lists(st.integers(0, 140), max_size=40)


def offsets_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def group_slots(plan):
    """(first slot, rows, width) of each group."""
    first, found = 0, []
    for group in plan.groups:
        rows, width = group.segments.shape
        found.append((first, rows, width))
        first += rows * width
    return found


def check_plan(lengths):
    plan = PackingPlan.build(offsets_of(lengths))
    total = sum(lengths)
    assert plan.slots.unique().numel() == plan.slots.numel() == total
    assert plan.positions.tolist() == [step for length in lengths for step in range(length)]
    segments = torch.cat([group.segments.flatten() for group in plan.groups])
    assert (segments == -1).sum() == len(segments) - total == plan.empty.numel()
    for first, rows, width in group_slots(plan):
        assert width % WIDTH_STEP == 0 and width >= BASE_WIDTH
        held = (segments[first : first + rows * width] >= 0).sum()
        # a row is closed only if the shortest remaining sequence does not fit, which is no longer than its content
        assert rows <= 2 * held / width + 1
    for sequence, (begin, length) in enumerate(zip(plan.offsets.tolist(), lengths, strict=False)):
        slots = plan.slots[begin : begin + length]
        assert (slots.diff() == 1).all() and (segments[slots] == sequence).all()
        for first, rows, width in group_slots(plan) if length else ():
            inside = (slots >= first) & (slots < first + rows * width)
            assert inside.all() or not inside.any()
            if inside.all():
                assert (slots - first).div(width, rounding_mode="floor").unique().numel() == 1, "one row"
                assert width < 2 * max(length, BASE_WIDTH) + WIDTH_STEP, "no row is wider than its sequences need"


@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_token_has_one_slot_and_every_sequence_lies_in_one_row(lengths):
    check_plan(lengths)


@settings(deadline=None, max_examples=60)
@given(many_lengths)
def test_any_batch_can_be_packed(lengths):
    check_plan(lengths)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_scatter_inverts_gather_and_empty_slots_are_zero(lengths):
    plan = PackingPlan.build(offsets_of(lengths))
    x = torch.randn(sum(lengths), 2, 3) + 10
    rows = plan.gather(x)
    for part, group in zip(rows, plan.groups, strict=True):
        assert part.shape == (*group.segments.shape, 2, 3)
        assert (part[group.segments == -1] == 0).all()
    assert torch.equal(plan.scatter(rows), x)


@pytest.mark.parametrize("lengths", [[3, 1, 0, 2], [40, 3, 70]])
def test_gather_and_scatter_are_differentiable_twice(lengths):
    plan = PackingPlan.build(offsets_of(lengths))
    x = torch.randn(sum(lengths), 1, dtype=torch.float64, requires_grad=True)
    rows = [torch.randn(*g.segments.shape, 1, dtype=torch.float64, requires_grad=True) for g in plan.groups]
    for function, values in ((plan.gather, (x,)), (lambda *parts: plan.scatter(parts), rows)):
        assert torch.autograd.gradcheck(function, tuple(values), fast_mode=True)
        assert torch.autograd.gradgradcheck(function, tuple(values), fast_mode=True)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 70), min_size=1, max_size=12), st.booleans())
def test_the_mask_allows_pairs_of_one_sequence_only(lengths, causal):
    plan = PackingPlan.build(offsets_of(lengths))
    slots = sum(rows * width for _, rows, width in group_slots(plan))
    full = torch.zeros(slots, slots, dtype=torch.bool)
    for group, (first, rows, width) in zip(plan.groups, group_slots(plan), strict=True):
        seen = group.mask(causal)
        assert seen.any(-1).all(), "a query without a key would make softmax NaN"
        for row in range(rows):
            part = slice(first + row * width, first + (row + 1) * width)
            full[part, part] = seen[row]
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    expected = owner[:, None] == owner[None, :]
    if causal:
        expected &= plan.positions[None, :] <= plan.positions[:, None]
    assert torch.equal(full[plan.slots][:, plan.slots], expected)


def test_masks_are_built_once_per_plan():
    (group,) = PackingPlan.build(offsets_of([3, 4])).groups
    assert group.mask(True) is group.mask(True)
    assert torch.equal(group.mask(True, torch.float32), group.mask(True).float())


@pytest.mark.parametrize("causal", [True, False])
def test_a_position_bias_is_the_entry_of_the_distance_clipped_to_the_table(causal):
    max_len = 5
    (group,) = PackingPlan.build(offsets_of([9])).groups
    table = torch.randn(2, num_distances(max_len, causal))
    bias = group.position_bias(table, causal)
    assert bias.shape == (2, group.width, group.width)
    for i in range(9):
        for j in range(i + 1 if causal else 9):
            distance = max(-(max_len - 1), min(max_len - 1, j - i))
            assert torch.equal(bias[:, i, j], table[:, distance + max_len - 1])


def test_a_time_bias_without_times_raises_an_error_that_says_what_to_do():
    (group,) = PackingPlan.build(offsets_of([3])).groups
    with pytest.raises(ValueError, match="build the plan with times"):
        group.time_bias(torch.zeros(1, 128))


def test_one_long_sequence_widens_only_its_own_row():
    short = PackingPlan.build(offsets_of([6] * 200))
    with_long = PackingPlan.build(offsets_of([6] * 200 + [200]))
    cells = [sum(rows * width**2 for _, rows, width in group_slots(plan)) for plan in (short, with_long)]
    assert cells[1] - cells[0] == 200**2
