"""The look ledger counts looks at near-duplicates of a content together; sketches lie sealed in it."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import polars as pl
import pytest

from virtualmle.data.catalogue import Catalogue
from virtualmle.data.demo import generate_demo
from virtualmle.data.errors import DataError
from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.data.readers import Log
from virtualmle.data.similar import CACHE, similar_datasets, visible_sketch
from virtualmle.data.sketch import SAME_CONTENT, log_sketch, similarity
from virtualmle.examiner.ledger import LEDGER, Ledger, Look, looks_at
from virtualmle.examiner.sketches import ContentSketch, content_sketch
from virtualmle.examiner.unseal import Targets, open_test
from virtualmle.examiner.vault import Vault

# looks.db as version 1.2 created it
OLD_SCHEMA = """
CREATE TABLE look (
    id INTEGER PRIMARY KEY AUTOINCREMENT, session TEXT NOT NULL UNIQUE, dataset TEXT NOT NULL,
    dataset_id TEXT NOT NULL, fingerprint TEXT NOT NULL, look INTEGER NOT NULL, at TEXT NOT NULL,
    UNIQUE (fingerprint, look)
);
CREATE TRIGGER look_keeps BEFORE UPDATE ON look BEGIN SELECT RAISE(ABORT, 'looks only grow'); END;
CREATE TRIGGER look_stays BEFORE DELETE ON look BEGIN SELECT RAISE(ABORT, 'looks only grow'); END;
INSERT INTO look VALUES (1, 'old-1', 'shop', 'id old', 'content', 1, '2026-01-01T00:00:00+00:00');
"""


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    vault = Vault(tmp_path / "home")
    vault.public_key()
    return vault


@pytest.fixture(scope="module")
def demo() -> pl.DataFrame:
    return generate_demo(num_users=200, num_items=80)


def log_of(frame: pl.DataFrame) -> Log:
    return Log(frame, {name: name for name in frame.columns}, frame.height)


def dropped(frame: pl.DataFrame, number: int) -> pl.DataFrame:
    """Without one user and with shuffled rows."""
    user = frame["user"].unique().sort()[number]
    return frame.filter(pl.col("user") != user).sample(fraction=1, shuffle=True, seed=number)


def renamed(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(
        user=pl.col("user").hash(3).cast(pl.String), item=pl.col("item").hash(3).cast(pl.String)
    )


def look(vault: Vault, session: str, frame: pl.DataFrame, fingerprint: str = "") -> Look:
    """Record a look at a log as the examiner does; without an exact fingerprint, no other log has the same."""
    sketch = ContentSketch(log_sketch(frame), vault.private_key())
    name = session.rpartition("-")[0]
    return Ledger(vault.directory).record(session, name, f"id {name}", fingerprint or f"content of {session}", sketch)


def test_looks_at_near_duplicates_are_counted_together_and_named(vault: Vault, demo: pl.DataFrame) -> None:
    first = look(vault, "shop-a-1", demo)
    assert (first.look, first.note, first.earlier) == (1, "", ())
    second = look(vault, "shop-a-2", demo, first.fingerprint)
    assert (second.look, second.note, second.earlier) == (2, "", ("shop-a-1",))
    third = look(vault, "copy-1", dropped(demo, 3))
    assert (third.look, third.note) == (3, "100% the same test targets as shop-a, 2 looks")
    assert third.earlier == ("shop-a-1", "shop-a-2")
    fourth = look(vault, "hidden-1", renamed(dropped(demo, 5)))
    assert fourth.look == 4
    assert fourth.note.endswith("the same test targets as shop-a under other names, 2 looks") or "copy" in fourth.note
    assert look(vault, "other-1", generate_demo(num_users=200, num_items=80, seed=9)).look == 1
    assert Ledger(vault.directory).looks()[2] == third


def test_a_note_names_the_most_similar_logs_and_counts_the_rest(vault: Vault, demo: pl.DataFrame) -> None:
    for number in range(5):
        last = look(vault, f"shop{number}-1", dropped(demo, number))
    assert last.look == 5
    assert last.note.count("the same test targets as shop") == 3 and last.note.endswith("; and 1 more log")


def test_concurrent_examiners_of_near_duplicates_get_different_numbers(vault: Vault, demo: pl.DataFrame) -> None:
    frames = [dropped(demo, number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda number: look(vault, f"shop-{number}", frames[number]).look, range(8))
        assert sorted(found) == list(range(1, 9))


def test_a_look_without_a_sketch_gets_a_number_above_the_last_of_its_content(vault: Vault, demo: pl.DataFrame) -> None:
    look(vault, "a-1", demo, "one")
    look(vault, "b-1", dropped(demo, 1), "two")
    assert look(vault, "a-2", demo, "one").look == 3
    ledger = Ledger(vault.directory)
    assert ledger.record("a-3", "a", "id a", "one").look == 4  # an equal number would break a rule of the table


def test_a_ledger_from_before_sketches_is_continued(vault: Vault, demo: pl.DataFrame) -> None:
    path = vault.directory / LEDGER
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD_SCHEMA)
    connection.close()
    ledger = Ledger(vault.directory)
    assert ledger.looks() == [Look("old-1", "shop", "id old", "content", 1, "2026-01-01T00:00:00+00:00")]
    assert look(vault, "shop-1", demo, "content").look == 2
    assert look(vault, "copy-1", dropped(demo, 1)).look == 2  # the old row has no sketch to be compared with
    assert look(vault, "shop-2", demo, "content").look == 4
    connection = sqlite3.connect(path)
    for change in ("UPDATE look SET note = ''", "UPDATE look SET sketch = x''", "DELETE FROM look"):
        with pytest.raises(sqlite3.IntegrityError, match="looks only grow"):
            connection.execute(change)
    # The version before still writes its rows
    columns = "session, dataset, dataset_id, fingerprint, look, at"
    connection.execute(f"INSERT INTO look ({columns}) VALUES (1, 2, 3, 4, 5, 6)")
    connection.rollback()
    connection.close()


def test_examiners_that_update_an_old_ledger_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    for number in range(20):
        folder, start = tmp_path / str(number), Barrier(8)
        folder.mkdir()
        connection = sqlite3.connect(folder / LEDGER)
        connection.executescript(OLD_SCHEMA)
        connection.close()

        def read(_: int, folder: Path = folder, start: Barrier = start) -> list[Look]:
            start.wait()
            return Ledger(folder).looks()

        with ThreadPoolExecutor(8) as pool:
            assert [len(rows) for rows in pool.map(read, range(8))] == [1] * 8


def test_a_refit_says_which_looks_were_at_its_content(vault: Vault, demo: pl.DataFrame) -> None:
    look(vault, "shop-a-1", demo)
    sketch = ContentSketch(log_sketch(dropped(demo, 1)), vault.private_key())
    refit = Ledger(vault.directory).record_refit("copy-1", "copy", "id", "another", sketch)
    assert (refit.earlier, refit.note) == (("shop-a-1",), "100% the same test targets as shop-a, 1 look")
    assert Ledger(vault.directory).refits() == [refit]
    assert look(vault, "copy-2", demo).look == 2, "a refit is not a look"


def test_the_ledger_holds_sketches_only_sealed(vault: Vault, demo: pl.DataFrame, tmp_path: Path) -> None:
    look(vault, "shop-1", demo, "content")
    hashes = log_sketch(demo).array[:, 2:18]
    content = b"".join(path.read_bytes() for path in vault.directory.glob(f"{LEDGER}*"))
    assert all(row.astype("<u4").tobytes() not in content for row in hashes)
    connection = sqlite3.connect(vault.directory / LEDGER)
    (sealed,) = connection.execute("SELECT sketch FROM look").fetchone()
    connection.close()
    own = ContentSketch(log_sketch(demo), vault.private_key())
    found = own.similarity(sealed, "content")
    assert found is not None and found.share == 1.0
    assert own.similarity(sealed, "another content") is None, "a row's sketch cannot be moved to another row"
    other = Vault(tmp_path / "other")
    other.public_key()
    assert ContentSketch(log_sketch(demo), other.private_key()).similarity(sealed, "content") is None


def prepared(vault: Vault, name: str, frame: pl.DataFrame, options: PrepareOptions | None = None) -> Path:
    directory = vault.directory.parent / "data" / name
    prepare(log_of(frame), name, directory, options or PrepareOptions(), vault.public_key())
    return directory


def opened(vault: Vault, directory: Path) -> tuple[PreparedDataset, Targets]:
    dataset = PreparedDataset.load(directory)
    return dataset, open_test(directory, vault.private_key(), dataset.dataset_id, dataset.num_users)


def test_the_sealed_sketch_is_that_of_the_whole_log_whatever_its_preparation(vault: Vault, demo: pl.DataFrame) -> None:
    expected = log_sketch(demo)
    options = (
        PrepareOptions(),
        PrepareOptions(k_core=3, max_events=10),
        PrepareOptions(split="time", holdout="20%"),
    )
    for number, each in enumerate(options):
        directory = prepared(vault, f"log-{number}", demo, each)
        found = content_sketch(directory, *opened(vault, directory), vault.private_key())
        assert found.sketch.to_bytes() == expected.to_bytes()


def test_a_dataset_from_before_sketches_gets_one_from_its_events(vault: Vault, demo: pl.DataFrame) -> None:
    directory = prepared(vault, "log", demo, PrepareOptions(max_events=10))
    dataset, targets = opened(vault, directory)
    old = Targets(targets.items, targets.timestamps, targets.fingerprint)
    found = content_sketch(directory, dataset, old, vault.private_key())
    assert similarity(found.sketch, log_sketch(demo)).share > 0.95
    assert similarity(log_sketch(renamed(demo)), found.sketch).share > SAME_CONTENT


def test_the_visible_parts_of_near_duplicates_are_similar(vault: Vault, demo: pl.DataFrame) -> None:
    catalogue = Catalogue(vault.directory.parent.parent)
    prepared(vault, "shop", demo)
    prepared(vault, "shop-time", dropped(demo, 2), PrepareOptions(split="time", holdout="20%"))
    prepared(vault, "copy", dropped(demo, 1))
    prepared(vault, "hidden", renamed(demo))
    prepared(vault, "other", generate_demo(num_users=200, num_items=80, seed=9))
    dataset_id = catalogue.manifest("shop").dataset_id
    found = dict(similar_datasets(catalogue, dataset_id))
    assert set(found) == {"shop-time", "copy", "hidden"}
    assert min(found["copy"], found["shop-time"]) > 0.9
    assert similar_datasets(catalogue, catalogue.manifest("other").dataset_id) == []
    assert similar_datasets(catalogue, "no such id") == []
    (catalogue.path("copy") / "manifest.json").chmod(0o600)
    (catalogue.path("copy") / "manifest.json").write_text("{}")
    assert "copy" not in dict(similar_datasets(catalogue, dataset_id)), "no session can use a damaged dataset"


def test_the_sketch_of_the_visible_part_is_kept_beside_the_dataset(vault: Vault, demo: pl.DataFrame) -> None:
    directory = prepared(vault, "shop", demo)
    first = visible_sketch(directory)
    kept = (directory / CACHE).read_bytes()
    (directory / "items.npy").unlink()
    assert visible_sketch(directory).to_bytes() == first.to_bytes(), "it is read, not computed again"
    for damaged in (kept[:-1], b"0" * 32 + kept[32:], b""):
        (directory / CACHE).write_bytes(damaged)
        with pytest.raises(DataError, match=r"items\.npy"):
            visible_sketch(directory)


def test_visible_sketches_do_not_depend_on_the_test_events(vault: Vault, demo: pl.DataFrame) -> None:
    last = pl.col("timestamp") == pl.col("timestamp").max().over("user")
    single = demo.unique(["user", "timestamp"], keep="first", maintain_order=True)
    items = single.filter(last)["item"].reverse()  # the same items, so that the k-core stays equal
    rows = single.with_row_index("row").filter(last).with_columns(item=items)
    other = single.with_row_index("row").update(rows, on="row").drop("row")
    one, two = (prepared(vault, name, frame) for name, frame in (("one", single), ("two", other)))
    assert log_sketch(single).to_bytes() != log_sketch(other).to_bytes()
    assert visible_sketch(one).to_bytes() == visible_sketch(two).to_bytes()


def test_looks_at_a_content_are_found_from_each_of_its_datasets() -> None:
    rows = [
        Look("a-1", "a", "id a", "one", 1, ""),
        Look("b-1", "b", "id b", "two", 2, "", ("a-1",)),
        Look("c-1", "c", "id c", "three", 1, ""),
        Look("d-1", "d", "id d", "one", 2, "", ("a-1",)),
    ]
    assert [each.session for each in looks_at(rows, {"id b"})] == ["a-1", "b-1"]
    assert [each.session for each in looks_at(rows, {"id a"})] == ["a-1", "b-1", "d-1"]
    assert [each.session for each in looks_at(rows, {"id c"})] == ["c-1"]
    assert looks_at(rows, {"none"}) == []
    assert json.dumps(rows[1].earlier) == '["a-1"]'
