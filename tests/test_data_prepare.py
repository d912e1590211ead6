"""Preparation: the split against a simple reference, published counts, the profile, and damaged datasets."""

import hashlib
import json
import os
import shutil
import stat
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtualmle.data.errors import DataError, HomeError
from virtualmle.data.prepare import fingerprint_of, order_events, prepare, split_events
from virtualmle.data.prepared import (
    ARRAYS,
    Manifest,
    PreparedDataset,
    PrepareOptions,
    array_file,
    dataset_id_of,
    read_manifest,
)
from virtualmle.data.profile import gini, train_profile
from virtualmle.data.readers import Log, read_log
from virtualmle.examiner.vault import Vault

Row = tuple[str, str, int]


def log_of(rows: list[Row]) -> Log:
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "timestamp": pl.Int64}, orient="row")
    return Log(frame, {"user": "user", "item": "item", "timestamp": "timestamp"}, len(rows))


def synthetic_log(num_users: int = 40, num_items: int = 12, length: int = 8) -> list[Row]:
    rng = np.random.default_rng(7)
    return [
        (f"user {u}", f"item {rng.integers(num_items)}", int(rng.integers(5)))
        for u in range(num_users)
        for _ in range(length)
    ]


@pytest.fixture
def key(tmp_path: Path) -> bytes:
    return Vault(tmp_path / "keys").public_key()


@pytest.fixture
def prepared(tmp_path: Path, key: bytes) -> Path:
    prepare(log_of(synthetic_log()), "toy", tmp_path / "data" / "toy", PrepareOptions(), key)
    return tmp_path / "data" / "toy"


def reference_split(rows: list[Row], k: int, max_events: int) -> dict[str, list[tuple[str, int]]]:
    """User → kept events in order: a simple reference that defines what `prepare` computes in vectorised form."""
    rows = list(rows)
    while True:
        users, items = Counter(r[0] for r in rows), Counter(r[1] for r in rows)
        kept = [r for r in rows if users[r[0]] >= max(k, 3) and items[r[1]] >= k]
        if len(kept) == len(rows):
            break
        rows = kept
    histories: dict[str, list[tuple[str, int]]] = {}
    for user, item, time in sorted(rows, key=lambda r: r[2]):  # sorted() is stable
        histories.setdefault(user, []).append((item, time))
    return {user: events[-max_events:] for user, events in histories.items()}


@given(
    rows=st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz"), st.integers(0, 6)), min_size=1, max_size=70
    ),
    k=st.integers(1, 4),
    max_events=st.integers(3, 8),
)
def test_the_split_equals_the_simple_reference(rows: list[Row], k: int, max_events: int) -> None:
    expected = reference_split(rows, k, max_events)
    options = PrepareOptions(k_core=k, max_events=max_events)
    if not expected:
        with pytest.raises(DataError):
            order_events(log_of(rows).frame, options)
        return
    events = order_events(log_of(rows).frame, options)
    split = split_events(events, max_events)
    found = {}
    for user, name in enumerate(events.user_ids):
        mine = slice(split.offsets[user], split.offsets[user + 1])
        items = [*split.items[mine], split.valid_items[user], split.test_items[user]]
        times = [*split.timestamps[mine], split.valid_timestamps[user], split.test_timestamps[user]]
        found[name] = [(events.item_ids[int(i)], int(t)) for i, t in zip(items, times, strict=True)]
    assert found == expected
    assert split.num_interactions == sum(map(len, expected.values()))


@pytest.mark.parametrize(
    ("filename", "users", "items", "before", "after"),
    [
        ("beauty", 22_363, 12_101, 198_502, 194_687),
        ("tools", 16_638, 10_217, 134_476, 133_566),
        ("office", 4_905, 2_420, 53_258, 52_891),
    ],
)
def test_the_benchmark_logs_have_their_published_counts(
    shared_data: Path, tmp_path: Path, key: bytes, filename: str, users: int, items: int, before: int, after: int
) -> None:
    log = read_log(shared_data / f"{filename}.tsv.gz")
    manifest = prepare(log, filename, tmp_path / filename, PrepareOptions(), key)
    counts = (manifest.num_users, manifest.num_items, manifest.num_interactions_before_cut, manifest.num_interactions)
    assert counts == (users, items, before, after)
    dataset = PreparedDataset.load(tmp_path / filename)
    assert len(dataset.items) + 2 * dataset.num_users == after
    assert np.diff(dataset.offsets).min() >= 3


