"""Missing ids, ids written in two ways, rows that are left out, and identical rows; on whole files."""

import random
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from virtualmle.cli.app import app
from virtualmle.data.catalogue import Catalogue
from virtualmle.data.cleaning import Cleaning
from virtualmle.data.errors import DataError
from virtualmle.data.ids import read_ids
from virtualmle.data.interactions import clean_interactions
from virtualmle.data.prepare import collapse_duplicates, order_events, prepare, split_events
from virtualmle.data.prepared import ARRAYS, Manifest, PreparedDataset, PrepareOptions, array_file
from virtualmle.data.readers import Log, read_log
from virtualmle.data.rows import Source

KEY = bytes(range(32))
DROPPING = Cleaning(drop_missing=True, drop_bad_times=True)
SCHEMA = {"user": pl.String, "item": pl.String, "timestamp": pl.Int64}
SOURCE = Source("log.csv", {"user": "who", "item": "what", "timestamp": "when"}, 2)


def register(folder: Path, log: Log, **options: bool) -> tuple[Manifest, bytes]:
    """Prepare without a k-core filter; returns the manifest and the bytes of all arrays."""
    manifest = prepare(log, "case", folder, PrepareOptions(k_core=1, **options), KEY)
    return manifest, b"".join((folder / array_file(name)).read_bytes() for name in ARRAYS)


@pytest.mark.parametrize(
    ("filename", "same_as", "note"),
    [
        ("unit_ms.csv", "unit_s.csv", "milliseconds"),
        ("unit_iso_frac.csv", "unit_s.csv", ""),
        ("unit_compact.csv", "unit_s.csv", "YYYYMMDDhhmmss"),
        ("serial.csv", "base.csv", "spreadsheet days"),
        ("time_pg_p00.csv", "base.csv", ""),
        ("time_bigquery_UTC.csv", "base.csv", ""),
        ("time_comma_frac.csv", "base.csv", ""),
        ("ids_ws.csv", "base.csv", "blanks before or after them in 24 rows"),
        ("q_after_space.csv", "base.csv", ""),
        ("rq.tsv", "base.csv", ""),
        ("dups.csv", "base.csv", "96 rows repeat the user, item and time"),
    ],
)
def test_a_log_in_another_dress_gives_the_same_arrays(
    shared_logs: Path, tmp_path: Path, filename: str, same_as: str, note: str
) -> None:
    manifest, arrays = register(tmp_path / "dressed", read_log(shared_logs / filename))
    plain, expected = register(tmp_path / "plain", read_log(shared_logs / same_as))
    assert arrays == expected
    assert manifest.dataset_id == plain.dataset_id
    assert note in " ".join(manifest.notes)
    assert plain.notes == ()


@pytest.mark.parametrize(
    ("filename", "message", "num_left"),
    [
        ("nat.csv", r"row 7: the time -9223372036854775808 .*in nanoseconds.*5 of 48 rows: 7, 16, 25", 43),
        ("net.csv", r"row 7: the time 0001-01-01T00:00:00 .*10 of 48 rows: 7, 12, 13.*--drop-bad-times", 38),
        ("open.csv", r"row 16: the time 9999-12-31 00:00:00 .*4 of 48 rows: 16, 33, 40", 44),
        ("null_t0.csv", r"row 7: the time 0 .*5 of 48 rows: 7, 16, 25", 43),
        ("null_tm1.csv", r"row 7: the time -1 .*5 of 48 rows: 7, 16, 25", 43),
        ("null_NULL.csv", r"row 2: the user is 'NULL'.*8 of 48 rows: 2, 8, 14.*--drop-missing", 40),
        ("null_N.csv", r"row 2: the user is '\\\\N'.*8 of 48 rows", 40),
        ("null_nan.csv", r"row 2: the user is 'nan'.*8 of 48 rows", 40),
        ("null_notset.csv", r"row 2: the user is '\(not set\)'.*8 of 48 rows", 40),
        ("null_ws.csv", r"row 2: the user is empty \(8 of 48 rows", 40),
        ("nan.jsonl", r"row 1: the user is .*nan.*8 of 48 rows", 40),
        ("finan.parquet", r"row 1: the user is nan.*8 of 48 rows", 40),
        ("mix_s_ms.csv", r"seconds \(first in row 2: 1700003669\) and milliseconds \(first in row 3: 17000181", None),
        ("time_sci_excel.csv", r"rounded \(1\.70E\+09\)", None),
    ],
)
def test_unusable_rows_are_refused_by_name_and_left_out_on_request(
    shared_logs: Path, filename: str, message: str, num_left: int | None
) -> None:
    with pytest.raises(DataError, match=message):
        read_log(shared_logs / filename)
    if num_left is None:
        with pytest.raises(DataError, match=message):
            read_log(shared_logs / filename, cleaning=DROPPING)
        return
    log = read_log(shared_logs / filename, cleaning=DROPPING)
    assert (log.frame.height, log.rows_read) == (num_left, 48)
    assert log.frame["timestamp"].min() > 10**8
    assert any("these rows were left out" in note for note in log.notes)


