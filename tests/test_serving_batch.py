"""`virtualmle recommend`: all users of a log, with resumption after a kill, and one user."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.quick_home import environment
from tests.toy_export import histories_of, toy_export, toy_log
from tests.waiting import until
from virtualmle.cli.app import main
from virtualmle.data.errors import DataError, ExportError
from virtualmle.serving import Recommender, batch
from virtualmle.serving.batch import BatchOptions, recommend_log

Run = Callable[..., tuple[int, str, str]]
STOPS_HALFWAY = """
import sys, time
from pathlib import Path
from virtualmle.serving import Recommender, batch
batch.PART_USERS = 16
def progress(done, total):
    if done >= 64:
        time.sleep(600)
batch.recommend_log(Recommender.load(sys.argv[1], "cpu"), Path(sys.argv[2]), Path(sys.argv[3]), batch.BatchOptions(k=7),
                    progress)
"""


@pytest.fixture(scope="module")
def model(tiny_dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_export(tiny_dataset_dir, tmp_path_factory.mktemp("exports") / "model")


@pytest.fixture(scope="module")
def recommender(model: Path) -> Recommender:
    return Recommender.load(model, "cpu")


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.DataFrame]:
    """A log as a file and as its rows."""
    file = tmp_path_factory.mktemp("logs") / "log.csv"
    return file, toy_log(file)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one command in this process; returns exit code, stdout, stderr."""

    def command(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return command


def of_user(table: pl.DataFrame, user: object) -> tuple[list[object], list[float]]:
    rows = table.filter(pl.col("user") == user).sort("rank")
    assert rows["rank"].to_list() == list(range(1, len(rows) + 1))
    return rows["item"].to_list(), rows["score"].to_list()


def test_every_user_gets_what_the_library_recommends(recommender, logged, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "PART_USERS", 40)
    file, rows = logged
    told = []
    result = recommend_log(
        recommender, file, tmp_path / "recs.parquet", BatchOptions(k=7), lambda *counts: told.append(counts)
    )
    table = pl.read_parquet(tmp_path / "recs.parquet")
    histories = histories_of(rows)
    assert table.schema == {"user": pl.String, "rank": pl.Int32, "item": pl.String, "score": pl.Float32}
    assert table["user"].unique(maintain_order=True).to_list() == rows["user"].unique(maintain_order=True).to_list()
    for (user, history), expected in zip(
        histories.items(), recommender.recommend(list(histories.values()), k=7), strict=True
    ):
        items, scores = of_user(table, user)
        assert tuple(items) == expected.items, f"{user} with {history}"
        np.testing.assert_allclose(scores, expected.scores, rtol=1e-4, atol=1e-5)
    assert (result.counts.num_users, result.counts.num_cold_users, result.num_rows) == (151, 1, 151 * 7)
    known = set(recommender.index.ids)
    assert result.counts.num_unknown_items == len(set(rows["item"]) - known) > 0
    assert result.counts.num_unknown_events == sum(item not in known for item in rows["item"])
    assert told == [(0, 151), (40, 151), (80, 151), (120, 151), (151, 151)]
    assert [path.name for path in tmp_path.iterdir()] == ["recs.parquet"], "the work beside the output is deleted"


def test_whole_numbers_stay_whole_numbers_and_a_csv_has_the_same_rows(recommender, logged, tmp_path):
    rows = logged[1].with_columns(user=pl.col("user").rank("dense").cast(pl.Int64) + 4000)
    rows.write_csv(tmp_path / "log.csv")
    for name in ("recs.parquet", "recs.csv"):
        recommend_log(recommender, tmp_path / "log.csv", tmp_path / name, BatchOptions(k=3))
    table = pl.read_parquet(tmp_path / "recs.parquet")
    assert table.schema["user"] == pl.Int64
    same = pl.read_csv(tmp_path / "recs.csv", schema=table.schema)
    assert same.drop("score").equals(table.drop("score"))
    np.testing.assert_allclose(same["score"], table["score"], rtol=1e-5)


def test_a_run_that_was_killed_continues_and_gives_the_same_file(model, recommender, logged, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "PART_USERS", 16)
    whole, resumed = tmp_path / "whole.parquet", tmp_path / "resumed.parquet"
    recommend_log(recommender, logged[0], whole, BatchOptions(k=7))
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", STOPS_HALFWAY, str(model), str(logged[0]), str(resumed)], env=environment()
    )
    work = tmp_path / ".resumed.parquet.parts"
    until(lambda: (work / "part-00003.parquet").exists() or child.poll() is not None)
    with pytest.raises(ExportError, match="another process is writing"):
        recommend_log(recommender, logged[0], resumed, BatchOptions(k=7))
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not resumed.exists()
    (work / "part-00004.parquet.new").write_bytes(b"half of a part")
    result = recommend_log(recommender, logged[0], resumed, BatchOptions(k=7))
    assert result.resumed_users == 64
    assert resumed.read_bytes() == whole.read_bytes()
    assert not work.exists()


