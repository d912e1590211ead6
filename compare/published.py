"""Published figures beside which Table 1 is read: quoted from `published.toml` with their sources, never measured."""

import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .tables import Table

FILE = Path(__file__).with_name("published.toml")
METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")


@dataclass(frozen=True)
class Published:
    """One quoted row; `figures` are on the test split, in the order of METRICS."""

    dataset: str
    method: str
    source: str
    figures: tuple[float, ...]


@cache
def published() -> tuple[Published, ...]:
    """All quoted rows, in the order of the file."""
    content = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return tuple(Published(row["dataset"], row["method"], row["source"], tuple(row["figures"])) for row in
    content["row"])


@cache
def sources() -> dict[str, str]:
    """What each source is, by the name that rows use."""
    return dict(tomllib.loads(FILE.read_text(encoding="utf-8"))["sources"])


@cache
def missing() -> tuple[str, ...]:
    """What could not be quoted, in sentences."""
    return tuple(tomllib.loads(FILE.read_text(encoding="utf-8"))["missing"].values())


def published_table(datasets: Collection[str] | None = None) -> Table:
    """The quoted rows as a table; only those on `datasets`, if they are given."""
    order = {name: number for number, name in enumerate(sources(), 1)}
    rows = tuple(
        (row.dataset, row.method, f"[{order[row.source]}]", *(f"{figure:.4f}" for figure in row.figures))
        for row in published()
        if datasets is None or row.dataset in datasets
    )
    columns = ("data", "method", "source", "Recall@5", "Recall@10", "NDCG@5", "NDCG@10")
    note = f"Test figures as published; the data were prepared by other code. {' '.join(missing())}"
    return Table("Published figures", columns, rows, note, texts=3)


def source_lines() -> tuple[str, ...]:
    """The sources in the order of their numbers."""
    return tuple(f"[{number}] {text}" for number, text in enumerate(sources().values(), 1))