def test_mixed_units_can_be_narrowed_to_one(shared_logs: Path) -> None:
    log = read_log(shared_logs / "mix_s_ms.csv", cleaning=Cleaning(drop_bad_times=True, time_unit="ms"))
    base = read_log(shared_logs / "base.csv").frame
    assert log.frame.equals(base[1::2])


def test_ids_as_integers_and_floats_are_one_user_each(shared_logs: Path) -> None:
    log = read_log(shared_logs / "intfloat.jsonl")
    assert sorted(log.frame["user"].unique()) == [str(number) for number in range(8)]
    assert "written with '.0' in 24 rows" in log.notes[0]


def ids(values: list) -> tuple[list, list[int], str]:
    found = read_ids(pl.Series(values), "user", SOURCE)
    missing = [] if found.missing is None else found.missing.arg_true().to_list()
    return found.text.to_list(), missing, " ".join(found.notes)


@pytest.mark.parametrize(
    ("values", "text", "missing", "note"),
    [
        pytest.param(["007", "7"], ["007", "7"], [], "leading zeros", id="leading zeros are kept"),
        pytest.param([7, -1], ["7", "-1"], [1], "", id="-1 among positive integers"),
        pytest.param(["7", "-1"], ["7", "-1"], [1], "", id="-1 in text"),
        pytest.param(["a", "-1"], ["a", "-1"], [1], "", id="-1 among words"),
        pytest.param([-7, -1], ["-7", "-1"], [], "", id="-1 among negative integers"),
        pytest.param([1.0, 2.0, None], ["1", "2", None], [2], "", id="floats"),
        pytest.param([Decimal("4.00"), Decimal("5.00")], ["4", "5"], [], "", id="decimals"),
        pytest.param([1.5, 2.0], ["1.5", "2.0"], [], "", id="floats that are no integers"),
        pytest.param([2.0**60, 1.0], [str(2**60), "1"], [], "too large to be exact", id="large floats"),
        pytest.param(["4.0", "a"], ["4.0", "a"], [], "they were kept", id=".0 among words"),
        pytest.param(["4.0", "5"], ["4", "5"], [], "was removed", id=".0 among integers"),
        pytest.param(['"a"', '"b"'], ["a", "b"], [], "in quotes, which were removed", id="all quoted"),
        pytest.param(['"a"', "b"], ['"a"', "b"], [], "begin with a quote in 1 rows", id="some quoted"),
        pytest.param(["N/A", "None", "undefined", "x"], ["N/A", "None", "undefined", "x"], [0, 1, 2], "", id="words"),
        pytest.param([b"\x01\xff", b"\x02"], ["01ff", "02"], [], "", id="bytes"),
        pytest.param(["Nan", "nano", "nullable"], ["Nan", "nano", "nullable"], [0], "", id="similar words"),
    ],
)
def test_ids_become_one_text_per_id(values: list, text: list, missing: list[int], note: str) -> None:
    found, found_missing, notes = ids(values)
    assert (found, found_missing) == (text, missing)
    assert note in notes
    assert bool(note) == bool(notes)


def test_a_column_of_lists_is_refused() -> None:
    with pytest.raises(DataError, match=r"column 'who' have the type List.*--user"):
        read_ids(pl.Series([["a"]]), "user", SOURCE)


def test_skipped_rows_keep_their_numbers_in_messages() -> None:
    raw = pl.DataFrame({"user": ["a", "NULL"], "item": ["x", "y"], "timestamp": [1, 2]})
    source = Source("log.csv", {}, pl.Series([2, 9]))
    with pytest.raises(DataError, match=r"row 9: the user is 'NULL'.*1 of 2 rows: 9\)"):
        clean_interactions(raw, source, Cleaning())


def test_a_log_without_a_usable_row_is_refused() -> None:
    raw = pl.DataFrame({"user": ["NULL", "a"], "item": ["x", ""], "timestamp": [1, 2]})
    with pytest.raises(DataError, match="no usable row"):
        clean_interactions(raw, SOURCE, DROPPING)


