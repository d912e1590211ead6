"""JSON logs: lines, arrays, one list per column, and rows that cannot be used."""

import json
from pathlib import Path

import pytest

from virtualmle.data.errors import DataError
from virtualmle.data.readers import read_log

ROWS = [("u", "a", 1700000001), ("v", "b", 1700000002), ("u", "c", 1700000003)]
RECORDS = [{"user_id": user, "item_id": item, "timestamp": time} for user, item, time in ROWS]
COLUMNS = {name: [record[name] for record in RECORDS] for name in RECORDS[0]}
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(json.dumps(RECORDS), id="an array"),
        pytest.param(json.dumps(RECORDS, indent=2), id="an indented array"),
        pytest.param("\n[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]\n", id="an array of lines"),
        pytest.param("".join(json.dumps(record, indent=1) + "\n" for record in RECORDS), id="indented objects"),
        pytest.param(json.dumps(COLUMNS), id="lists by column"),
        pytest.param(json.dumps(COLUMNS, indent=1), id="indented lists by column"),
        pytest.param(json.dumps({k: dict(enumerate(v)) for k, v in COLUMNS.items()}), id="objects by column"),
        pytest.param("\n" + LINES.replace("\n", "\n\n"), id="blank lines"),
        pytest.param("\ufeff" + LINES, id="byte order mark"),
        pytest.param(LINES.encode("utf-16"), id="UTF-16"),
    ],
)
@pytest.mark.parametrize("filename", ["log.json", "log.jsonl", "log.txt"])
def test_every_layout_gives_the_same_rows(tmp_path: Path, filename: str, content: str | bytes) -> None:
    (tmp_path / filename).write_bytes(content.encode() if isinstance(content, str) else content)
    if filename == "log.txt":
        assert read_log(tmp_path / filename, format="jsonl").frame.rows() == ROWS
    else:
        assert read_log(tmp_path / filename).frame.rows() == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(json.dumps(RECORDS)[:-1], "no closing bracket", id="cut after an element"),
        pytest.param(json.dumps(RECORDS)[:-9], "row 3: broken JSON", id="cut within an element"),
        pytest.param(json.dumps({**COLUMNS, "item_id": ["a"]}), "differ in length .*'item_id' 1", id="unequal lists"),
        pytest.param(
            json.dumps({"data": RECORDS * 1000}),
            "it has 'data'; name them, for example with --user data --item COLUMN",
            id="a wrapped array",
        ),
        pytest.param("user_id,item_id,timestamp\n" * 9, r"not a JSON object.*\(9 bad rows in all\)", id="a CSV file"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "log.json").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_log(tmp_path / "log.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{cut", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b'{"user_id": "\xff"}', "not UTF-8"),
        (b'{"user_id": ["' + b"x" * 999 + b'"], "item_id": 1, "timestamp": 1}', r"'user_id' is \['xxx"),
        (b'{"user_id": true, "item_id": 1, "timestamp": 1}', "'user_id' is True"),
        (rb'{"user_id": "u\ud83d", "item_id": 1, "timestamp": 1}', "'user_id' holds half of a surrogate pair"),
    ],
)
def test_bad_lines_are_counted_and_named_and_skipped_on_request(tmp_path: Path, bad: bytes, reason: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(LINES.encode() + bad + b"\n\n" + LINES.encode() + bad + b"\n")
    with pytest.raises(DataError, match=rf"row 4.*{reason}.*\(2 bad rows in all\)") as caught:
        read_log(path)
    assert len(str(caught.value)) < 400
    log = read_log(path, skip_bad_rows=True)
    assert log.frame.rows() == ROWS * 2
    assert "2 bad rows skipped" in log.notes[0]
