"""Kinds of logs beside the shared cases: what they hold is read, refused with advice, or reported; never changed."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from virtualmle.data.cleaning import Cleaning
from virtualmle.data.errors import DataError
from virtualmle.data.readers import Log, read_log

ROWS = [(f"u{row % 3}", f"i{row}", 1_700_000_000 + 86_400 * row) for row in range(12)]


def table(rows: list[tuple[object, ...]], header: str = "user_id,item_id,timestamp", separator: str = ",") -> str:
    lines = [header.split(","), *rows]
    return "".join(separator.join(map(str, cells)) + "\n" for cells in lines)


def read(folder: Path, text: str | bytes, name: str = "log.csv", **options: object) -> Log:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return read_log(folder / name, **options)  # type: ignore[arg-type]


def test_gzip_in_gzip_is_read(tmp_path: Path) -> None:
    log = read(tmp_path, gzip.compress(gzip.compress(table(ROWS).encode())), "log.csv.gz")
    assert log.frame.rows() == ROWS
    assert log.notes == ("unpacked from gzip in gzip",)


@pytest.mark.parametrize("separator", ["\x01", "^", "~"])
def test_separators_that_look_like_the_start_of_a_compressed_stream(tmp_path: Path, separator: str) -> None:
    assert read(tmp_path, table(ROWS, separator=separator), separator=separator).frame.rows() == ROWS


@pytest.mark.parametrize("notation", ["%d %b %Y %H:%M:%S", "%a %b %d %H:%M:%S +0000 %Y", "%Y/%m/%d %H:%M"])
@pytest.mark.parametrize("closing", ['"Deluxe', 'Deluxe"'])
def test_rows_that_a_quote_swallows_are_found_in_every_notation_of_times(
    tmp_path: Path, notation: str, closing: str
) -> None:
    titles = {3: '"Deluxe', 9: closing}
    rows = [
        (*row[:2], datetime.fromtimestamp(row[2], UTC).strftime(notation), titles.get(number, "plain"))
        for number, row in enumerate(ROWS)
    ]
    with pytest.raises(DataError, match="row 5: a quote opens a cell that swallows the rows up to 11"):
        read(tmp_path, table(rows, "user_id,item_id,timestamp,title"), skip_bad_rows=True)


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (table(ROWS).encode("utf-16-le"), "UTF-16 text .* iconv -f UTF-16LE"),
        (table(ROWS).encode("utf-16-be"), "UTF-16 text .* iconv -f UTF-16BE"),
        (table(ROWS).encode("utf-32"), "iconv -f UTF-32"),
        (table(ROWS).replace("i3", "\xe9").encode("latin-1"), "row 5: .*iconv -f LATIN1"),
        (b"%PDF-1.4\n", "a PDF document"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_refusals_say_what_to_do(tmp_path: Path, content: bytes, advice: str) -> None:
    with pytest.raises(DataError, match=advice):
        read(tmp_path, content)


@pytest.mark.parametrize("epoch", [62_135_596_800, 11_644_473_600])
def test_ticks_of_100_ns_are_not_taken_for_nanoseconds(tmp_path: Path, epoch: int) -> None:
    text = table([(user, item, (time + epoch) * 10**7) for user, item, time in ROWS])
    with pytest.raises(DataError, match="unknown unit"):
        read(tmp_path, text)
    assert "nanoseconds" in read(tmp_path, text, cleaning=Cleaning(time_unit="ns")).notes[0]


@pytest.mark.parametrize("zone", ["+99", "+14:90", "-24"])
def test_impossible_zones_cannot_be_read(tmp_path: Path, zone: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path, table([(user, item, f"2024-05-31T12:00:00{zone}") for user, item, _ in ROWS]))


def test_minus_one_among_ids_that_are_text_is_a_missing_id(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the user is '-1', which stands for a missing id"):
        read(tmp_path, table([("-1", "i", 1_700_000_000), *ROWS]))
    assert read(tmp_path, table([("-1", "i", 1_700_000_000), ("-2", "i", 1_700_000_000), *ROWS])).frame.height == 14


@pytest.mark.parametrize(
    ("ids", "note"),
    [
        (("007", "7", "8"), "1 of 3 differ from another one only in leading zeros"),
        (("Ann", "ann", "e\u0301", "\xe9", "x\u200b", "x"), "3 of 6 differ"),
        (("1.23E+18", "1.24E+18", "7"), "2 of 3 are in scientific notation"),
    ],
)
def test_ids_that_may_be_one_id_are_reported_and_kept(tmp_path: Path, ids: tuple[str, ...], note: str) -> None:
    log = read(tmp_path, table([(user, "i", 1_700_000_000) for user in ids]))
    assert log.frame["user"].to_list() == list(ids)
    assert note in log.notes[0]


def test_ids_of_one_notation_need_no_note(tmp_path: Path) -> None:
    assert read(tmp_path, table(ROWS)).notes == ()


def test_the_time_of_a_person_or_an_item_is_not_that_of_the_event(tmp_path: Path) -> None:
    rows = [(user, item, "1980-05-31", "2001-01-01", time) for user, item, time in ROWS]
    log = read(tmp_path, table(rows, "user_id,item_id,birth_date,release_date,when"))
    assert log.columns["timestamp"] == "when"


def test_a_given_name_of_two_columns_is_refused(tmp_path: Path) -> None:
    text = table([(user, "x", item, time) for user, item, time in ROWS], "user_id,a,a,time")
    with pytest.raises(DataError, match="the columns 2 and 3 are all called 'a'; choose one with --item N"):
        read(tmp_path, text, item="a")
    assert read(tmp_path, text, item="3").frame.rows() == ROWS


def test_every_array_of_a_file_is_read(tmp_path: Path) -> None:
    pages = [[dict(zip(("user_id", "item_id", "timestamp"), row, strict=True)) for row in part]
             for part in (ROWS[:5], [], ROWS[5:])]  # fmt: skip
    log = read(tmp_path, "\n".join(map(json.dumps, pages)), "log.json")
    assert log.frame.rows() == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"user_id": "a"}]\nmore', "after row 1: there is text after the closing bracket"),
        ('[\n{"user_id": "\xe9"}]'.encode("latin-1"), "line 2: .*iconv -f LATIN1"),
        (b'[{"user_id": "a"}', "there is no closing bracket"),
    ],
)
def test_an_array_that_is_not_read_to_its_end_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, content, "log.json")


def test_a_table_with_an_unknown_separator_is_refused_with_the_option(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'user_id~item_id~timestamp'.*--separator"):
        read(tmp_path, table(ROWS, separator="~"))
