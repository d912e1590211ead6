"""Negative sampling: items are drawn with the stated probabilities."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from virtualmle.models.config import make_config
from virtualmle.training.negatives import NegativeSampler, alias_table

COUNTS = np.array([40, 9, 0, 1, 25, 4])
DATASET = SimpleNamespace(num_items=6, items=np.repeat(np.arange(6), COUNTS))


def sampler(power, seed=0):
    config = make_config("sasrec", negative_power=power)
    return NegativeSampler(config, DATASET, torch.device("cpu"), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_items_are_drawn_with_their_probability(power):
    from scipy.stats import chisquare  # noqa: PLC0415 (slow to load)

    expected = np.ones(6) if power == 0 else COUNTS.astype(float) ** power
    expected = 60_000 * expected / expected.sum()
    drawn = sampler(power).draw(300, 200)
    seen = np.bincount(drawn.flatten().numpy(), minlength=6)
    possible = expected > 0
    assert seen[~possible].sum() == 0
    assert chisquare(seen[possible], expected[possible]).pvalue > 1e-4
    np.testing.assert_allclose(sampler(power).log_q.exp().numpy(), expected / 60_000, rtol=1e-5)


def test_equal_generators_draw_equal_items():
    assert torch.equal(sampler(0.7, 3).draw(50), sampler(0.7, 3).draw(50))
    assert not torch.equal(sampler(0.7, 3).draw(50), sampler(0.7, 4).draw(50))


@given(st.lists(st.floats(1e-6, 1e6) | st.just(0.0) | st.just(1.0), min_size=1, max_size=60).filter(any))
@example([1.0] * 49)  # 49 * (1 / 49) is below 1
@example([0.0] * 30 + [1.0])
@example([0.1] * 20 + [0.9] + [1.1] * 9)  # the deficit of one item exceeds several surpluses
@example([1.3] * 9 + [0.0] + [1.3] * 9)
@example([0.0, 1.0, 1.0, 325091.81447326596, 1.0, 0.0, 0.0, 325092.81447326596])  # begins at an end
@example([1 / 3, 0.0, 0.0, 1.0])  # the first item that is not light has no surplus
def test_the_alias_table_gives_each_item_its_probability(weights):
    keep, alias = alias_table(np.array(weights))
    assert ((keep >= 0) & (keep <= 1)).all()
    shares = (keep + np.bincount(alias, weights=1 - keep, minlength=len(keep))) / len(keep)
    np.testing.assert_allclose(shares, np.array(weights) / np.sum(weights), rtol=1e-9, atol=1e-12)
    assert (shares[np.array(weights) == 0] == 0).all(), "an item of weight 0 must never be drawn"