def test_an_unknown_time_unit_is_refused() -> None:
    with pytest.raises(DataError, match="time_unit='hours'.*auto, s, ms"):
        Cleaning(time_unit="hours")  # type: ignore[arg-type]


# Identical rows


def test_the_first_of_identical_rows_is_kept_and_a_repeat_at_another_time_stays() -> None:
    rows = [("u", "a", 5), ("v", "a", 5), ("u", "a", 5), ("u", "a", 6), ("u", "b", 5), ("u", "a", 5)]
    frame, removed = collapse_duplicates(pl.DataFrame(rows, schema=SCHEMA, orient="row"))
    assert (frame.rows(), removed) == ([rows[0], rows[1], rows[3], rows[4]], 2)
    finer = pl.DataFrame(rows, schema=SCHEMA, orient="row").with_columns(nanosecond=pl.Series([0, 0, 1, 0, 0, 0]))
    assert collapse_duplicates(finer)[1] == 1


def test_identical_rows_are_kept_on_request(shared_logs: Path, tmp_path: Path) -> None:
    manifest, _ = register(tmp_path / "kept", read_log(shared_logs / "dups.csv"), keep_duplicates=True)
    assert (manifest.num_interactions, manifest.num_identical_rows, manifest.notes) == (144, 0, ())
    collapsed, _ = register(tmp_path / "collapsed", read_log(shared_logs / "dups.csv"))
    assert (collapsed.num_interactions, collapsed.num_identical_rows) == (48, 96)


def test_copies_of_events_do_not_predict_the_validation_item_of_pure_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    rows = [(f"u{u}", f"i{rng.integers(200)}", 10**9 + int(t)) for u in range(300) for t in rng.integers(10**7, size=9)]
    frame = pl.DataFrame([row for row in rows for _ in range(3)], schema=SCHEMA, orient="row")

    def share_repeating_the_last_item(keep_duplicates: bool) -> float:
        """The hit rate at 1 of the scorer that recommends the last train item again."""
        directory = tmp_path / str(keep_duplicates)
        register(directory, Log(frame, {}, frame.height), keep_duplicates=keep_duplicates)
        dataset = PreparedDataset.load(directory)
        return float((dataset.items[dataset.offsets[1:] - 1] == dataset.valid_items).mean())

    assert share_repeating_the_last_item(True) > 0.9
    assert share_repeating_the_last_item(False) < 0.03  # chance: 1 of 200 items


def test_events_within_a_second_are_sorted_by_their_full_time(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "user,item,time\n"
        + "".join(f"u,{item},{1_700_000_000_000 + t}\n" for item, t in zip("abcd", (9, 1, 5, 0), strict=True))
    )
    events = order_events(read_log(tmp_path / "log.csv").frame, PrepareOptions(k_core=1))
    assert [events.item_ids[int(item)] for item in events.items] == ["d", "b", "c", "a"]
    assert split_events(events, 50).test_timestamps.tolist() == [1_700_000_000]


def test_a_user_with_an_implausible_share_of_all_events_is_reported(tmp_path: Path) -> None:
    rows = [("anonymous", f"i{n % 50}", 10**9 + n) for n in range(2_000)]
    rows += [(f"u{n % 500}", f"i{n % 49}", 10**9 + n) for n in range(2_500)]
    manifest, _ = register(tmp_path / "log", Log(pl.DataFrame(rows, schema=SCHEMA, orient="row"), {}, len(rows)))
    assert manifest.notes == (
        "user 'anonymous' has 44% of all interactions: if this id stands for unknown users, remove its rows",
    )


# Commands and the catalogue


def test_data_add_shows_notes_and_the_manifest_keeps_them(shared_logs: Path, tmp_path: Path) -> None:
    home = ["--home", str(tmp_path), "--k-core", "1"]
    runner = CliRunner()
    shown = runner.invoke(app, ["data", "add", "dups", str(shared_logs / "dups.csv"), *home])
    assert shown.exit_code == 0
    assert "note: 96 rows repeat the user, item and time of an earlier row" in shown.output
    assert Catalogue(tmp_path).manifest("dups").num_identical_rows == 96
    for name, file, option in (
        ("kept", "dups.csv", ["--keep-duplicates"]),
        ("missing", "null_NULL.csv", ["--drop-missing"]),
        ("times", "null_t0.csv", ["--drop-bad-times"]),
        ("unit", "unit_ms.csv", ["--time-unit", "ms"]),
    ):
        done = runner.invoke(app, ["data", "add", name, str(shared_logs / file), *option, *home])
        assert done.exit_code == 0, done.output
    assert Catalogue(tmp_path).manifest("kept").num_interactions == 144
    assert Catalogue(tmp_path).manifest("missing").num_interactions == 40


