"""The k best columns: exact, with equal values in the order of the columns."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from virtualmle.serving.top_k import NO_ITEM, top_k

# few distinct values, so that most rows have ties at the boundary
TIED = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 0.5000001, 3.0])


def plain(scores: np.ndarray, k: int) -> list[list[int]]:
    """Each row sorted by falling score, then by rising column; columns without a finite score are left out."""
    rows = []
    for row in scores:
        order = sorted(range(len(row)), key=lambda column: (-row[column], column))
        kept = [column for column in order if row[column] > -np.inf][:k]
        rows.append(kept + [NO_ITEM] * (k - len(kept)))
    return rows


@given(
    scores=arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 12)), elements=TIED.map(np.float32)),
    k=st.integers(1, 15),
)
def test_the_best_columns_are_those_of_a_plain_sort_also_with_ties(scores: np.ndarray, k: int) -> None:
    columns, values = top_k(torch.tensor(scores), k)
    assert columns.tolist() == plain(scores, k)
    for row, of_row, found in zip(columns.numpy(), values.numpy(), scores, strict=True):
        expected = np.where(row == NO_ITEM, -np.inf, found[row])
        np.testing.assert_array_equal(of_row, expected)


@pytest.mark.parametrize("k", [1, 10, 300])
def test_a_long_row_of_equal_scores_gives_the_first_columns(k: int) -> None:
    columns, _ = top_k(torch.zeros(2, 1000), k)
    assert columns.tolist() == [list(range(k))] * 2
