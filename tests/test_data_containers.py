"""Logs in containers, from standard input, and in directories; and files that are no log."""

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from virtualmle.data.errors import DataError
from virtualmle.data.readers import read_log

TABLE = b"user_id,item_id,timestamp\nu,a,1700000001\nv,b,1700000002\n"
LINES = b'{"user_id": "u", "item_id": "a", "timestamp": 1700000001}\n'
ROWS = [("u", "a", 1700000001), ("v", "b", 1700000002)]
# TABLE as `zstd` packs it; the standard library cannot write this format before Python 3.14
ZSTANDARD = bytes.fromhex(
    "28b52ffd04588d01008402757365725f69642c6974656d5f69642c74696d657374616d700a752c612c313730310a762c6232"
    "0a020032b7ce009e9c5ade00"
)


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, TABLE)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("log.csv")
        member.size = len(TABLE)
        archive.addfile(member, io.BytesIO(TABLE))
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".csv", ".csv.packed"])
@pytest.mark.parametrize(
    ("content", "container"),
    [
        (gzip.compress(TABLE), "gzip"),
        (bz2.compress(TABLE), "bzip2"),
        (lzma.compress(TABLE), "xz"),
        (ZSTANDARD, "Zstandard"),
        (zipped("export/log.csv", "__MACOSX/._log.csv"), "zip"),
        (bz2.compress(gzip.compress(TABLE)), "gzip in bzip2"),
    ],
    ids=["gzip", "bzip2", "xz", "Zstandard", "zip", "nested"],
)
def test_a_container_is_recognised_by_its_content(tmp_path: Path, suffix: str, content: bytes, container: str) -> None:
    (tmp_path / f"log{suffix}").write_bytes(content)
    log = read_log(tmp_path / f"log{suffix}")
    assert log.frame.rows() == ROWS
    assert log.notes == (f"unpacked from {container}",)


@pytest.mark.parametrize(
    ("filename", "content", "message"),
    [
        pytest.param("log.csv.bz2", bz2.compress(TABLE)[:-9], "not a complete bzip2 file", id="cut bzip2"),
        pytest.param("log.csv.xz", lzma.compress(TABLE)[:-9], "not a complete xz file", id="cut xz"),
        pytest.param("log.csv.zst", ZSTANDARD[:-4], "not a complete Zstandard file", id="cut Zstandard"),
        pytest.param("log.csv.zip", zipped("log.csv")[:-30], "not a complete zip file", id="cut zip"),
        pytest.param("log.zip", zipped("a.csv", "b.csv"), "2 files .*'a.csv', 'b.csv'.*unzip log.zip", id="two files"),
        pytest.param("log.csv", zipped("xl/sheet1.xml", "b.xml"), "Excel workbook.*save the sheet", id="xlsx"),
        pytest.param("log.tar.gz", tarred(), "tar archive.*tar xf log.tar.gz", id="tar"),
        pytest.param("log.csv", b"7z\xbc\xaf\x27\x1c...", "7-Zip archive.*7z x log.csv", id="7-Zip"),
        pytest.param("log.csv", b"SQLite format 3\0...", "SQLite database.*sqlite3 -csv", id="SQLite"),
    ],
)
def test_what_is_not_read_is_named_with_the_way_out(
    tmp_path: Path, filename: str, content: bytes, message: str
) -> None:
    (tmp_path / filename).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_log(tmp_path / filename)


def test_the_format_of_a_zip_archive_is_that_of_its_member(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "log.zip", "w") as archive:
        archive.writestr("log.jsonl", LINES)
    assert read_log(tmp_path / "log.zip").frame.rows() == ROWS[:1]


def test_parquet_is_recognised_by_its_content(tmp_path: Path) -> None:
    pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(tmp_path / "log.csv")
    assert read_log(tmp_path / "log.csv").frame.rows() == ROWS


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_standard_input_is_read_if_the_format_is_named(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    command = [sys.executable, "-P", "-m", "virtualmle", "data", "add", "shop", "-", "--k-core", "1"]
    environment = {**os.environ, "VIRTUALMLE_HOME": str(tmp_path)}
    content = pack(b"user_id,item_id,timestamp\n" + b"".join(b"u,i%d,%d\n" % (n, 1700000000 + n) for n in range(5)))
    for options, code in (([], 1), (["--format", "csv"], 0)):
        done = subprocess.run(
            [*command, *options, "--home", str(tmp_path)],
            input=content,
            capture_output=True,
            env=environment,
            check=False,
        )
        assert done.returncode == code, done.stderr
    assert b"1 user, 5 items, 5 interactions" in done.stdout


def test_a_directory_of_parquet_parts_is_one_log(tmp_path: Path) -> None:
    for number, row in enumerate(reversed(ROWS)):
        part = tmp_path / "log" / f"day={2 - number}" / "part-0.parquet"
        part.parent.mkdir(parents=True)
        pl.DataFrame([row], schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(part)
    (tmp_path / "log" / "_SUCCESS").touch()
    hidden = tmp_path / "log" / ".virtualmle" / "user_ids.parquet"
    hidden.parent.mkdir()
    pl.DataFrame({"original_id": ["u"]}).write_parquet(hidden)
    log = read_log(tmp_path / "log")
    assert log.frame.rows() == ROWS
    assert "2 Parquet parts" in log.notes[0]
    pl.DataFrame({"user_id": ["u"], "item_id": ["a"]}).write_parquet(tmp_path / "log" / "other.parquet")
    with pytest.raises(DataError, match="'other.parquet' lacks the column 'timestamp'"):
        read_log(tmp_path / "log")


def test_lists_of_items_and_times_become_one_row_per_event(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    columns = {"user_id": ["u", "n", "v"], "items": [["a", "b"], [], ["c"]], "timestamps": [[1, 2], [], [3]]}
    pl.DataFrame(columns).write_parquet(path)
    log = read_log(path, item="items", timestamp="timestamps")
    assert log.frame.rows() == [("u", "a", 1), ("u", "b", 2), ("v", "c", 3)]
    pl.DataFrame({**columns, "timestamps": [[1, 2], [], [3, 4]]}).write_parquet(path)
    with pytest.raises(DataError, match="row 3: 1 items but 2 times"):
        read_log(path, item="items", timestamp="timestamps")
    pl.DataFrame({"user_id": [["u"]], "item_id": ["a"], "timestamp": [1]}).write_parquet(path)
    with pytest.raises(DataError, match=r"'user_id' is of type List\(String\), which is no user"):
        read_log(path)
