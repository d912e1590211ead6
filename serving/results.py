"""Scored items as they are returned: they print as tables, also in notebooks."""

import functools
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import polars as pl

SHOWN_USERS = 20


@dataclass(frozen=True)
class ScoredItem:
    """An item by its original id."""

    item: Any  # str or int
    score: float


@dataclass(frozen=True)
class Recommendations(Sequence[ScoredItem]):
    """The items for one history, the best first (of `Recommender.score`: in the order of the request)."""

    items: tuple[Any, ...]  # original ids, str or int
    scores: tuple[float, ...]
    unknown: tuple[Any, ...] = ()  # ids of the request that the model does not know
    by_popularity: bool = False  # the history had no known item: scores are numbers of events

    @functools.cached_property
    def _table(self) -> list[tuple[str, ...]]:
        rows = [(str(n), str(item), f"{score:.4g}") for n, (item, score) in enumerate(self._pairs(), 1)]
        return [("", "item", "score"), *rows]

    def _pairs(self) -> Iterator[tuple[Any, float]]:
        return zip(self.items, self.scores, strict=True)

    @overload
    def __getitem__(self, position: int) -> ScoredItem: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[ScoredItem, ...]: ...
    def __getitem__(self, position: int | slice) -> ScoredItem | tuple[ScoredItem, ...]:
        """The scored item at a position, or those of a slice."""
        return tuple(ScoredItem(*pair) for pair in self._pairs())[position]

    def __len__(self) -> int:
        return len(self.items)

    def notes(self) -> list[str]:
        """Sentences about how the list came about; empty for a list by the model with all ids known."""
        notes = [f"unknown and left out: {', '.join(map(str, self.unknown))}"] if self.unknown else []
        return [*notes, *(["by popularity: the history has no known item"] if self.by_popularity else [])]

    def __str__(self) -> str:
        widths = [max(len(row[column]) for row in self._table) for column in range(3)]
        lines = [f"{n:>{widths[0]}}  {item:<{widths[1]}}  {score:>{widths[2]}}" for n, item, score in self._table]
        return "\n".join([*lines, *(f"({note})" for note in self.notes())])

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        return _html_table(self._table) + "".join(f"<p>{html.escape(note)}</p>" for note in self.notes())


@dataclass(frozen=True)
class RecommendationBatch(Sequence[Recommendations]):
    """The results for a list of histories, in their order."""

    users: tuple[Recommendations, ...]

    @overload
    def __getitem__(self, position: int) -> Recommendations: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[Recommendations, ...]: ...
    def __getitem__(self, position: int | slice) -> Recommendations | tuple[Recommendations, ...]:
        """The result of one history, or those of a slice."""
        return self.users[position]

    def __len__(self) -> int:
        return len(self.users)

    def to_frame(self) -> pl.DataFrame:
        """Columns history (position in the request), rank (1 = best), item, score."""
        rows = [
            (user, rank, item, score)
            for user, found in enumerate(self.users)
            for rank, (item, score) in enumerate(zip(found.items, found.scores, strict=True), 1)
        ]
        return pl.DataFrame(rows, schema=["history", "rank", "item", "score"], orient="row")

    def __str__(self) -> str:
        parts = [f"history {number}\n{found}" for number, found in enumerate(self.users[:SHOWN_USERS])]
        return "\n\n".join([*parts, *self._rest()])

    def _repr_html_(self) -> str:
        """A table with one row per history in a notebook."""
        shown = enumerate(self.users[:SHOWN_USERS])
        rows = [(str(number), ", ".join(map(str, found.items)), "; ".join(found.notes())) for number, found in shown]
        return _html_table([("history", "items", ""), *rows]) + "".join(f"<p>{line}</p>" for line in self._rest())

    def _rest(self) -> list[str]:
        hidden = len(self.users) - SHOWN_USERS
        return [f"… and {hidden:,} more histories"] if hidden > 0 else []


def _html_table(rows: Sequence[tuple[str, ...]]) -> str:
    cells = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(["th", *["td"] * (len(rows) - 1)], rows, strict=True)
    ]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