def test_the_k_core_filter_repeats_until_nothing_changes(shared_data: Path) -> None:
    frame = read_log(shared_data / "ml100k.tsv.gz").frame
    assert (frame.height, frame["user"].n_unique(), frame["item"].n_unique()) == (100_000, 943, 1_682)
    events = order_events(frame, PrepareOptions(k_core=5))
    assert (len(events.user_ids), len(events.item_ids), len(events.items)) == (943, 1_349, 99_287)
    assert np.bincount(events.items).min() >= 5


def test_ids_depend_on_the_key_and_not_on_the_order_of_the_file() -> None:
    rows = synthetic_log()
    one = order_events(log_of(rows).frame, PrepareOptions())
    two = order_events(log_of(rows).frame.sample(fraction=1.0, shuffle=True, seed=1), PrepareOptions())
    other = order_events(log_of(rows).frame, PrepareOptions(id_key="another"))
    assert one.item_ids.to_list() == two.item_ids.to_list()
    assert one.user_ids.to_list() == two.user_ids.to_list()
    assert one.item_ids.to_list() != other.item_ids.to_list()
    assert one.item_ids.to_list() != sorted(one.item_ids)
    by_hash = sorted(
        set(one.item_ids), key=lambda name: blake2b(name.encode(), key=b"virtualmle:item", digest_size=16).digest()
    )
    assert one.item_ids.to_list() == by_hash  # the same on every machine: no clock and no random seed


def test_ids_do_not_reveal_the_item_order_of_tied_times(shared_data: Path) -> None:
    events = order_events(read_log(shared_data / "beauty.tsv.gz").frame, PrepareOptions())
    ends = events.offsets[1:]
    last, before = ends - 1, ends - 2
    tied = events.timestamps[last] == events.timestamps[before]
    assert tied.mean() > 0.3
    raw = events.item_ids.cast(pl.Int64).to_numpy()
    ascending = (raw[events.items[last]] > raw[events.items[before]])[tied].mean()
    assert ascending > 0.9, "the raw file must have this artefact, or the test shows nothing"
    assert abs((events.items[last] > events.items[before])[tied].mean() - 0.5) < 0.02


def test_the_fingerprint_depends_on_content_and_not_on_key_or_row_order() -> None:
    rows = synthetic_log()
    frame = log_of(rows).frame
    fingerprint = fingerprint_of(order_events(frame, PrepareOptions()))
    assert fingerprint == fingerprint_of(order_events(frame, PrepareOptions(id_key="other")))
    by_user = frame.sort("user", maintain_order=True)
    assert fingerprint == fingerprint_of(order_events(by_user, PrepareOptions()))
    changed = [*rows[:-1], (rows[-1][0], rows[-1][1], 99)]
    assert fingerprint != fingerprint_of(order_events(log_of(changed).frame, PrepareOptions()))


def test_loaded_arrays_have_the_documented_types(prepared: Path) -> None:
    dataset = PreparedDataset.load(prepared)
    assert dataset.name == "toy"
    assert dataset.max_events == 50
    assert len(dataset.dataset_id) == 32
    for name, dtype in ARRAYS.items():
        array = getattr(dataset, name)
        assert isinstance(array, np.memmap)
        assert array.dtype == dtype
        assert not array.flags.writeable
    assert dataset.offsets[0] == 0
    assert dataset.items.max() < dataset.num_items
    assert len(pl.read_parquet(prepared / "user_ids.parquet")) == dataset.num_users
    assert len(pl.read_parquet(prepared / "item_ids.parquet")) == dataset.num_items


def test_the_dataset_id_does_not_depend_on_the_name(tmp_path: Path, key: bytes) -> None:
    ids = {
        prepare(log_of(synthetic_log()), name, tmp_path / name, PrepareOptions(), key).dataset_id for name in ("a", "b")
    }
    assert len(ids) == 1
    cut = prepare(log_of(synthetic_log()), "c", tmp_path / "c", PrepareOptions(max_events=4), key)
    assert cut.dataset_id not in ids


