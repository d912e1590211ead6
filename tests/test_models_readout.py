"""Readouts against a plain loop over every token's past."""

import pytest
import torch

from virtualmle.models.batch import make_batch
from virtualmle.models.config import make_config
from virtualmle.models.readout import build_readout

torch.set_num_threads(1)

LENGTHS = [5, 1, 9, 2]


def read(config):
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    x = torch.randn(sum(LENGTHS), config.hidden_dim, generator=torch.Generator().manual_seed(1))
    readout = build_readout(config)
    return readout, x, readout(x, make_batch(torch.zeros(len(x), dtype=torch.int64), offsets, config).plan)


def pasts(x):
    for begin, length in zip(torch.tensor([0, *LENGTHS]).cumsum(0).tolist(), LENGTHS, strict=False):
        for step in range(length):
            yield x[begin : begin + step + 1]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("readout", "k", "summary"),
    [
        ("last", 3, lambda past: past[-1]),
        ("mean", 3, lambda past: past.mean(0)),
        ("last_k", 1, lambda past: past[-1]),
        ("last_k", 3, lambda past: past[-3:].mean(0)),
        ("last_k", 64, lambda past: past.mean(0)),
    ],
)
def test_a_readout_summarises_each_tokens_past(readout, k, summary, causal):
    config = make_config("hstu", hidden_dim=8, readout=readout, readout_k=k, causal=causal, supervision="last")
    _, x, states = read(config)
    torch.testing.assert_close(states, torch.stack([summary(past) for past in pasts(x)]))


def test_the_attention_readout_weighs_the_past_by_learned_similarity():
    module, x, states = read(make_config("sasrec", hidden_dim=8, readout="attention"))
    query, key = module.query_key.weight.chunk(2)
    expected = []
    for past in pasts(x):
        scores = (past @ key.T) @ (query @ past[-1]) / 8**0.5
        expected.append(scores.softmax(0) @ past)
    torch.testing.assert_close(states, torch.stack(expected))
