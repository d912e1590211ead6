"""Replay tables: built by the real command on a small log, equal to live trials, and served as sessions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.quick_home import QUICK_SANDBOX, environment
from virtualmle.compare.replay_grid import training_runs
from virtualmle.data.demo import generate_demo
from virtualmle.data.errors import AdmissionError, ConfigError, DataError, ReplayError, SessionError
from virtualmle.memory.records import TrialOutcome
from virtualmle.sandbox.protocol import parse_protocol
from virtualmle.tools.finalize import finalize
from virtualmle.tools.open_session import open_session
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.sweep import sweep
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.training.cells import MAX_RANK, Cell, clipped
from virtualmle.trials.launcher import poll
from virtualmle.trials.replay_table import ReplayTable

HEAD = """\
# Small grid

| rule | value |
|---|---|
| `metric` | ndcg@10 |
| `max_trials` | 6 |
| `max_train_seconds` | 600 |
| `trial_seconds` | 300 |
| `patience` | 10 |
| `keep_z` | 1.0 |
| `require_reflection` | false |

"""
TABLE = "| knob | range or choices | SASRec | HSTU |\n|---|---|---|---|\n"
PAGE = f"""{HEAD}
## optimisation

{TABLE}| `batch_size` | 512 | 512 | 512 |
| `epochs` | 1 | 1 | 1 |

## capacity

{TABLE}| `hidden_dim` | 8, 16 | 16 | 16 |

## scoring

