"""A whole headless session on a real log, as a user would run it; minutes long, so it is marked slow."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from virtualmle.examiner.request import read_revealed
from virtualmle.memory.store import Memory
from virtualmle.report.gather import gather


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_tuning_office_improves_on_the_default_and_all_figures_agree(
    backbone: str, shared_data: Path, tmp_path: Path
) -> None:
    log = str(shared_data / "office.tsv.gz")
    command = [sys.executable, "-P", "-m", "virtualmle", "tune", log, "--backbone", backbone, "--trials", "6"]
    done = subprocess.run([*command, "--home", str(tmp_path)], capture_output=True, text=True, check=True)
    session = f"office-{backbone}-1"
    data = gather(tmp_path, session)
    page = (tmp_path / ".virtualmle" / "reports" / f"{session}.html").read_text()
    with Memory(tmp_path / "memory.db") as memory:
        assert memory.sessions.get(session).selected is not None
        selected = memory.trials.get(session, memory.sessions.get(session).selected or "")
    assert selected.outcome is not None and data.default is not None and data.default.outcome is not None
    assert selected.outcome.metrics["ndcg@10"] > data.default.outcome.metrics["ndcg@10"] * 1.05

    test = read_revealed(tmp_path, session)
    assert test is not None and test.look == 1
    with closing(sqlite3.connect(tmp_path / "memory.db")) as database:
        stored = "\n".join(database.iterdump())
    for name, value in selected.outcome.metrics.items():
        assert f"{value:.4f}" in page and f"{value:.4f}" in done.stdout
        assert json.dumps(value) in stored
        assert f"{test.metrics[name]:.4f}" in page and f"{test.metrics[name]:.4f}" in done.stdout
        assert json.dumps(test.metrics[name]) not in stored