def test_every_file_is_read_only_and_no_temporary_file_remains(prepared: Path) -> None:
    assert {stat.S_IMODE(path.stat().st_mode) for path in prepared.iterdir()} == {0o400}
    assert [path.name for path in prepared.parent.iterdir()] == ["toy"]


@pytest.mark.parametrize("victim", [*map(array_file, ARRAYS), "user_ids.parquet", "item_ids.parquet"])
def test_a_changed_byte_in_any_file_is_detected_at_load(prepared: Path, victim: str) -> None:
    path = prepared / victim
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{victim}.*damaged.*register"):
        PreparedDataset.load(prepared)
    if victim != "offsets.npy":  # its last value is checked even without hashes
        PreparedDataset.load(prepared, verify=False)


@pytest.mark.parametrize("change", [{"dataset_id": "0" * 32}, {"num_items": 3}, {"format_version": 9}, {"files": {}}])
def test_a_changed_manifest_is_detected_at_load(prepared: Path, change: dict) -> None:
    path = prepared / "manifest.json"
    path.chmod(0o644)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match="damaged|format version 9"):
        PreparedDataset.load(prepared)


def as_version_1(directory: Path, per_second: int) -> None:
    """Rewrite a dataset as the earlier version would have prepared it from a log of another unit."""
    manifest = json.loads((directory / "manifest.json").read_text())
    for name in ("timestamps", "valid_timestamps"):
        path = directory / array_file(name)
        times = np.load(path) * per_second
        path.chmod(0o644)
        np.save(path, times)
        manifest["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest["dataset_id"] = dataset_id_of(manifest["files"], manifest["num_users"], manifest["num_items"])
    for field in ("notes", "num_identical_rows"):
        del manifest[field]
    del manifest["options"]["keep_duplicates"]
    (directory / "manifest.json").chmod(0o644)
    (directory / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}))


@pytest.mark.parametrize("start", [0, 1_700_000_000])
def test_a_dataset_of_the_earlier_version_in_seconds_stays_usable(tmp_path: Path, key: bytes, start: int) -> None:
    rows = [(user, item, start + time) for user, item, time in synthetic_log()]
    manifest = prepare(log_of(rows), "toy", tmp_path / "toy", PrepareOptions(), key)
    as_version_1(tmp_path / "toy", 1)
    dataset = PreparedDataset.load(tmp_path / "toy")
    assert dataset.dataset_id == manifest.dataset_id
    assert dataset.manifest.options.keep_duplicates  # the earlier version never collapsed identical rows
    assert dataset.manifest.notes == ()


@pytest.mark.parametrize("per_second", [10**3, 10**6, 10**9])
def test_a_dataset_of_the_earlier_version_in_another_unit_is_refused(
    tmp_path: Path, key: bytes, per_second: int
) -> None:
    rows = [(user, item, 1_700_000_000 + time) for user, item, time in synthetic_log()]
    prepare(log_of(rows), "toy", tmp_path / "toy", PrepareOptions(), key)
    as_version_1(tmp_path / "toy", per_second)
    with pytest.raises(DataError, match="another unit than seconds.*virtualmle data replace toy FILE"):
        PreparedDataset.load(tmp_path / "toy")


@pytest.mark.parametrize("time", [-1, 1_700_000_000_000, 2**63 - 1, -(2**63)])
def test_a_frame_whose_times_are_not_seconds_is_never_prepared(tmp_path: Path, key: bytes, time: int) -> None:
    with pytest.raises(DataError, match="timestamps must be Unix seconds"):
        prepare(log_of([*synthetic_log(), ("a", "b", time)]), "toy", tmp_path / "toy", PrepareOptions(), key)


