"""Dropout: rate, scale, gradient and seed."""

import pytest
import torch

from virtualmle.kernels.jagged.dropout import dropout

torch.set_num_threads(1)


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_outside_training_or_at_probability_zero_dropout_is_the_identity(probability):
    x = torch.randn(5, 3)
    assert dropout(x, probability, training=False) is x
    assert dropout(x, 0.0, training=True) is x


@pytest.mark.parametrize("probability", [1e-9, 0.1, 0.5, 0.95])
def test_the_rate_and_the_mean_are_right(probability):
    torch.manual_seed(0)
    y = dropout(torch.ones(1000, 401), probability, training=True)
    standard_error = (probability * (1 - probability) / y.numel()) ** 0.5 + 2**-16
    assert abs((y == 0).double().mean().item() - probability) < 5 * standard_error
    assert torch.allclose(y[y != 0], torch.tensor(1 / (1 - probability)), rtol=1e-3)


def test_neighbouring_elements_are_dropped_independently():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(1 << 18), 0.5, training=True) != 0).double() - 0.5
    for lag in (1, 2, 3, 4, 8):
        assert (kept[lag:] * kept[:-lag]).mean().abs() < 5 * 0.25 / 512


def test_the_gradient_has_the_mask_and_scale_of_the_value():
    x = torch.ones(7, 5, dtype=torch.float64, requires_grad=True)
    y = dropout(x, 0.4, training=True)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_equal_seeds_give_equal_masks():
    x = torch.randn(13, 7)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(x, 0.5, training=True))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
