"""Original item ids and their numbers in a model: look-up in both directions, for one id or for millions."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

WHOLE = r"^(0|-?[1-9]\d{0,17})$"  # whole numbers as Int64 writes them: no leading zero, no sign of zero

Ids = Sequence[Any] | NDArray[Any] | pl.Series


def typed_ids(text: pl.Series) -> pl.Series:
    """Ids as Int64 if every one of them is a whole number, written as Int64 writes it; otherwise unchanged text."""
    return text.cast(pl.Int64) if text.str.contains(WHOLE).all() else text


class ItemIndex:
    """The ids of a model's items; `ids[i]` is the original id of item i, a string or an integer.

    It is null for an item whose id was sealed when the model was exported; no id finds such an item.
    """

    def __init__(self, ids: pl.Series) -> None:
        self.ids = ids
        numbers = pl.Series("number", np.arange(len(ids), dtype=np.int32))
        self._table = pl.DataFrame([as_text(ids).alias("id"), numbers])

    def find(self, ids: Ids) -> NDArray[np.int32]:
        """The numbers int32 (n,) of ids, -1 for unknown ones; 5, 5.0 and "5" are the same id."""
        if not isinstance(ids, (np.ndarray, pl.Series)):  # a few ids: looking them up is faster than a join
            return np.array([self._numbers.get(_text(each), -1) for each in ids], dtype=np.int32)
        asked = pl.DataFrame([as_text(_series(ids)).alias("id")])
        found = asked.join(self._table, on="id", how="left", maintain_order="left")["number"]
        return found.fill_null(-1).to_numpy()

    @functools.cached_property
    def _numbers(self) -> dict[str | None, int]:
        """The number of each id."""
        return {text: number for number, text in enumerate(as_text(self.ids)) if text is not None}

    def originals(self, numbers: Sequence[int] | NDArray[np.int32]) -> list[Any]:
        """The original ids of items."""
        return [self._originals[number] for number in numbers]

    @functools.cached_property
    def _originals(self) -> list[Any]:
        return self.ids.to_list()


def as_text(ids: pl.Series) -> pl.Series:
    """Ids as text; whole floating-point numbers without a decimal point, as a column with gaps has them."""
    if not ids.dtype.is_float():
        return ids.cast(pl.String)
    whole = ids.is_finite() & (ids == ids.floor()) & (ids.abs() < 2.0**63)
    return pl.select(
        pl.when(whole).then(ids.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(ids.cast(pl.String))
    ).to_series()


def _series(ids: NDArray[Any] | pl.Series) -> pl.Series:
    if isinstance(ids, pl.Series):
        return ids
    return pl.Series(ids) if ids.dtype != object else pl.Series([_text(each) for each in ids], dtype=pl.String)


def _text(each: Any) -> str | None:
    if isinstance(each, float) and each.is_integer():
        each = int(each)
    return None if each is None else str(each)
