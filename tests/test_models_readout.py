"""Readouts against a plain loop over each token and its prefix."""

import pytest
import torch

from virtualmle.models.batch import make_batch
from virtualmle.models.config import make_config
from virtualmle.models.readout import build_readout

torch.set_num_threads(1)

LENGTHS = [5, 1, 9, 2]


def apply_readout(config):
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    x = torch.randn(sum(LENGTHS), config.hidden_dim, generator=torch.Generator().manual_seed(1))
    readout = build_readout(config)
    return readout, x, readout(x, make_batch(torch.zeros(len(x), dtype=torch.int64), offsets, config).plan)


def prefixes(x):
    """For each token, the tokens of its sequence up to and including it."""
    for begin, length in zip(torch.tensor([0, *LENGTHS]).cumsum(0).tolist(), LENGTHS, strict=False):
        for step in range(length):
            yield x[begin : begin + step + 1]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("readout", "k", "summary"),
    [
        ("last", 3, lambda prefix: prefix[-1]),
        ("mean", 3, lambda prefix: prefix.mean(0)),
        ("last_k", 1, lambda prefix: prefix[-1]),
        ("last_k", 3, lambda prefix: prefix[-3:].mean(0)),
        ("last_k", 64, lambda prefix: prefix.mean(0)),
    ],
)
def test_a_readout_summarises_the_prefix_of_each_token(readout, k, summary, causal):
    config = make_config("hstu", hidden_dim=8, readout=readout, readout_k=k, causal=causal, supervision="last")
    _, x, states = apply_readout(config)
    torch.testing.assert_close(states, torch.stack([summary(prefix) for prefix in prefixes(x)]))


def test_the_attention_readout_weights_the_prefix_by_learned_similarity():
    module, x, states = apply_readout(make_config("sasrec", hidden_dim=8, readout="attention"))
    query, key = module.query_key.weight.chunk(2)
    expected = []
    for prefix in prefixes(x):
        scores = (prefix @ key.T) @ (query @ prefix[-1]) / 8**0.5
        expected.append(scores.softmax(0) @ prefix)
    torch.testing.assert_close(states, torch.stack(expected))
