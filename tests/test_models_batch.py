"""Jagged batches: last tokens, truncation, and sequences that are too long."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from virtualmle.data.errors import DataError
from virtualmle.models.batch import keep_last, make_batch
from virtualmle.models.config import make_config

torch.set_num_threads(1)


def test_last_tokens_index_the_last_item_of_each_sequence():
    batch = make_batch(torch.arange(9), torch.tensor([0, 2, 3, 9]), make_config("sasrec"))
    assert batch.items[batch.last_tokens()].tolist() == [1, 2, 8]


def test_a_sequence_longer_than_max_len_is_refused_naming_both_lengths():
    config = make_config("sasrec", max_len=4)
    make_batch(torch.arange(4), torch.tensor([0, 4]), config)
    with pytest.raises(DataError, match=r"5 events but max_len=4"):
        make_batch(torch.arange(5), torch.tensor([0, 5]), config)


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(1, 6))
def test_keep_last_keeps_the_latest_events_of_each_sequence(lengths, max_len):
    sequences = [[100 * user + step for step in range(length)] for user, length in enumerate(lengths)]
    items = torch.tensor([item for sequence in sequences for item in sequence], dtype=torch.int64)
    index, offsets = keep_last(torch.tensor([0, *lengths]).cumsum(0), max_len)
    kept = [items[index][begin:end].tolist() for begin, end in zip(offsets, offsets[1:], strict=False)]
    assert kept == [sequence[-max_len:] for sequence in sequences]
