"""Small logs as real exports look, in ../shared/cases/logs: its README says what must come out of each."""

from pathlib import Path

import pytest

from virtualmle.data.errors import DataError
from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import ARRAYS, PrepareOptions, array_file
from virtualmle.data.readers import Log, read_log


def arrays_of(log: Log, folder: Path) -> bytes:
    prepare(log, "case", folder, PrepareOptions(k_core=1), bytes(range(32)))
    return b"".join((folder / array_file(name)).read_bytes() for name in ARRAYS)


@pytest.mark.parametrize(
    ("filename", "note"),
    [
        ("arr.json", ""),
        ("blank.jsonl", ""),
        ("blank_end.csv", ""),
        ("bom.jsonl", ""),
        ("colo.json", ""),
        ("comment.csv", "comment lines"),
        ("excel_sep.csv", "names the separator ','"),
        ("itemboth.csv", "'item_id', not from 'item'"),
        ("list.parquet", "lists of items"),
        ("log.csv.zip", "zip"),
        ("q_after_space.csv", ""),
        ("ratings.dat", "separator is '::'"),
        ("rq.tsv", ""),
        ("semi.csv", "separator is ';'"),
        ("tab.csv", r"separator is '\t'"),
        ("userboth.csv", "'user_id', not from 'user'"),
        ("zipped.csv", "zip"),
    ],
)
def test_a_log_in_another_form_gives_the_arrays_of_the_plain_one(
    shared_logs: Path, tmp_path: Path, filename: str, note: str
) -> None:
    log, plain = read_log(shared_logs / filename), read_log(shared_logs / "base.csv")
    assert plain.notes == ()
    assert log.frame.equals(plain.frame)
    assert arrays_of(log, tmp_path / "case") == arrays_of(plain, tmp_path / "plain")
    assert note in " ".join(log.notes)


@pytest.mark.parametrize(("filename", "item"), [("date_tsms.csv", "item_id"), ("kuairand.csv", "video_id")])
def test_unix_times_are_preferred_to_dates(shared_logs: Path, filename: str, item: str) -> None:
    log, plain = read_log(shared_logs / filename), read_log(shared_logs / "base.csv")
    assert log.columns["item"] == item
    assert log.columns["timestamp"].endswith("_ms")
    assert "not from 'date'" in " ".join(log.notes)
    assert log.frame.drop("timestamp").equals(plain.frame.drop("timestamp"))


def test_binary_ids_become_hexadecimal(shared_logs: Path) -> None:
    log, plain = read_log(shared_logs / "uuid.parquet"), read_log(shared_logs / "base.csv")
    assert log.frame["user"].n_unique() == plain.frame["user"].n_unique()
    assert log.frame["user"].str.contains(r"^[0-9a-f]{32}$").all()
    assert log.frame.drop("user").equals(plain.frame.drop("user"))


def test_columns_without_a_header_are_given_by_number(shared_logs: Path) -> None:
    path = shared_logs / "lastfm.tsv"
    with pytest.raises(
        DataError, match=r"the user .*the item .*the timestamp; it has no header.*--user 1 --item 3 --timestamp 2$"
    ):
        read_log(path)
    for header in (None, False):
        log = read_log(path, user="1", item="5", timestamp="2", header=header)
        assert (log.frame.height, log.frame["user"].n_unique()) == (48, 8)


@pytest.mark.parametrize(
    ("filename", "message"),
    [
        ("datetime2.csv", "'date' and 'time' are a date and a time of day"),
        ("dur.parquet", r"'timestamp' is of type Duration"),
        ("sur.jsonl", r"row 1, row 2, row 3: 'user_id' holds half of a surrogate pair.*48 bad rows"),
        ("swallow.csv", r"row 7: a quote opens a cell that swallows the rows up to 11"),
        ("tod.parquet", r"'timestamp' is of type Time"),
        ("uir.csv", r"lacks a column for the timestamp; it has no header"),
    ],
)
def test_a_log_that_cannot_be_read_is_refused_in_one_line(shared_logs: Path, filename: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_log(shared_logs / filename)
    assert "\n" not in str(caught.value)


def test_stray_quotes_can_be_read_as_text(shared_logs: Path) -> None:
    log = read_log(shared_logs / "swallow.csv", quotes=False)
    assert log.frame.equals(read_log(shared_logs / "base.csv").frame)
