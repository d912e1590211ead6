"""Reading raw logs: formats, guessed columns, and error messages for rows that cannot be used."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtualmle.data.errors import DataError
from virtualmle.data.readers import read_log

ROWS = [("u1", "007", 30), ("u2", "b", 10), ("u1", "c", 20)]


def write(path: Path, text: str | bytes) -> Path:
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def separated(separator: str, header: str = "") -> str:
    return header + "".join(f"{u}{separator}{i}{separator}{t}\n" for u, i, t in ROWS)


def json_lines(user: str = "user", item: str = "item", timestamp: str = "timestamp") -> str:
    return "".join(json.dumps({"other": [1], user: u, item: i, timestamp: t}) + "\n" for u, i, t in ROWS)


@pytest.mark.parametrize(
    ("filename", "text"),
    [
        pytest.param("log.csv", separated(",", "user_id,item_id,timestamp\n"), id="csv with header"),
        pytest.param("log.csv", "\ufeff" + separated(",", "user,item,time\n"), id="csv with byte order mark"),
        pytest.param("log.csv", separated(",", "user,item,time\n").replace("\n", "\r\n"), id="csv with CRLF"),
        pytest.param("log.csv", separated(",", '"user","item","time"\n'), id="csv with quoted header"),
        pytest.param("log.tsv", separated("\t"), id="tsv without header"),
        pytest.param("log.tsv.gz", separated("\t"), id="tsv without header, gzipped"),
        pytest.param("log.csv", separated(",").rstrip("\n"), id="csv without header and last newline"),
        pytest.param("log.inter.tsv", separated("\t", "user_id:token\titem_id:token\ttimestamp:float\n"), id="RecBole"),
        pytest.param("log.jsonl", json_lines(), id="JSON lines"),
        pytest.param("log.json.gz", json_lines("reviewerID", "asin", "unixReviewTime"), id="Amazon, strict"),
        pytest.param(
            "log.json.gz",
            "".join(str({"reviewerID": u, "asin": i, "text": "it's", "unixReviewTime": t}) + "\n" for u, i, t in ROWS),
            id="Amazon, Python literals",
        ),
    ],
)
def test_every_format_gives_the_same_rows_in_file_order(tmp_path: Path, filename: str, text: str) -> None:
    log = read_log(write(tmp_path / filename, text))
    assert log.frame.rows() == ROWS
    assert log.frame.schema == {"user": pl.String, "item": pl.String, "timestamp": pl.Int64}
    assert log.rows_read == len(ROWS)


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    frame = pl.DataFrame(ROWS, schema=["visitorid", "itemid", "timestamp"], orient="row")
    frame.write_parquet(tmp_path / "log.parquet")
    assert read_log(tmp_path / "log.parquet").frame.rows() == ROWS


def test_guessed_columns_are_reported(tmp_path: Path) -> None:
    text = "rating,movieId,userId,timestamp\n5,a,u,1\n"
    log = read_log(write(tmp_path / "log.csv", text))
    assert log.columns == {"user": "userId", "item": "movieId", "timestamp": "timestamp"}
    assert log.frame.rows() == [("u", "a", 1)]


def test_given_columns_override_guesses(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user,buyer,item,when\nx,u,a,1\n")
    assert read_log(path, user="buyer", timestamp="when").frame.rows() == [("u", "a", 1)]


def test_columns_without_a_header_can_be_given_by_number(tmp_path: Path) -> None:
    path = write(tmp_path / "ratings.csv", "u,a,5.0,1\nu,b,3.0,2\n")
    with pytest.raises(DataError, match="column_1.*column_4.*--user"):
        read_log(path)
    log = read_log(path, user="column_1", item="column_2", timestamp="column_4")
    assert log.frame.rows() == [("u", "a", 1), ("u", "b", 2)]


def test_a_given_format_overrides_the_extension(tmp_path: Path) -> None:
    assert read_log(write(tmp_path / "u.data", separated("\t")), format="tsv").frame.rows() == ROWS


def test_numeric_ids_in_json_become_text(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", '{"user": 7, "item": 8, "timestamp": 9}\n')
    assert read_log(path).frame.rows() == [("7", "8", 9)]


@pytest.mark.parametrize(
    ("filename", "content", "message"),
    [
        pytest.param("log.xyz", "a", r"extension.*\.csv", id="unknown extension"),
        pytest.param("log", "a", "--format", id="no extension"),
        pytest.param("log.csv", "", "empty", id="empty file"),
        pytest.param("log.csv", "\n \n", "empty", id="blank file"),
        pytest.param("log.csv", "user,item,timestamp\n", "no rows", id="header only"),
        pytest.param("log.jsonl", "", "empty", id="empty JSON lines"),
        pytest.param("log.csv", "who,what,timestamp\na,b,1\n", "'who'.*--user", id="no user column"),
        pytest.param("log.csv", "user,item\na,b\n", "timestamp.*'user', 'item'", id="no time column"),
        pytest.param("log.csv", "user,item,time\na,b,1\na,,2\n", "row 3: the item is empty", id="no item"),
        pytest.param("log.csv", "user,item,time\na,b,1\n\n,b,2\n", "row 4: the user is empty", id="after a blank row"),
        pytest.param("log.tsv", "a\tb\t100\na\tb\n", "row 2: 2 fields instead of 3", id="too few fields"),
        pytest.param("log.tsv", "a\tb\t100\na\tb\t2\t3\n", "row 2: 4 fields instead of 3", id="too many fields"),
        pytest.param("log.csv", "user,item,time\na,b,1\na,b,soon\n", "row 3: the time 'soon'.*ISO", id="bad time"),
        pytest.param("log.csv", "user,item,time\na,b,05/06/2020\n", "row 2: the time '05/06/2020'", id="unclear date"),
        pytest.param("log.csv", "user,item,time\na,b,nan\n", "row 2: the time 'nan'", id="NaN time"),
        pytest.param("log.csv", b"user,item,time\na,b,1\n\xff,b,1\n", "row 3: not UTF-8", id="not UTF-8"),
        pytest.param("log.csv", 'user,item,time\n"a,b,1\n', "row 2: a stray quote.*--no-quotes", id="unclosed quote"),
        pytest.param("log.jsonl", '{"user":1,"item":2,"time":3}\n[1]\n', "row 2: not a JSON object", id="JSON list"),
        pytest.param("log.jsonl", '{"user":1,"item":2,"time":3}\n{"us\n', "row 2: not a JSON object", id="cut JSON"),
        pytest.param(
            "log.jsonl", '{"user":1,"item":2,"time":3}\n{"user":1}\n', "row 2: the item is empty", id="missing key"
        ),
        pytest.param("log.parquet", "PAR1 not really", "not a readable Parquet", id="not Parquet"),
        pytest.param("log.csv.gz", b"user,item,time\na,b,1\n", "", id="plain text named gz is read"),
    ],
)
def test_an_unreadable_row_is_reported_with_its_number(
    tmp_path: Path, filename: str, content: str | bytes, message: str
) -> None:
    path = tmp_path / filename
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    if not message:
        assert read_log(path).frame.rows() == [("a", "b", 1)]
        return
    with pytest.raises(DataError, match=message):
        read_log(path)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataError, match="no file"):
            read_log(path)


@pytest.mark.parametrize("filename", ["log.tsv.gz", "log.jsonl.gz"])
def test_a_truncated_or_corrupt_gzip_file_is_refused(tmp_path: Path, filename: str) -> None:
    complete = gzip.compress((separated("\t") if "tsv" in filename else json_lines()).encode() * 2000)
    path = tmp_path / filename
    path.write_bytes(complete[: len(complete) // 2])
    with pytest.raises(DataError, match="not a complete gzip file"):
        read_log(path)
    path.write_bytes(complete[:-8] + bytes(8))  # the checksum at the end
    with pytest.raises(DataError, match="not a complete gzip file"):
        read_log(path)


def is_kept(text: str) -> bool:
    """Whether an id is kept as it is: blanks around ids, and quotes around all ids, are removed."""
    return text == text.strip() and not text.startswith('"')


@given(
    st.lists(
        st.tuples(
            st.text("ab ,\"'é\n0", min_size=1, max_size=6).filter(is_kept),
            st.text("xyz,\t9", min_size=1, max_size=4).filter(is_kept),
            st.integers(10**8, 2**31 - 2),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_any_text_survives_a_csv_and_json_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    folder = tmp_path_factory.mktemp("logs", numbered=True)
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "timestamp": pl.Int64}, orient="row")
    frame.write_csv(folder / "log.csv")
    frame.write_ndjson(folder / "log.jsonl")
    assert read_log(folder / "log.csv").frame.rows() == rows
    assert read_log(folder / "log.jsonl").frame.rows() == rows
