"""The benchmark of agents: its statistics, its protocol, and a small complete run that is resumed."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.quick_home import QUICK_SANDBOX, environment
from virtualmle.data.demo import generate_demo
from virtualmle.sandbox.protocol import PACKAGED, parse_protocol

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "bench_agents.py"
sys.path.insert(0, str(SCRIPT.parent))

from agent_table import median_interval, running_best, sign_flip_p, trials_to  # noqa: E402
from bench_agents import capped  # noqa: E402


def mean_difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    """The statistic that scipy permutes."""
    return (a - b).mean(axis=axis)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)


def test_trials_are_counted_up_to_the_first_that_reaches_a_level() -> None:
    curve = running_best([0.1, None, 0.3, 0.2])
    assert curve == [0.1, 0.1, 0.3, 0.3]
    assert (trials_to(curve, 0.2), trials_to(curve, 0.4)) == (3, math.inf)


def test_a_level_that_most_sessions_never_reach_has_an_infinite_median() -> None:
    median, low, high = median_interval([3, math.inf, math.inf, math.inf, 5])
    assert (median, low, high) == (math.inf, 3, math.inf)


def test_the_paired_test_agrees_with_scipy() -> None:
    from scipy.stats import permutation_test  # noqa: PLC0415 (slow to load)

    differences = [0.3, -0.1, 0.2, 0.25, 0.05, -0.02]
    expected = permutation_test((differences, [0.0] * 6), mean_difference, permutation_type="samples", vectorized=True)
    assert sign_flip_p(differences) == pytest.approx(expected.pvalue)
    assert sign_flip_p([1, 2, 3, 4, 5]) == 2 / 32  # the smallest p-value that five seeds can give


def test_a_capped_protocol_changes_the_budget_and_the_named_knobs_only() -> None:
    text = PACKAGED.read_text(encoding="utf-8")
    before = parse_protocol(text)
    further = ["hidden_dim.high=64", "hidden_dim.default=64"]
    after = parse_protocol(capped(text, epochs=3, trials=25, further=further))
    assert (after.max_trials, after.patience) == (25, 25)
    changed = [new.name for old, new in zip(before.space.entries, after.space.entries, strict=True) if old != new]
    assert changed == ["epochs", "hidden_dim"]
    assert after.space.default("hstu").epochs == 3


def test_a_missing_log_is_skipped_with_a_message() -> None:
    assert run("nowhere.tsv.gz").stdout == (
        "skipped: there is no nowhere.tsv.gz; give the path of a log (user, item, timestamp)\n"
    )


def test_sessions_run_once_and_are_compared_without_opening_a_test_set(tmp_path: Path) -> None:
    generate_demo(num_users=150, num_items=60).write_csv(tmp_path / "tiny.csv")
    (tmp_path / "quick.md").write_text(QUICK_SANDBOX, encoding="utf-8")
    words = [
        str(tmp_path / "tiny.csv"), "--arms", "random", "engineer", "--backbones", "sasrec", "--seeds", "1",
        "--trials", "2", "--epochs-cap", "1", "--sandbox", str(tmp_path / "quick.md"),
        "--home", str(tmp_path / "home"), "--results", str(tmp_path / "results"),
    ]  # fmt: skip
    first = run(*words)
    assert first.stderr.count("-sasrec-0 t0") == 4
    record = json.loads(first.stdout.splitlines()[-1])
    row = record["summaries"]["sasrec"]["engineer"]
    assert row["sessions"] == 1 and row["best"] > 0 and row["against_random"]["p"] == 1.0
    again = run(*words)
    assert again.stderr == "" and json.loads(again.stdout.splitlines()[-1])["summaries"] == record["summaries"]
    kept = json.loads((tmp_path / "results" / "agents-tiny.json").read_text())
    assert [len(session["ndcg@10"]) for session in kept["sessions"]] == [2, 2]
    assert "| sasrec | engineer | 1 |" in (tmp_path / "results" / "agents-tiny.md").read_text()
    homes = [path for path in (tmp_path / "home").glob("*/*-sasrec-0")]
    assert len(homes) == 2 and not any((home / ".virtualmle" / "vault").exists() for home in homes)
