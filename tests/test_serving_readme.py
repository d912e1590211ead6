"""From a CSV file to a running endpoint with the four commands of the README, word by word."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest

import virtualmle
from tests.quick_home import environment, quick_home
from tests.served_model import serving
from tests.toy_export import histories_of
from virtualmle.cli.app import main
from virtualmle.data.demo import generate_demo
from virtualmle.serving import Recommender

README = Path(virtualmle.__file__).parent / "README.md"
COMMANDS = ("data add", "tune", "export", "serve-model")


def commands() -> list[list[str]]:
    """The arguments of the four commands, from the first block of the README that has all of them."""
    for block in re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL):
        lines = [line.split("#")[0].removeprefix("virtualmle ") for line in block.splitlines()]
        found = [line for line in lines if line.startswith(COMMANDS)]
        if len(found) == len(COMMANDS):
            return [shlex.split(line) for line in found]
    raise AssertionError(f"no block of the README has the commands {COMMANDS}")


def run(arguments: list[str]) -> None:
    """Run a command in this process."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code in (0, None), arguments


def test_four_commands_lead_from_a_csv_to_an_endpoint_that_agrees_with_recommend_and_the_library(tmp_path, monkeypatch):
    home = quick_home(tmp_path / "home")
    monkeypatch.chdir(home)  # the commands name no home
    add, tune, export, serve = commands()
    purchases = generate_demo(num_users=120, num_items=60)
    purchases.write_csv(add[-1])
    run(add)
    tuned = subprocess.run(
        [sys.executable, "-P", "-m", "virtualmle", *tune],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert tuned.returncode == 0, tuned.stderr
    run(export)
    model, histories = export[-1], histories_of(purchases)
    run(["recommend", model, "--log", add[-1], "--top", "5", "--out", "recs.parquet"])
    table = pl.read_parquet("recs.parquet")
    library = Recommender.load(model, "cpu").recommend(list(histories.values()), k=5)
    assert serve[-2] == "--port"
    with serving(Path(serve[1]), tmp_path / "endpoint.txt", *serve[2:-2]) as endpoint:
        answer = httpx.post(
            endpoint.url + "/recommend", json={"histories": list(histories.values()), "k": 5}, timeout=60
        ).json()
    for user, of_library, of_endpoint in zip(histories, library, answer["results"], strict=True):
        rows = table.filter(pl.col("user") == user).sort("rank")
        assert tuple(rows["item"]) == of_library.items == tuple(of_endpoint["items"]), user
        for scores in (rows["score"], of_endpoint["scores"]):
            np.testing.assert_allclose(scores, of_library.scores, rtol=1e-4, atol=1e-5)