# Any dress of one log


@st.composite
def dresses(draw: st.DrawFn) -> tuple[list[tuple[int, int, int]], pl.DataFrame]:
    """A log of integer ids and seconds, and the same log as another program might have written it."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    rows = [(u, rng.randrange(9), rng.randrange(10**9, 2 * 10**9)) for u in range(1, 6) for _ in range(6)]
    rng.shuffle(rows)
    write_user, write_item = (draw(st.sampled_from(ID_DRESSES)) for _ in range(2))
    write_time = draw(st.sampled_from(TIME_DRESSES))
    columns = {
        "user": [write_user(u, rng) for u, _, _ in rows],
        "item": [write_item(i, rng) for _, i, _ in rows],
        "timestamp": [write_time(t, rng) for _, _, t in rows],
    }
    return rows, pl.DataFrame(columns, strict=False)


ID_DRESSES = [
    lambda n, rng: n,
    lambda n, rng: float(n),
    lambda n, rng: str(n),
    lambda n, rng: rng.choice([f"{n}", f"{n}.0"]),
    lambda n, rng: rng.choice([f"{n}", f" {n}", f"{n}\t"]),
    lambda n, rng: f'"{n}"',
    lambda n, rng: rng.choice([f'"{n}"', f' "{n}.0" ']),
]
TIME_DRESSES = [
    lambda t, rng: t,
    lambda t, rng: str(t),
    lambda t, rng: t * 10**3 + rng.randrange(10**3),
    lambda t, rng: t * 10**6 + rng.randrange(10**6),
    lambda t, rng: str(t * 10**9 + rng.randrange(10**9)),
    lambda t, rng: t + 0.25,
    lambda t, rng: datetime.fromtimestamp(t, UTC),
    lambda t, rng: int(datetime.fromtimestamp(t, UTC).strftime("%Y%m%d%H%M%S")),
    lambda t, rng: f"{t / 86_400 + 25_569:.9f}",
    lambda t, rng: datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%dT%H:%M:%S") + rng.choice(["", "Z", ".5", ",25Z"]),
    lambda t, rng: datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S") + rng.choice(["+00", " UTC", "+0000"]),
    lambda t, rng: datetime.fromtimestamp(t, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"),
]


@settings(max_examples=60)
@given(dressed=dresses())
def test_any_dress_of_a_log_gives_the_same_arrays(
    tmp_path_factory: pytest.TempPathFactory, dressed: tuple[list[tuple[int, int, int]], pl.DataFrame]
) -> None:
    rows, frame = dressed
    folder = tmp_path_factory.mktemp("dress")
    plain = pl.DataFrame([(str(u), str(i), t) for u, i, t in rows], schema=SCHEMA, orient="row")
    _, expected = register(folder / "plain", Log(plain, {}, len(rows)))
    frame.write_parquet(folder / "log.parquet")
    _, arrays = register(folder / "dressed", read_log(folder / "log.parquet"))
    assert arrays == expected


def test_a_stated_unit_that_contradicts_the_magnitude_of_all_times_is_refused(tmp_path: Path) -> None:
    rows = "".join(f"u{n % 3},i{n % 5},{1_700_000_000 + 3600 * n}\n" for n in range(30))
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + rows)
    with pytest.raises(DataError, match="not the time of an event in milliseconds.*30 of 30 rows"):
        read_log(tmp_path / "log.csv", cleaning=Cleaning(time_unit="ms"))
    assert read_log(tmp_path / "log.csv", cleaning=Cleaning(time_unit="s")).frame.height == 30


def test_dates_of_which_only_some_have_a_time_zone_are_noted(tmp_path: Path) -> None:
    times = ["2023-11-14T12:00:00+02:00", "2023-11-14T12:00:00", "2023-11-14 13:00", "2023-11-14"]
    rows = "".join(f"u,i{number},{time}\n" for number, time in enumerate(times))
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + rows)
    notes = read_log(tmp_path / "log.csv").notes
    assert any("a time zone in 1 row and none in 2, which were read as UTC" in note for note in notes)
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + rows.replace("+02:00", ""))
    assert not any("time zone" in note for note in read_log(tmp_path / "log.csv").notes)
