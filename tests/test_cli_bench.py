"""`virtualmle bench` in real processes: a table for people and one JSON line for programs."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.quick_home import environment
from virtualmle.cli.bench import write_zipf_log

ROOT = Path(__file__).parents[1]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "virtualmle", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


@pytest.mark.parametrize(
    ("arguments", "measured"),
    [
        pytest.param(["train", "demo", "--repeats", "1", "--set", "hidden_dim=16"], {"epoch"}, id="train"),
        pytest.param(
            ["eval", "demo", "--repeats", "1", "--backbone", "hstu", "--set", "scores=dot"],
            {"evaluate", "encode users", "count priors", "score again with priors"},
            id="eval",
        ),
        pytest.param(["prepare", "--interactions", "20000"], {"read", "prepare", "load"}, id="prepare"),
        pytest.param(
            ["overhead", "demo", "--set", "hidden_dim=16", "--set", "batch_size=512"],
            {f"{trial}: call to {end}" for trial in ("first trial", "warm trial", "scoring only")
             for end in ("return", "training")},
            id="overhead",
        ),
    ],
)  # fmt: skip
def test_each_bench_prints_a_table_and_one_json_line(arguments: list[str], measured: set[str]) -> None:
    ended = bench(*arguments)
    assert ended.returncode == 0, ended.stderr
    *table, last = ended.stdout.splitlines()
    record = json.loads(last)
    assert record["bench"] == arguments[0] and set(record["median"]) == measured
    assert all(seconds > 0 for seconds in record["median"].values())
    assert all(any(name in line for line in table) for name in measured)
    if arguments[0] == "train":
        assert record["products"] == "float32", "the default loss has no products of bfloat16"
    if arguments[0] == "overhead":
        assert record["workers"] < 6, "none of the six trials was run by a warm worker"


def test_an_invalid_knob_gives_one_line_and_exit_code_1() -> None:
    ended = bench("train", "demo", "--set", "hidden_dim=-3")
    assert ended.returncode == 1 and "hidden_dim=-3 is refused" in ended.stderr
    assert bench("train", "demo", "--set", "hidden_dim").returncode == 1


@pytest.mark.parametrize("command", ["train", "eval", "prepare", "overhead"])
def test_help_shows_an_example(command: str) -> None:
    assert f"Example: virtualmle bench {command}" in bench(command, "--help").stdout


def test_the_generated_log_follows_zipfs_law(tmp_path: Path) -> None:
    write_zipf_log(tmp_path / "log.parquet", 50_000, seed=1)
    counts = pl.read_parquet(tmp_path / "log.parquet")["item"].value_counts(sort=True)["count"]
    assert counts.sum() == 50_000
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.35)


@pytest.mark.parametrize("script", [["bench_gpu.py", "--cpu-smoke"], ["bench_scaling.py", "--demo"]], ids=str)
def test_the_benchmark_scripts_run_on_a_small_scale(script: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-P", str(ROOT / "benchmarks" / script[0]), *script[1:]]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["bench"]