def test_truncated_and_missing_files_are_detected_even_without_hashes(prepared: Path) -> None:
    path = prepared / "items.npy"
    content = path.read_bytes()
    path.chmod(0o644)
    for damaged in (content[: len(content) // 2], b"", content[:-4]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            PreparedDataset.load(prepared, verify=False)
    path.unlink()
    for verify in (True, False):
        with pytest.raises(DataError, match=r"items\.npy"):
            PreparedDataset.load(prepared, verify=verify)
    (prepared / "manifest.json").unlink()
    with pytest.raises(DataError, match="not a prepared dataset"):
        PreparedDataset.load(prepared)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a b", "a\n", "-x", "x" * 65, "a\\b"])
def test_names_that_could_leave_the_data_directory_are_refused(tmp_path: Path, key: bytes, name: str) -> None:
    with pytest.raises(DataError, match="letters, digits"):
        prepare(log_of(synthetic_log()), name, tmp_path / "data" / "x", PrepareOptions(), key)
    assert not (tmp_path / "data").exists()


def test_an_existing_dataset_is_never_replaced(prepared: Path, key: bytes) -> None:
    before = {path.name: path.read_bytes() for path in prepared.iterdir()}
    with pytest.raises(DataError, match="exists already"):
        prepare(log_of(synthetic_log(length=9)), "toy", prepared, PrepareOptions(), key)
    assert {path.name: path.read_bytes() for path in prepared.iterdir()} == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param(synthetic_log(4, 6, 6), r"5-core of 24 .* 4 users .* is empty; --k-core \d", id="smaller k works"),
        pytest.param([("a", "x", 1), ("a", "y", 2), ("b", "x", 1)], "no user .* has the 3 events", id="no k works"),
    ],
)
def test_the_error_for_a_log_that_is_too_small_suggests_a_remedy(
    tmp_path: Path, key: bytes, rows: list[Row], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        prepare(log_of(rows), "small", tmp_path / "small", PrepareOptions(k_core=5), key)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("bad", [{"k_core": 0}, {"max_events": 2}, {"id_key": "x" * 49}])
def test_invalid_options_are_refused(bad: dict) -> None:
    with pytest.raises(DataError, match="k_core|max_events|id_key"):
        PrepareOptions(**bad)


def test_a_home_that_cannot_be_written_raises_a_home_error(tmp_path: Path, key: bytes) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(HomeError, match="cannot be written.*--home"):
        prepare(log_of(synthetic_log()), "toy", tmp_path / "file" / "data" / "toy", PrepareOptions(), key)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write read-only directories")
def test_a_read_only_home_raises_a_home_error(tmp_path: Path, key: bytes) -> None:
    (tmp_path / "data").mkdir(mode=0o555)
    with pytest.raises(HomeError, match="cannot be written"):
        prepare(log_of(synthetic_log()), "toy", tmp_path / "data" / "toy", PrepareOptions(), key)


def test_an_interrupted_write_leaves_no_files(tmp_path: Path, key: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("virtualmle.data.prepare.os.rename", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(log_of(synthetic_log()), "toy", tmp_path / "data" / "toy", PrepareOptions(), key)
    assert list((tmp_path / "data").iterdir()) == []


def test_the_profile_is_computed_on_the_train_part() -> None:
    items = np.array([0, 1, 0, 2, 2, 2, 2], dtype=np.int32)
    day = 86_400
    timestamps = np.array([0, 1, 4, 10, 10, 11, 30], dtype=np.int64) * day
    profile = train_profile(items, timestamps, np.array([0, 3, 7]))
    assert profile["users"] == 2
    assert profile["items"] == 3
    assert profile["interactions"] == 7
    assert profile["density"] == pytest.approx(7 / 6, rel=1e-5)
    assert (profile["length_min"], profile["length_median"], profile["length_max"]) == (3, 3.5, 4)
    assert profile["repeat_rate"] == pytest.approx(4 / 7, rel=1e-5)
    assert profile["time_span_days"] == 30
    assert profile["median_gap_days"] == 1  # the gaps are 1, 3 and 0, 1, 19; none spans two users
    assert profile["popularity_gini"] == pytest.approx(0.285714, rel=1e-4)


def test_gini_is_zero_for_equal_counts_and_near_one_for_a_single_dominant_item() -> None:
    assert gini(np.array([4, 4, 4])) == pytest.approx(0)
    assert gini(np.array([1] * 999 + [10**9])) > 0.99


def test_a_dataset_can_be_copied_to_another_directory(prepared: Path, tmp_path: Path) -> None:
    manifest = read_manifest(prepared)
    assert isinstance(manifest, Manifest)
    assert manifest.options == PrepareOptions()
    shutil.copytree(prepared, tmp_path / "elsewhere")
    assert PreparedDataset.load(tmp_path / "elsewhere").dataset_id == manifest.dataset_id
