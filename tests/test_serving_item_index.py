"""Original ids and the numbers of items, in both directions."""

import numpy as np
import polars as pl
import pytest

from virtualmle.serving.item_index import ItemIndex, typed_ids


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        pytest.param(["7", "0", "-3", "900000000000000000"], pl.Int64, id="whole numbers"),
        pytest.param(["7", "007"], pl.String, id="leading zeros would be lost"),
        pytest.param(["7", "B00A"], pl.String, id="mixed"),
        pytest.param(["7", "-0"], pl.String, id="a signed zero would be lost"),
        pytest.param(["7", "99999999999999999999"], pl.String, id="too large for 64 bits"),
        pytest.param(["1.5", "2"], pl.String, id="fractions"),
    ],
)
def test_ids_become_integers_only_if_their_text_can_be_restored(text: list[str], dtype: pl.DataType) -> None:
    typed = typed_ids(pl.Series(text))
    assert typed.dtype == dtype
    assert typed.cast(pl.String).to_list() == text


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param([5, 6, None, 12], id="integers"),
        pytest.param(["5", "6", "", "12"], id="text"),
        pytest.param([5.0, 6.0, float("nan"), 12.0], id="floating-point numbers of a column with gaps"),
        pytest.param(np.array([5, 6, 7, 12]), id="a numpy array"),
        pytest.param(np.array([5.0, 6.0, np.nan, 12.0]), id="a numpy array with gaps"),
        pytest.param(pl.Series([5, 6, None, 12]), id="a Series"),
        pytest.param(pl.Series(["5", "6", "05", "12"]), id="a Series of text"),
    ],
)
def test_an_integer_id_is_found_in_every_notation(asked: object) -> None:
    index = ItemIndex(pl.Series([12, 5, 6]))
    found = index.find(asked)
    assert found.dtype == np.int32
    assert found.tolist() == [1, 2, -1, 0]
    assert index.originals(np.array([2, 0], np.int32)) == [6, 12]


def test_text_ids_are_found_exactly_and_come_back_as_text() -> None:
    index = ItemIndex(pl.Series(["a", "B", "007", "5"]))
    assert index.find(["B", "b", 7, "7", "007", 5, " a"]).tolist() == [1, -1, -1, -1, 2, 3, -1]
    assert index.originals(np.array([3], np.int32)) == ["5"]
    assert index.find([]).tolist() == []


def test_a_million_rows_keep_their_order() -> None:
    index = ItemIndex(pl.Series(np.arange(10_000)[::-1] * 7))
    asked = np.random.default_rng(0).integers(0, 70_000, 1_000_000)
    found = index.find(asked)
    expected = np.where(asked % 7 == 0, 9_999 - asked // 7, -1)
    np.testing.assert_array_equal(found, expected)