@pytest.mark.parametrize("changed", ["options", "log", "export"])
def test_parts_of_another_log_export_or_option_are_not_used(
    changed, model, recommender, logged, tiny_dataset_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(batch, "PART_USERS", 64)
    log, out, options = tmp_path / "log.csv", tmp_path / "recs.parquet", BatchOptions(k=3)
    log.write_bytes(logged[0].read_bytes())

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recommend_log(recommender, log, out, options, stop)
    if changed == "options":
        options = BatchOptions(k=4)
    elif changed == "log":
        log.write_bytes(log.read_bytes().replace(b"\nu0000,i", b"\nu0000,x"))
    else:
        recommender = Recommender.load(toy_export(tiny_dataset_dir, tmp_path / "other", seed=9), "cpu")
    assert recommend_log(recommender, log, out, options).resumed_users == 0
    fresh = tmp_path / "fresh.parquet"
    recommend_log(recommender, log, fresh, options)
    assert out.read_bytes() == fresh.read_bytes()


def test_one_user_is_printed_as_a_table_or_as_json_and_agrees_with_the_table_of_all(model, logged, tmp_path, run):
    out, log = tmp_path / "recs.parquet", logged[0]
    code, printed, _ = run("recommend", model, "--log", log, "--top", 5, "--out", out)
    assert (
        code == 0
        and "1 user of 151 without a known item" in printed
        and f"wrote 755 recommendations to {out}" in printed
    )
    items, _ = of_user(pl.read_parquet(out), "u0007")
    code, printed, _ = run("recommend", model, "--log", log, "--top", 5, "--user", "u0007", "--json")
    assert code == 0 and json.loads(printed)["items"] == items
    code, printed, _ = run("recommend", model, "--log", log, "--top", 5, "--user", "u0007")
    assert code == 0 and [line.split()[1] for line in printed.splitlines()] == ["score", *items]
    code, printed, _ = run("recommend", model, "--log", log, "--user", "stranger")
    assert code == 0 and "by popularity" in printed


def test_candidates_and_seen_items_are_chosen_by_options(model, logged, tmp_path, run):
    seen = histories_of(logged[1])["u0007"]
    chosen = tmp_path / "candidates.txt"
    chosen.write_text("\n".join([*seen, "unheard"]) + "\n")
    arguments = (
        "recommend",
        model,
        "--log",
        logged[0],
        "--user",
        "u0007",
        "--candidates",
        chosen,
        "--json",
        "--top",
        99,
    )
    assert json.loads(run(*arguments)[1])["items"] == []
    known = set(seen) & set(Recommender.load(model, "cpu").index.ids)
    assert set(json.loads(run(*arguments, "--include-seen")[1])["items"]) == known


def test_columns_are_named_and_the_advice_of_the_reader_names_these_options(model, logged, tmp_path, run):
    log = tmp_path / "odd.tsv"
    logged[1].rename({"user": "a", "item": "b", "timestamp": "c"}).write_csv(log, separator="\t")
    columns = ("--user-column", "a", "--item-column", "b", "--timestamp-column", "c")
    assert run("recommend", model, "--log", log, "--out", tmp_path / "recs.csv", *columns)[0] == 0
    code, _, error = run("recommend", model, "--log", log, "--out", tmp_path / "recs.csv")
    assert code == 1 and "--user-column" in error


def test_wrong_requests_are_refused_before_any_work_and_leave_nothing_behind(model, recommender, logged, tmp_path, run):
    log = logged[0]
    assert "either --out FILE" in run("recommend", model, "--log", log)[2]
    assert "use .parquet or .csv" in run("recommend", model, "--log", log, "--out", tmp_path / "recs.xlsx")[2]
    assert "is not one of the 151 users" in run("recommend", model, "--log", log, "--user", "nobody")[2]
    with pytest.raises(ExportError, match="cannot be written"):
        recommend_log(recommender, log, tmp_path / "missing" / "recs.csv", BatchOptions())
    with pytest.raises(ExportError, match="none of the candidates"):
        recommend_log(recommender, log, tmp_path / "recs.csv", BatchOptions(candidates=("unheard",)))
    with pytest.raises(DataError, match="there is no file"):
        recommend_log(recommender, tmp_path / "nothing.csv", tmp_path / "recs.csv", BatchOptions())
    assert list(tmp_path.iterdir()) == []
