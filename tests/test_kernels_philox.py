"""Counter-based draws: the published test vectors, the dropout rate, and independence of neighbours."""

import pytest
import torch

from virtualmle.kernels.hstu.philox import LEVELS, dropout_factors, philox

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("counters", "key", "draws"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_test_vectors(counters, key, draws):
    low, high = key
    seed = torch.tensor([low | (high - (1 << 32) if high >> 31 else high) << 32])
    assert [int(draw) for draw in philox(seed, *map(torch.tensor, counters))] == draws


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_weights_are_dropped_at_the_given_rate_and_keep_the_mean(probability):
    places = torch.arange(700)
    factors = dropout_factors(torch.tensor([5]), places, places[:, None], torch.tensor([[0]]), probability)
    dropped = (factors == 0).double()
    spread = (probability * (1 - probability) / factors.numel()) ** 0.5
    assert abs(dropped.mean() - probability) < 4 * spread
    assert torch.unique(factors).tolist() == pytest.approx([0, 1 / (1 - probability)], rel=1e-6)
    for shifted in (dropped.roll(1, 0), dropped.roll(1, 1), dropped.T):  # next query, next key, mirrored pair
        together = ((dropped - probability) * (shifted - probability)).mean() / (probability * (1 - probability))
        assert abs(together) < 5 / factors.numel() ** 0.5


def test_masks_differ_by_seed_and_by_head_and_repeat_otherwise():
    places, heads = torch.arange(40), torch.arange(2)[:, None, None]
    first, again, other = (
        dropout_factors(torch.tensor([seed]), places, places[:, None], heads, 0.5) for seed in (1, 1, 1 << 32)
    )
    assert torch.equal(first, again)
    assert 0.4 < (first != other).double().mean() < 0.6
    assert 0.4 < (first[0] != first[1]).double().mean() < 0.6


def test_a_probability_that_rounds_to_zero_keeps_every_weight():
    places = torch.arange(100)
    assert (dropout_factors(torch.tensor([0]), places, places[:, None], torch.tensor([[0]]), 0.5 / LEVELS) == 1).all()
