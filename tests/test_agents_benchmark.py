"""The benchmark of the engineer's ablations: a small complete run with carried memory and its placebo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.quick_home import QUICK_SANDBOX, environment
from virtualmle.data.demo import generate_demo

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "bench_agents.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)


def test_a_missing_log_is_skipped_with_a_message() -> None:
    assert run("nowhere.tsv.gz").stdout == (
        "skipped: there is no nowhere.tsv.gz; give the path of a log (user, item, timestamp)\n"
    )


@pytest.mark.slow
def test_memory_is_compared_with_its_placebo_without_opening_a_test_set(tmp_path: Path) -> None:
    generate_demo(num_users=150, num_items=60).write_csv(tmp_path / "tiny.csv")
    generate_demo(num_users=160, num_items=70, seed=7).write_csv(tmp_path / "other.csv")
    (tmp_path / "quick.md").write_text(QUICK_SANDBOX, encoding="utf-8")
    words = [
        str(tmp_path / "tiny.csv"), "--sources", str(tmp_path / "other.csv"), "--backbones", "sasrec", "--seeds", "1",
        "--trials", "2", "--sandbox", str(tmp_path / "quick.md"), "--home", str(tmp_path / "home"),
        "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    first = run(*words)
    assert len(first.stderr.splitlines()) == 7  # five arms, the source, the placebo
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert {row["arm"] for row in record["summary"]["rows"]} >= {"engineer", "engineer+carried", "engineer+placebo"}
    assert all(row["looks"] == 0 for row in record["summary"]["rows"])
    true = next((tmp_path / "out" / "sessions").glob("source.*/cognition.json"))
    shuffled = tmp_path / "out" / "placebo" / "sasrec-0.json"
    assert json.loads(true.read_text())["effects"] != json.loads(shuffled.read_text())["effects"]
    again = run(*words)
    assert again.stderr == "" and again.stdout == first.stdout