{TABLE}| `transition_weight` | 0, 8 | 0 | 0 |
| `transition_window` | 1, 3 | 1 | 1 |
"""


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-P", "-m", "virtualmle", *map(str, words)]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, check=False, env=environment())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log of 150 users, a page, and the table built from both; the build was killed once."""
    folder = tmp_path_factory.mktemp("replay")
    generate_demo(num_users=150, num_items=60).write_csv(folder / "shop.csv")
    (folder / "grid.md").write_text(PAGE, encoding="utf-8")
    arguments = command(
        "replay", "build", folder / "shop.csv", "--page", folder / "grid.md", "--out", folder / "shop.parquet",
        "--home", folder / "home",
    )  # fmt: skip
    build = subprocess.Popen(arguments, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
    parts, end = folder / "shop.parquet.parts", time.monotonic() + 120
    while not list(parts.glob("*.parquet")) and time.monotonic() < end:
        assert build.poll() is None, "the build ended before it could be killed"
        time.sleep(0.01)
    build.send_signal(signal.SIGKILL)
    build.wait()
    before = {part.name: part.stat().st_mtime_ns for part in parts.glob("*.parquet")}
    assert 1 <= len(before) < 4, "the kill came too late to test that a build continues"
    assert not (folder / "shop.parquet").exists()
    (folder / "before.json").write_text(json.dumps(before), encoding="utf-8")
    resumed = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    (folder / "resumed.txt").write_text(resumed.stderr, encoding="utf-8")
    return folder


@pytest.fixture
def table(place: Path) -> ReplayTable:
    return ReplayTable.read(place / "shop.parquet")


@pytest.fixture
def ws(place: Path, tmp_path: Path) -> Workspace:
    """A workspace that replays the table, in a home without any dataset."""
    return Workspace.open(tmp_path / "away", settings=Settings(replay=place / "shop.parquet", with_reflection=False))


def cell_of(table: ReplayTable, backbone: str, **settings: Any) -> Cell:
    (found,) = [cell for cell in table.cells if cell.backbone == backbone and cell.settings == settings]
    return found


def outcome_of(ws: Workspace, session: str, handle: str) -> TrialOutcome:
    outcome = ws.memory.trials.get(session, handle).outcome
    assert outcome is not None
    return outcome


def test_a_build_that_was_killed_continues_with_the_parts_that_it_has(place: Path, table: ReplayTable) -> None:
    kept = len(json.loads((place / "before.json").read_text(encoding="utf-8")))
    first = (place / "resumed.txt").read_text(encoding="utf-8").splitlines()[0]
    assert int(first.split(" of 4 training runs")[0].split()[-1]) >= kept  # a worker may have finished its job later
    assert not (place / "shop.parquet.parts").exists()
    assert [cell.settings for cell in table.cells if cell.backbone == "hstu"] == [
        cell.settings for cell in table.cells if cell.backbone == "sasrec"
    ]
    assert len(table.cells) == 12  # 2 backbones, 2 widths, and 3 scorings: the window needs a weight


def test_the_same_command_finds_its_table_and_another_page_does_not_replace_it(place: Path) -> None:
    words = ["replay", "build", place / "shop.csv", "--out", place / "shop.parquet", "--home", place / "home"]
    before = (place / "shop.parquet").read_bytes()
    assert "12 cells" in run(*words, "--page", place / "grid.md").stdout
    other = place / "other.md"
    other.write_text(PAGE.replace("| 8, 16 |", "| 16 |"), encoding="utf-8")
    refused = run(*words, "--page", other)
    assert refused.returncode == 1
    assert "is the table of another build" in refused.stderr
    assert (place / "shop.parquet").read_bytes() == before


def test_parts_of_another_build_are_refused(place: Path, tmp_path: Path) -> None:
    parts = tmp_path / "new.parquet.parts"
    parts.mkdir()
    (parts / "build.json").write_text('{"page": "another"}', encoding="utf-8")
    refused = run(
        "replay", "build", place / "shop.csv", "--page", place / "grid.md", "--out", tmp_path / "new.parquet",
        "--home", place / "home",
    )  # fmt: skip
    assert refused.returncode == 1
    assert "holds parts of a build with another page" in refused.stderr


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_cells_equal_the_trials_of_a_live_session(place: Path, table: ReplayTable, backbone: Any) -> None:
    settings = Settings(threads=1, protocol_path=place / "grid.md", keep_warm=60, device="cpu")
    live = Workspace.open(place / "home", settings=settings)
    session = open_session(live, "shop", backbone).session
    for changes in ({}, {"transition_weight": 8.0, "transition_window": 3}):
        trial = run_trial(live, session, changes, base="default")
        cell = cell_of(table, backbone, **changes)
        assert trial.metrics == cell.metrics
        ranks = np.load(live.trial_directory(session, trial.trial) / "ranks.npy")
        assert np.array_equal(clipped(ranks), cell.ranks if cell.ranks is not None else [])
        outcome = outcome_of(live, session, trial.trial)
        assert outcome.details["model_ndcg10"] == cell.model_ndcg10
        assert outcome.details["train_ndcg10"] == cell.train_ndcg10
        assert outcome.details["ties"] == cell.ties
        assert (outcome.parameters, outcome.details["best_epoch"]) == (cell.parameters, cell.best_epoch)
        assert [epoch["ndcg10"] for epoch in outcome.curve] == [epoch.ndcg10 for epoch in cell.curve]
    finalized = finalize(live, session, "live", confirm=True)
    assert finalized.look


def test_a_replayed_session_charges_what_its_trials_have_cost(ws: Workspace, table: ReplayTable) -> None:
    session = open_session(ws, "shop", "sasrec").session
    trained = run_trial(ws, session, {})
    plain = cell_of(table, "sasrec")
    assert trained.metrics == plain.metrics
    assert outcome_of(ws, session, "t001").train_seconds == plain.train_seconds + plain.evaluate_seconds
    rescored = run_trial(ws, session, {"transition_weight": 8.0})
    assert rescored.rescored
    scored = cell_of(table, "sasrec", transition_weight=8.0)
    assert outcome_of(ws, session, "t002").train_seconds == scored.score_seconds
    wide = cell_of(table, "sasrec", hidden_dim=8, transition_weight=8.0)
    run_trial(ws, session, {"hidden_dim": 8, "transition_weight": 8.0}, base="default")
    assert outcome_of(ws, session, "t003").train_seconds == wide.train_seconds + wide.evaluate_seconds
    assert poll(ws.trial_directory(session, "t003")).status == "finished"


def test_knobs_without_an_effect_do_not_matter(ws: Workspace) -> None:
    session = open_session(ws, "shop", "sasrec").session
    run_trial(ws, session, {})
    same = run_trial(ws, session, {"transition_window": 3})
    assert (same.duplicate, same.trial) == (True, "t001")
    run_trial(ws, session, {"hidden_dim": 8, "transition_window": 3}, base="default")
    assert outcome_of(ws, session, "t002").status == "finished"


def test_a_sweep_is_replayed_as_one_trial(ws: Workspace, table: ReplayTable) -> None:
    session = open_session(ws, "shop", "hstu").session
    run_trial(ws, session, {})
    settings = [{"transition_weight": 8.0}, {"transition_weight": 8.0, "transition_window": 3}]
    swept = sweep(ws, session, settings)
    cells = [cell_of(table, "hstu", **changes) for changes in settings]
    assert swept.metrics["ndcg@10"] == max(cell.metrics["ndcg@10"] for cell in cells)
    assert outcome_of(ws, session, "t002").train_seconds == pytest.approx(sum(cell.score_seconds for cell in cells))
    assert swept.budget.trials_used == 2


def test_finalize_reports_validation_only_and_takes_no_look(ws: Workspace) -> None:
    session = open_session(ws, "shop", "hstu").session
    run_trial(ws, session, {})
    result = finalize(ws, session, "nothing new", confirm=True)
    assert (result.state, result.test, result.look) == ("frozen", None, None)
    assert "no test set" in result.next
    assert finalize(ws, session, "again", confirm=True).selected == "t001"
    with pytest.raises(AdmissionError, match="frozen"):
        run_trial(ws, session, {"hidden_dim": 8})


def test_budgets_of_the_page_may_be_overridden(place: Path, tmp_path: Path) -> None:
    table = place / "shop.parquet"
    ws = Workspace.open(tmp_path, settings=Settings(replay=table, max_trials=3, max_train_seconds=9))
    budget = open_session(ws, "shop", "hstu").budget
    assert (budget.trials_max, budget.train_seconds_max) == (3, 9)
    plain = Workspace.open(tmp_path / "plain", settings=Settings(replay=table))
    assert open_session(plain, "shop", "hstu").budget.trials_max == 6


def test_a_session_goes_on_from_its_table_without_the_option(ws: Workspace, place: Path, table: ReplayTable) -> None:
    session = open_session(ws, "shop", "sasrec").session
    ws.close()
    plain = Workspace.open(ws.home)
    assert run_trial(plain, session, {}).metrics == cell_of(table, "sasrec").metrics
    with pytest.raises(DataError, match="no dataset is named 'shop'"):
        open_session(plain, "shop", "sasrec")


def test_a_live_session_is_not_continued_as_a_replay(place: Path, tmp_path: Path) -> None:
    live = Workspace.open(place / "home", settings=Settings(protocol_path=place / "grid.md"))
    session = open_session(live, "shop", "sasrec", new=True).session
    replaying = Workspace.open(place / "home", settings=Settings(replay=place / "shop.parquet"))
    assert open_session(replaying, "shop", "sasrec").session != session
    with pytest.raises(SessionError, match="is not a replay; continue it without --replay"):
        run_trial(replaying, session, {})


def test_what_a_table_cannot_serve_is_refused(ws: Workspace, place: Path, table: ReplayTable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="replays dataset 'shop', not 'demo'"):
        open_session(ws, "demo", "sasrec")
    (tmp_path / "SANDBOX.md").write_text(QUICK_SANDBOX)
    with pytest.raises(ConfigError, match="has other knobs than shop.parquet"):
        page = tmp_path / "SANDBOX.md"
        Workspace.open(tmp_path, settings=Settings(replay=place / "shop.parquet", protocol_path=page))
    session = open_session(ws, "shop", "sasrec").session
    with pytest.raises(ConfigError, match="hidden_dim=12 is not one of its levels; give one of 8, 16"):
        run_trial(ws, session, {"hidden_dim": 12})
    assert not ws.memory.trials.all(session)


def test_a_configuration_that_the_table_lacks_is_refused_with_the_nearest_ones(
    table: ReplayTable, tmp_path: Path
) -> None:
    wide = [cell for cell in table.cells if cell.backbone == "hstu" and cell.settings.get("hidden_dim") != 8]
    path = tmp_path / "part.parquet"
    ReplayTable(path, table.footer, wide).write()
    ws = Workspace.open(tmp_path / "home", settings=Settings(replay=path))
    with pytest.raises(ReplayError, match="has no cells of sasrec; it replays hstu"):
        open_session(ws, "shop", "sasrec")
    session = open_session(ws, "shop", "hstu").session
    with pytest.raises(AdmissionError, match="does not hold this configuration; the nearest ones have hidden_dim=16"):
        run_trial(ws, session, {"hidden_dim": 8})
    assert not ws.memory.trials.all(session)


def truncated(content: bytes) -> bytes:
    return content[:-500]


def text(content: bytes) -> bytes:
    return b"user,item\n" + content[:0]


@pytest.mark.parametrize("damage", [truncated, text])
def test_a_damaged_table_is_refused(place: Path, tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "damaged.parquet"
    path.write_bytes(damage((place / "shop.parquet").read_bytes()))
    with pytest.raises(ReplayError, match=r"damaged"):
        ReplayTable.read(path)


def test_every_flipped_byte_of_a_table_is_noticed(place: Path, tmp_path: Path) -> None:
    content = (place / "shop.parquet").read_bytes()
    whole = [cell.model_dump_json(exclude={"ranks"}) for cell in ReplayTable.read(place / "shop.parquet").cells]
    path = tmp_path / "flipped.parquet"
    noticed = 0
    for position in np.random.default_rng(0).integers(0, len(content), 24):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            cells = ReplayTable.read(path).cells
        except ReplayError:
            noticed += 1
            continue
        assert [cell.model_dump_json(exclude={"ranks"}) for cell in cells] == whole  # a byte that no cell depends on
    assert noticed > 4


def test_other_files_and_changed_tables_are_refused(place: Path, table: ReplayTable, tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="cannot be read"):
        Workspace.open(tmp_path, settings=Settings(replay=tmp_path / "missing.parquet"))
    pl.DataFrame({"user": [1]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(ReplayError, match="is no replay table or is damaged: it has no readable entry"):
        ReplayTable.read(tmp_path / "log.parquet")
    path = tmp_path / "moved.parquet"
    path.write_bytes((place / "shop.parquet").read_bytes())
    moved = Workspace.open(tmp_path / "moved", settings=Settings(replay=path))
    session = open_session(moved, "shop", "sasrec").session
    moved.close()
    ReplayTable(path, table.footer, table.cells[:6]).write()
    again = Workspace.open(tmp_path / "moved")
    with pytest.raises(ReplayError, match=f"is not the table that session {session} was opened with"):
        run_trial(again, session, {})


def test_tune_replays_a_session_to_its_end(place: Path, table: ReplayTable, tmp_path: Path) -> None:
    done = run("tune", "shop", "--replay", place / "shop.parquet", "--backbone", "hstu", "--home", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["state"], result["test"]) == ("frozen", None)
    (selected,) = [c for c in table.cells if c.backbone == "hstu" and c.settings == result["config"]]
    assert result["validation"] == selected.metrics
    page = Path(result["report"]).read_text(encoding="utf-8")
    assert "A replay of shop.parquet: 12 configurations" in page
    assert not (tmp_path / ".virtualmle" / "data").exists()


def test_show_prints_the_cells_and_their_provenance(place: Path) -> None:
    facts = json.loads(run("replay", "show", place / "shop.parquet", "--json").stdout)
    assert (facts["cells"], facts["dataset"], facts["clock"]) == (12, "shop", "processor")
    assert facts["backbones"]["hstu"]["knobs"]["hidden_dim"] == [16, 8]
    assert facts["backbones"]["sasrec"]["training_runs"] == 2
    assert {"date", "commit", "processor", "torch", "threads"} <= facts["provenance"].keys()
    shown = run("replay", "show", place / "shop.parquet").stdout
    assert "sasrec: 6 cells of 2 training runs, 0 failed" in shown


def test_a_table_holds_nothing_of_the_test_split(place: Path, table: ReplayTable) -> None:
    assert all(cell.ranks is not None and cell.ranks.max() <= MAX_RANK for cell in table.cells)
    assert "sealed" not in table.footer.model_dump_json()
    assert os.listdir(place / "home" / ".virtualmle" / "data" / "shop").count("test.sealed") == 1


def grid(rows: str, dimension: str) -> Any:
    return parse_protocol(f"{HEAD}\n## {dimension}\n\n{TABLE}{rows}").space


def test_the_grid_starts_with_the_default_and_counts_knobs_without_an_effect_once() -> None:
    rows = "| `loss` | full_softmax, sampled_softmax | sampled_softmax | sampled_softmax |\n"
    rows += "| `num_negatives` | 100, 500 | 500 | 500 |\n"
    space = grid(rows, "supervision")
    cells = [space.differences(config) for run in training_runs(space, "hstu") for config in run.cells]
    assert cells == [{}, {"num_negatives": 100}, {"loss": "full_softmax"}]


def test_combinations_that_the_engine_refuses_are_left_out() -> None:
    space = grid("| `hidden_dim` | 16, 18 | 16 | 16 |\n| `num_heads` | 1, 4 | 1 | 1 |\n", "capacity")
    cells = [space.differences(config) for run in training_runs(space, "sasrec") for config in run.cells]
    assert {"hidden_dim": 18, "num_heads": 4} not in cells
    assert len(cells) == 3


@pytest.mark.parametrize(
    "rows, message",
    [
        pytest.param("| `hidden_dim` | 8 … 16 | 16 | 16 |\n", "hidden_dim has the range 8 … 16", id="range"),
        pytest.param(
            "".join(
                f"| `{name}` | {', '.join(str(n / 100) for n in range(80))} | 0 | 0 |\n"
                for name in ("dropout", "embedding_dropout", "attention_dropout")
            ),
            "the page has 512,000 combinations for sasrec",
            id="too many",
        ),
    ],
)
def test_a_page_that_is_no_grid_is_refused(rows: str, message: str) -> None:
    space = grid(rows, "capacity" if "hidden" in rows else "regularisation")
    with pytest.raises(ReplayError, match=message):
        training_runs(space, "sasrec")
