"""The split by time: against a plain second implementation, and what of the test part can be seen."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtualmle.cli.dataset_text import split_line
from virtualmle.data.catalogue import Catalogue
from virtualmle.data.demo import generate_demo
from virtualmle.data.errors import DataError
from virtualmle.data.holdout import Cuts, cuts_of, parse_holdout
from virtualmle.data.prepare import order_events, prepare
from virtualmle.data.prepared import (
    SEALED,
    TIME_ARRAYS,
    Manifest,
    PreparedDataset,
    PrepareOptions,
    array_file,
)
from virtualmle.data.readers import Log, read_log
from virtualmle.data.seal import NO_TARGET
from virtualmle.data.splits import split_by_time
from virtualmle.examiner.unseal import Targets, open_test
from virtualmle.examiner.vault import Vault
from virtualmle.trials.ray_data import files_to_send

Row = tuple[str, str, int]
DAY = 86_400
START = 1_700_000_000
BY_TIME = PrepareOptions(split="time", holdout="90d")


def log_of(rows: list[Row]) -> Log:
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "timestamp": pl.Int64}, orient="row")
    return Log(frame, {role: role for role in frame.columns}, len(rows))


def demo_log() -> Log:
    frame = generate_demo()
    return Log(frame, {role: role for role in frame.columns}, frame.height)


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "home")


def targets_of(directory: Path, vault: Vault) -> Targets:
    dataset = PreparedDataset.load(directory)
    return open_test(directory, vault.private_key(), dataset.dataset_id, dataset.num_users)


def names(histories: Any, users: list[str], items: list[str]) -> dict[str, list[str]]:
    bounds = histories.offsets
    return {user: [items[i] for i in histories.items[bounds[n] : bounds[n + 1]]] for n, user in enumerate(users)}


# The plain second implementation: loops over rows with original ids


def plain_core(rows: list[Row], k: int) -> list[Row]:
    while True:
        users, items = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
        kept = [row for row in rows if users[row[0]] >= max(k, 3) and items[row[1]] >= k]
        if len(kept) == len(rows):
            return kept
        rows = kept


def plain_split(rows: list[Row], cuts: Cuts, k: int, most: int) -> dict[str, dict[str, Any]]:
    """User → train history, validation target, history at the look and test target, as original item ids."""
    visible = plain_core([row for row in rows if row[2] < cuts.test_from], k)
    known = {row[1] for row in visible}
    expected: dict[str, dict[str, Any]] = {}
    for user in {row[0] for row in visible}:
        mine = sorted((row for row in visible if row[0] == user), key=lambda row: row[2])  # sorted() is stable
        later = sorted(
            (row for row in rows if row[0] == user and row[2] >= cuts.test_from and row[1] in known),
            key=lambda row: row[2],
        )
        train = [row[1] for row in mine if row[2] < cuts.valid_from]
        between = [row[1] for row in mine if row[2] >= cuts.valid_from]
        expected[user] = {
            "train": train[-most:],
            "valid": between[0] if train and between else None,
            "seen": (train[-most:] + between[-most:])[-most:],
            "test": later[0][1] if later else None,
        }
    return expected


@given(
    rows=st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("uvwxyz"), st.integers(0, 14)), min_size=25, max_size=80
    ),
    k=st.integers(1, 3),
    most=st.integers(3, 7),
    holdout=st.sampled_from(["3h", "5h", "20%", "33%"]),
)
def test_the_split_equals_the_plain_one(rows: list[Row], k: int, most: int, holdout: str) -> None:
    rows = [(user, item, START + 3600 * hour) for user, item, hour in rows]
    frame = log_of(rows).frame
    try:
        cuts = cuts_of(frame["timestamp"].to_numpy(), parse_holdout(holdout))
    except DataError:
        return  # a part without events, which tests below provoke
    expected = plain_split(rows, cuts, k, most)
    visible = frame.filter(pl.col("timestamp") < cuts.test_from)
    if not expected:
        with pytest.raises(DataError, match="core|no user"):
            order_events(visible, PrepareOptions(k_core=k))
        return
    events = order_events(visible, PrepareOptions(k_core=k))
    split = split_by_time(events, frame.filter(pl.col("timestamp") >= cuts.test_from), cuts, most)
    assert split.between is not None
    users, items = events.user_ids.to_list(), events.item_ids.to_list()
    ranked = {users[user]: items[item] for user, item in zip(split.between.valid_users, split.valid_items, strict=True)}
    tested = {users[u]: items[item] for u, item in enumerate(split.test_items) if item != NO_TARGET}
    train = {u: [items[i] for i in split.items[slice(*split.offsets[n : n + 2])]] for n, u in enumerate(users)}
    assert train == {user: each["train"] for user, each in expected.items()}
    assert ranked == {user: each["valid"] for user, each in expected.items() if each["valid"]}
    assert tested == {user: each["test"] for user, each in expected.items() if each["test"]}


def test_a_prepared_dataset_has_the_histories_of_the_plain_split(tmp_path: Path, vault: Vault) -> None:
    log = demo_log()
    options = PrepareOptions(split="time", holdout="90d", max_events=6)  # most histories are cut
    manifest = prepare(log, "demo", tmp_path / "demo", options, vault.public_key())
    assert manifest.time_split is not None
    cuts = Cuts(manifest.time_split.valid_from, manifest.time_split.test_from)
    expected = plain_split(log.frame.rows(), cuts, 5, 6)
    dataset = PreparedDataset.load(tmp_path / "demo")
    users, items = (pl.read_parquet(tmp_path / "demo" / f"{role}_ids.parquet")["original_id"].to_list()
                    for role in ("user", "item"))  # fmt: skip
    assert dataset.valid_users is not None
    ranked = [users[user] for user in dataset.valid_users]
    assert names(dataset.train_histories(), users, items) == {user: expected[user]["train"] for user in users}
    assert names(dataset.visible_histories(), users, items) == {user: expected[user]["seen"] for user in users}
    assert names(dataset.validation_histories(), ranked, items) == {user: expected[user]["train"] for user in ranked}
    assert [items[i] for i in dataset.valid_items] == [expected[user]["valid"] for user in ranked]
    found = targets_of(tmp_path / "demo", vault)
    assert {users[u]: items[found.items[u]] for u in found.users} == {
        user: each["test"] for user, each in expected.items() if each["test"]
    }
    assert manifest.num_ranked == len(ranked)
    assert manifest.profile["users"] == sum(bool(each["train"]) for each in expected.values())
    times = dataset.visible_histories().times
    assert times is not None and times.max() < cuts.test_from <= found.timestamps[found.users].min()
    assert dataset.timestamps.max() < cuts.valid_from <= dataset.valid_timestamps.min()


# What can be seen of the test part


def with_other_test_part(rows: list[Row], seed: int) -> list[Row]:
    """The demo log with another test part: other users, items, times and number of rows, but the same last second."""
    rng = np.random.default_rng(seed)
    cuts = cuts_of(np.array([row[2] for row in rows]), parse_holdout("90d"))
    end = max(row[2] for row in rows)
    kept = [row for row in rows if row[2] < cuts.test_from]
    users = [f"u{number:04d}" for number in range(700)] + [f"new{number}" for number in range(40 * seed)]
    items = sorted({row[1] for row in rows}) + [f"unseen{number}" for number in range(10 * seed)]
    sealed = [
        (users[rng.integers(len(users))], items[rng.integers(len(items))], int(rng.integers(cuts.test_from, end)))
        for _ in range(400 + 150 * seed)
    ]
    return [*kept, *sealed, (users[0], items[0], end)]


def test_logs_that_differ_only_in_the_test_part_give_the_same_visible_bytes(tmp_path: Path, vault: Vault) -> None:
    rows = generate_demo().rows()
    folders = [tmp_path / "one" / "toy", tmp_path / "two" / "toy"]
    for seed, folder in enumerate(folders):
        prepare(log_of(with_other_test_part(rows, seed)), "toy", folder, BY_TIME, vault.public_key())
    files = {path.name for path in folders[0].iterdir()}
    assert files == {path.name for path in folders[1].iterdir()} >= {array_file(name) for name in TIME_ARRAYS}
    for name in files - {SEALED}:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    assert (folders[0] / SEALED).stat().st_size == (folders[1] / SEALED).stat().st_size
    one, two = (targets_of(folder, vault) for folder in folders)
    assert len(one.users) != len(two.users) and one.fingerprint != two.fingerprint


def test_looks_at_both_splits_of_a_log_are_counted_together(tmp_path: Path, vault: Vault) -> None:
    for name, options in (("time", BY_TIME), ("other", PrepareOptions()), ("cut", PrepareOptions(max_events=9))):
        prepare(demo_log(), name, tmp_path / name, options, vault.public_key())
    fingerprints = {targets_of(tmp_path / name, vault).fingerprint for name in ("time", "other", "cut")}
    assert len(fingerprints) == 1


def test_leave_one_out_is_prepared_as_before(tmp_path: Path, vault: Vault) -> None:
    manifest = prepare(demo_log(), "demo", tmp_path / "demo", PrepareOptions(), vault.public_key())
    assert manifest.dataset_id == "665c3ce0ae5301870db83367f6eb1881"  # of version 0.1
    assert targets_of(tmp_path / "demo", vault).fingerprint[:16] == "eba83da61b5cb89e"
    written = json.loads((tmp_path / "demo" / "manifest.json").read_text())
    assert set(written["options"]) == {"k_core", "max_events", "id_key", "keep_duplicates"}
    assert "time_split" not in written and "split" not in written["profile"] and written["format_version"] == 2
    dataset = PreparedDataset.load(tmp_path / "demo")
    assert dataset.valid_users is None and dataset.num_ranked == dataset.num_users
    assert dataset.validation_histories().items is dataset.items


def test_a_changed_byte_in_an_array_of_the_time_split_is_detected(tmp_path: Path, vault: Vault) -> None:
    prepare(demo_log(), "toy", tmp_path / "toy", BY_TIME, vault.public_key())
    for name in TIME_ARRAYS:
        path = tmp_path / "toy" / array_file(name)
        content = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DataError, match=f"{name}.*damaged"):
            PreparedDataset.load(tmp_path / "toy")
        path.write_bytes(content)
    without = json.loads((tmp_path / "toy" / "manifest.json").read_text())
    assert Manifest.model_validate(without).time_split is not None
    assert set(files_to_send(tmp_path / "toy")) > {array_file(name) for name in TIME_ARRAYS}


# Lengths, units and refusals


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [("30d", 30 * DAY, "30d"), ("12h", 43_200, "12h"), ("4w", 28 * DAY, "4w"), (" 1.5D ", 129_600, "1.5d")],
)
def test_lengths_are_read_in_seconds(text: str, seconds: int, shown: str) -> None:
    assert (parse_holdout(text).seconds, str(parse_holdout(text))) == (seconds, shown)


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-3d", "30 days", "50%", "99%", "1m", "1e3d"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="holdout="):
        parse_holdout(text)


@pytest.mark.parametrize(("split", "holdout"), [("time", ""), ("leave-one-out", "30d"), ("random", ""), ("time", "x")])
def test_a_split_and_a_holdout_that_do_not_fit_are_refused(split: str, holdout: str) -> None:
    with pytest.raises(DataError, match="split|holdout"):
        PrepareOptions(split=split, holdout=holdout)


def test_cuts_count_back_from_the_last_event() -> None:
    days = START + DAY * np.arange(100)  # one event a day
    cuts = cuts_of(days, parse_holdout("10d"))
    assert [(days >= cuts.test_from).sum(), (days >= cuts.valid_from).sum()] == [10, 20]
    share = cuts_of(days[::-1], parse_holdout("10%"))
    assert [(days >= share.test_from).sum(), (days >= share.valid_from).sum()] == [10, 20]


@pytest.mark.parametrize(("holdout", "advice"), [("60d", "shorter"), ("1h", "longer")])
def test_a_holdout_that_leaves_a_part_empty_is_refused(holdout: str, advice: str) -> None:
    with pytest.raises(DataError, match=f"the log covers 100.0 days; use a {advice} hold-out"):
        cuts_of(np.repeat(START + 20 * DAY * np.arange(6), 4), parse_holdout(holdout))


def test_too_few_targets_are_an_error_whose_proposal_works(tmp_path: Path, vault: Vault) -> None:
    short = PrepareOptions(split="time", holdout="30d")
    with pytest.raises(DataError, match=r"only 38 users have a validation target.*--holdout 90d has enough"):
        prepare(demo_log(), "demo", tmp_path / "demo", short, vault.public_key())
    assert not (tmp_path / "demo").exists()
    manifest = prepare(demo_log(), "demo", tmp_path / "demo", BY_TIME, vault.public_key())
    assert manifest.num_ranked >= 50 and len(targets_of(tmp_path / "demo", vault).users) >= 50


def test_a_log_without_a_clock_cannot_be_split_by_time(tmp_path: Path, vault: Vault) -> None:
    path = tmp_path / "log.csv"
    rows = [f"u{user},i{(user + step) % 9},{step}" for user in range(80) for step in range(9)]
    path.write_text("\n".join(["user,item,time", *rows]))
    with pytest.raises(DataError, match=r"real times.*--time-unit"):
        prepare(read_log(path), "toy", tmp_path / "toy", BY_TIME, vault.public_key())


# Names


def test_a_time_split_of_an_available_dataset_has_a_name_of_its_own(tmp_path: Path, vault: Vault) -> None:
    catalogue, key = Catalogue(tmp_path / "home"), vault.public_key()
    assert catalogue.resolve("demo", key, options=BY_TIME) == "demo-time-90d"
    assert catalogue.resolve("demo", key, options=PrepareOptions(split="time", holdout="20%")) == "demo-time-20pct"
    assert catalogue.resolve("demo", key) == "demo"
    assert catalogue.siblings("demo") == ["demo-time-20pct", "demo-time-90d"]
    assert catalogue.resolve("demo-time-90d", key) == catalogue.resolve("demo-time-90d", key, options=BY_TIME)
    with pytest.raises(DataError, match="registered with --split time --holdout 90d, not --split leave-one-out"):
        catalogue.resolve("demo-time-90d", key, options=PrepareOptions())


def test_a_log_file_is_registered_once_per_split(tmp_path: Path, vault: Vault) -> None:
    catalogue, key, path = Catalogue(tmp_path / "home"), vault.public_key(), tmp_path / "shop.csv"
    generate_demo().write_csv(path)
    assert catalogue.resolve(str(path), key) == "shop"
    for _ in range(2):
        assert catalogue.resolve(str(path), key, options=BY_TIME) == "shop-time-90d"
    assert catalogue.names() == ["shop", "shop-time-90d"]
    assert catalogue.siblings("shop") == ["shop-time-90d"]
    assert "time, hold-out 90d" in split_line(catalogue.manifest("shop-time-90d"))
