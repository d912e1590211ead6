"""Augmentations: which events each kind may change, drop or hide, for a whole batch at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from virtualmle.training.augmentation import augment

lengths_strategy = st.lists(st.integers(1, 12), min_size=1, max_size=12)


def sequences(lengths, kind, ratio=0.5, share=1.0, min_length=1, seed=0):
    """(original indices, item indices, time indices, masked) of every sequence, as lists."""
    total = torch.tensor(lengths)
    new = augment(total, kind, ratio, share, min_length, torch.Generator().manual_seed(seed))
    old = torch.arange(int(total.sum())).split(lengths)
    fields = [field.split(new.lengths.tolist()) for field in (new.source, new.times, new.masked)]
    return [tuple(values.tolist() for values in row) for row in zip(old, *fields, strict=True)]


@settings(deadline=None)
@given(lengths_strategy, st.floats(0.05, 0.9), st.integers(1, 2), st.integers(0, 99))
def test_a_crop_keeps_a_contiguous_span(lengths, ratio, min_length, seed):
    for old, source, times, masked in sequences(lengths, "crop", ratio, min_length=min_length, seed=seed):
        kept = max(len(old) - int(torch.tensor(len(old)) * ratio), min(min_length, len(old)))
        start = old.index(source[0])
        assert source == times == old[start : start + kept] and not any(masked)


@settings(deadline=None)
@given(lengths_strategy, st.floats(0.05, 0.9), st.integers(0, 99))
def test_a_reorder_shuffles_the_items_of_one_span_and_keeps_the_times(lengths, ratio, seed):
    for old, source, times, masked in sequences(lengths, "reorder", ratio, seed=seed):
        assert times == old and sorted(source) == old and not any(masked)
        moved = [index for index, (a, b) in enumerate(zip(source, old, strict=True)) if a != b]
        assert not moved or moved[-1] - moved[0] < int(torch.tensor(len(old)) * ratio)


@settings(deadline=None)
@given(lengths_strategy, st.integers(0, 99))
def test_a_mask_hides_and_moves_nothing(lengths, seed):
    for old, source, times, _ in sequences(lengths, "mask", seed=seed):
        assert source == times == old


def test_each_item_is_masked_with_probability_ratio():
    masked = [flag for row in sequences([10] * 4000, "mask", ratio=0.3) for flag in row[3]]
    assert sum(masked) / len(masked) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("kind", ["crop", "mask", "reorder", "mixed"])
def test_the_share_is_the_fraction_of_sequences_that_change(kind):
    for old, source, times, masked in sequences([7] * 50, kind, share=0.0):
        assert source == times == old and not any(masked)
    changed = [row[1] != row[0] or any(row[3]) for row in sequences([12] * 4000, kind, share=0.25)]
    assert sum(changed) / 4000 == pytest.approx(0.25, abs=0.03)


def test_mixed_applies_one_of_the_three_kinds_to_each_sequence():
    rows = sequences([12] * 3000, "mixed")
    kinds = [len(s) < len(o) if len(s) < len(o) else ("mask" if any(h) else s != o) for o, s, _, h in rows]
    cropped = sum(len(s) < len(o) for o, s, _, _ in rows)
    masked = sum(any(h) for *_, h in rows)
    assert cropped == pytest.approx(1000, abs=120) and masked == pytest.approx(1000, abs=120) and kinds
    assert not any(any(h) and (len(s) < len(o) or s != o) for o, s, _, h in rows)


def test_equal_generators_give_equal_sequences():
    assert sequences([5, 9], "mixed", seed=4) == sequences([5, 9], "mixed", seed=4)
    assert sequences([5, 9] * 9, "mixed", seed=4) != sequences([5, 9] * 9, "mixed", seed=5)
