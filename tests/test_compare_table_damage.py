"""Replay tables whose digest is right and whose content no trial can have measured."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from virtualmle.data.errors import ReplayError
from virtualmle.tools.replaying import open_replay
from virtualmle.training.cells import Cell
from virtualmle.trials.replay_table import Footer, ReplayTable

SHIPPED = Path(__file__).parents[1] / "benchmarks" / "replay" / "tools.parquet"


@pytest.fixture(scope="module")
def shipped() -> ReplayTable:
    table = ReplayTable.read(SHIPPED)
    kept = [cell for cell in table.cells if cell.settings in ({}, {"dropout": 0.5})]
    return ReplayTable(table.path, table.footer, kept)


def measured(cell: Cell, **metrics: float) -> Cell:
    return cell.model_copy(update={"metrics": {**cell.metrics, **metrics}})


CHANGES: dict[str, tuple[Callable[[Cell], Cell], str]] = {
    "a metric": (lambda cell: measured(cell, **{"ndcg@10": 0.9}), "ndcg@10 other than its ranks"),
    "NaN": (lambda cell: measured(cell, **{"recall@5": float("nan")}), "recall@5 other than its ranks"),
    "an impossible mrr": (lambda cell: measured(cell, mrr=1.5), "mrr other than its ranks"),
    "no metrics": (lambda cell: cell.model_copy(update={"metrics": {}}), "recall@5, recall@10"),
    "rank 0": (lambda cell: cell.model_copy(update={"ranks": np.zeros(16638, np.uint8)}), "not the ranks"),
    "no ranks": (lambda cell: cell.model_copy(update={"ranks": None}), "not the ranks"),
    "negative seconds": (lambda cell: cell.model_copy(update={"train_seconds": -1.0}), "seconds"),
    "endless seconds": (lambda cell: cell.model_copy(update={"score_seconds": float("inf")}), "seconds"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_row_that_no_trial_can_have_measured_is_refused(shipped: ReplayTable, tmp_path: Path, name: str) -> None:
    change, message = CHANGES[name]
    first, *others = shipped.cells
    ReplayTable(tmp_path / "t.parquet", shipped.footer, [*others, change(first)]).write()
    with pytest.raises(ReplayError, match=f"row {len(shipped.cells)} has .*{message}"):
        ReplayTable.read(tmp_path / "t.parquet")


def written(footer: Footer, shipped: ReplayTable, path: Path) -> Path:
    ReplayTable(path, footer, shipped.cells).write()
    return path


def test_a_page_with_other_defaults_is_noticed(shipped: ReplayTable, tmp_path: Path) -> None:
    page = re.sub(r"(\| `dropout` .*?\| 0\.2, 0\.5 \|) 0\.2 ", r"\1 0.5 ", shipped.footer.page)
    assert page != shipped.footer.page
    open_replay(written(shipped.footer, shipped, tmp_path / "same.parquet"))
    other = written(shipped.footer.model_copy(update={"page": page}), shipped, tmp_path / "other.parquet")
    with pytest.raises(ReplayError, match="one configuration under its page"):
        open_replay(other)


def test_another_format_is_refused(shipped: ReplayTable, tmp_path: Path) -> None:
    footer = shipped.footer.model_copy(update={"format_version": 9})
    with pytest.raises(ReplayError, match="format 9"):
        ReplayTable.read(written(footer, shipped, tmp_path / "t.parquet"))
