"""Training of an export goes on with new events: new items are recommended, old ones keep their numbers and counts."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from tests.exported import contents_of
from virtualmle.cli.app import app
from virtualmle.data.demo import generate_demo
from virtualmle.data.errors import ExportError
from virtualmle.data.hashing import sha256_of
from virtualmle.data.prepared import PreparedDataset
from virtualmle.models.config import make_config
from virtualmle.models.prior_sums import Events
from virtualmle.models.priors import PriorTables
from virtualmle.serving.artifact import Export, write_export
from virtualmle.serving.continuation import ContinueOptions
from virtualmle.serving.continuing import continue_export
from virtualmle.serving.evaluation import evaluate_export
from virtualmle.serving.later_events import later_events
from virtualmle.serving.new_items import extended_table
from virtualmle.serving.recommender import Recommender
from virtualmle.serving.sums import ExportSums, load_sums

KNOBS = {
    "transition_weight": 3.0, "transition_window": 2, "cooccurrence_weight": 1.0, "popularity_weight": 0.5,
    "lr": 3e-3, "ema_decay": 0.9, "warmup_epochs": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tiny_dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("continuing")
    members = ("sasrec", KNOBS), ("hstu", {**KNOBS, "tie_embeddings": False})
    write_export(folder / "model", contents_of(tiny_dataset_dir, folder, *members, **KNOBS))
    return folder / "model"


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    """New users; every third ends with `new-1`, `new-2`, `new-1`, and one new item is only the end of a history."""
    demo = generate_demo(num_users=90, num_items=60).with_columns(user="later-" + pl.col("user"))
    users = demo["user"].unique(maintain_order=True)
    last = int(demo["timestamp"].max()) + 1
    extra = [(user, item, last + step) for number, user in enumerate(users) if number % 3 == 0
             for step, item in enumerate(("new-1", "new-2", "new-1"))]  # fmt: skip
    extra += [(users[1], "only-held-out", last + 9)]
    return pl.concat([demo.select("user", "item", "timestamp"),
                      pl.DataFrame(extra, schema=["user", "item", "timestamp"], orient="row")])  # fmt: skip


@pytest.fixture(scope="module")
def continued(exported: Path, log: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory):
    destination = tmp_path_factory.mktemp("continued") / "model"
    return continue_export(exported, log, destination, ContinueOptions(epochs=4, lr=3e-3)), destination


def test_a_student_goes_on_without_its_teachers(tiny_dataset_dir: Path, log: pl.DataFrame, tmp_path: Path) -> None:
    student = {**KNOBS, "loss": "full_softmax", "teachers": ["t001"]}
    write_export(tmp_path / "old", contents_of(tiny_dataset_dir, tmp_path, ("sasrec", student)))
    continue_export(tmp_path / "old", log, tmp_path / "new", ContinueOptions(epochs=1))
    (member,) = Export.load(tmp_path / "new").members
    assert member.config.teachers == "t001", "what it was trained with"
    assert "towards the new events alone" in (tmp_path / "new" / "MODEL_CARD.md").read_text()


def test_figures_before_and_after_equal_those_of_evaluate(exported, log, continued) -> None:
    found, destination = continued
    for directory, result in ((exported, found.before), (destination, found.after)):
        recommender = Recommender.load(directory, "cpu")
        events = later_events(log, None, recommender.index, "last")
        assert evaluate_export(recommender, load_sums(directory), events).result == result
    value = found.after.model.metrics["ndcg@10"].value - found.before.model.metrics["ndcg@10"].value
    assert found.difference.value == pytest.approx(value)
    assert value > 0
    assert found.before.counts.unknown_targets > found.after.counts.unknown_targets == 1


def test_old_items_keep_their_numbers_and_new_ones_are_recommended(exported, continued) -> None:
    found, destination = continued
    old, new = Export.load(exported), Export.load(destination)
    assert new.items.to_list() == [*map(str, old.items), "new-1", "new-2"]
    assert found.num_new_items == 2
    assert new.config.parent == sha256_of(exported / "manifest.json")
    assert old.config.parent is None
    assert [member.trial for member in new.members] == [member.trial for member in old.members]
    assert [member.config for member in new.members] == [member.config for member in old.members]
    recommender = Recommender.load(destination, "cpu")
    assert "new-2" in recommender.recommend([str(old.items[0]), "new-1"], k=5).items
    card = (destination / "MODEL_CARD.md").read_text()
    assert new.config.parent in card and "## Figures before and after" in card and "## A card" in card


def test_counts_and_priors_are_of_the_old_and_the_new_events_without_the_held_out_ones(
    exported, log, continued, tiny_dataset_dir
) -> None:
    old, new = PreparedDataset.load(tiny_dataset_dir), Export.load(continued[1])
    numbers = {item: number for number, item in enumerate(new.items.to_list())}
    histories = [old.items[a:b].tolist() for a, b in zip(old.offsets, old.offsets[1:], strict=False)]
    times = old.timestamps.tolist()
    for _, frame in log.sort("timestamp", maintain_order=True).group_by("user", maintain_order=True):
        kept = frame.head(-1) if frame.height > 1 else frame
        histories.append([numbers[item] for item in kept["item"]])
        times += kept["timestamp"].to_list()

    class Together:
        """Both logs as one dataset."""

        items = np.concatenate([np.array(history, np.int64) for history in histories])
        offsets = np.concatenate(([0], np.cumsum([len(history) for history in histories])))
        timestamps = np.array(times)
        num_items = len(numbers)

    assert new.counts.tolist() == np.bincount(Together.items, minlength=len(numbers)).tolist()
    expected = PriorTables(Together).priors(make_config("sasrec", **KNOBS))  # type: ignore[arg-type]
    assert expected is not None and new.priors is not None
    torch.testing.assert_close(new.priors.popularity, expected.popularity)
    for table in ("transition", "cooccurrence"):
        found, wanted = getattr(new.priors, table), getattr(expected, table)
        assert torch.equal(found.columns, wanted.columns) and torch.equal(found.starts, wanted.starts)
        torch.testing.assert_close(found.values, wanted.values)


@pytest.mark.parametrize("span", [0, 2])
def test_the_sums_of_a_log_give_its_priors(span: int) -> None:
    draw = np.random.default_rng(1)
    lengths = draw.integers(1, 9, 30)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    events = Events(draw.integers(0, 12, offsets[-1]).astype(np.int32), offsets, draw.integers(0, 99, offsets[-1]))
    config = make_config("sasrec", **KNOBS, cooccurrence_span=span, cooccurrence_neighbours=4, popularity_window=0.5)
    sums = ExportSums.of_events(events, 12, config)

    class Log:
        items, offsets, timestamps, num_items = events.items, events.offsets, events.timestamps, 12

    expected, found = PriorTables(Log).priors(config), sums.scoring.priors(config)  # type: ignore[arg-type]
    assert expected is not None and found is not None
    assert torch.equal(found.popularity, expected.popularity)
    for table in ("transition", "cooccurrence"):
        for part in ("starts", "columns", "values"):
            assert torch.equal(getattr(getattr(found, table), part), getattr(getattr(expected, table), part))
    assert sums.baseline is not sums.scoring


def test_the_sums_of_an_export_are_those_of_its_training_data(exported: Path, tiny_dataset_dir: Path) -> None:
    dataset, export = PreparedDataset.load(tiny_dataset_dir), Export.load(exported)
    events = Events(dataset.items, dataset.offsets, dataset.timestamps)
    expected = ExportSums.of_events(events, dataset.num_items, make_config("sasrec", **KNOBS))
    for found, wanted in zip(vars(load_sums(exported)).values(), vars(expected).values(), strict=True):
        assert found.num_items == wanted.num_items == export.config.num_items
        for part in ("counts", "histories"):
            assert np.array_equal(getattr(found, part), getattr(wanted, part))
        for part in ("transitions", "cooccurrences"):
            assert np.array_equal(getattr(found, part).keys, getattr(wanted, part).keys)
            assert np.array_equal(getattr(found, part).values, getattr(wanted, part).values)


def test_a_new_item_starts_at_the_mean_of_its_neighbours_with_their_norm() -> None:
    table = torch.tensor([[3.0, 0.0], [0.0, 3.0], [5.0, 0.0]])
    history = np.array([0, 3, 1, 2, 2, 2, 4, 3, 5])
    rows = extended_table(table, history[:3], np.array([0, 3]), 6)
    torch.testing.assert_close(rows[3], torch.tensor([3.0, 3.0]) / 2**0.5)
    assert torch.equal(rows[:3], table)
    torch.testing.assert_close(rows[5], table.mean(dim=0))  # it has no neighbour
    rows = extended_table(table, np.array([2, 3, 4]), np.array([0, 3]), 5)
    torch.testing.assert_close(rows[3], table[2])
    torch.testing.assert_close(rows[4], table[2])  # two steps away
    far = extended_table(table, np.array([2, 3, 3, 3, 4]), np.array([0, 5]), 5)
    torch.testing.assert_close(far[4], table[2])  # by way of item 3


def test_bad_requests_write_nothing(exported, log, tmp_path) -> None:
    short = pl.DataFrame({"user": ["a", "a"], "item": ["x", "y"], "timestamp": [1, 2]})
    with pytest.raises(ExportError, match="three events"):
        continue_export(exported, short, tmp_path / "model", ContinueOptions())
    with pytest.raises(ExportError, match="is an export already"):
        continue_export(exported, log, exported, ContinueOptions())
    with pytest.raises(ExportError, match="epochs=0"):
        ContinueOptions(epochs=0)
    assert not any(tmp_path.iterdir())


def test_an_export_without_its_card_is_refused_before_the_training(exported, log, tmp_path) -> None:
    without = tmp_path / "without"
    shutil.copytree(exported, without)
    (without / "MODEL_CARD.md").unlink()

    def never(done: int, total: int) -> None:
        raise AssertionError("trained")

    with pytest.raises(ExportError, match="MODEL_CARD.md in .* cannot be read"):
        continue_export(without, log, tmp_path / "new", ContinueOptions(), progress=never)


def test_the_command_says_what_has_changed(exported, log, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    log.write_csv("new.csv")
    command = ["continue", str(exported), "new.csv", "--epochs", "1", "--device", "cpu"]
    shown = CliRunner().invoke(app, [*command, "--out", "one"])
    assert shown.exit_code == 0, shown.exception
    assert "difference of NDCG@10" in shown.stdout and "2 new items" in shown.stdout
    printed = CliRunner().invoke(app, [*command, "--out", "two", "--json"])
    assert json.loads(printed.stdout)["new_items"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"new.csv", "one", "two"}
    assert sha256_of(Path("one/manifest.json")) == sha256_of(Path("two/manifest.json"))
