"""Text tables: separators, headers, comments, quotes that swallow rows, and rows that cannot be parsed."""

from pathlib import Path

import pytest

from virtualmle.data.errors import DataError
from virtualmle.data.readers import read_log

T = 1_700_000_000
ROWS = [(f"u{n % 3}", f"i{n}", T + n) for n in range(5)]
BODY = "".join(f"{user},{item},{time}\n" for user, item, time in ROWS)
TABLE = "user,item,time\n" + BODY


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("filename", "content", "note"),
    [
        pytest.param("log.txt", TABLE.replace(",", "|"), "separator is '|'", id="pipes"),
        pytest.param("log.tsv", TABLE, "separator is ','", id="commas in a TSV file"),
        pytest.param("log.dat", BODY.replace(",", "::"), "separator is '::'", id="double colons"),
        pytest.param("log.txt", BODY.replace(",", " "), "separator is ' '", id="blanks"),
        pytest.param("log.csv", "sep=;\n" + TABLE.replace(",", ";"), "separator ';'", id="a line that names it"),
        pytest.param("log.csv", "# a\n#b\n\n" + TABLE, "comment lines", id="comments"),
        pytest.param("log.csv", TABLE.replace("u1,i1", "\nu1,i1") + " \n\n", "blank line", id="blank lines"),
        pytest.param("log.csv", "#" + TABLE, "", id="a header that starts with #"),
        pytest.param("log.csv", TABLE.replace("\n", ",\n"), "", id="rows end with a separator"),
        pytest.param("log.csv", BODY.replace("\n", ",\n"), "no header", id="no header, rows end with a separator"),
        pytest.param("log.csv", TABLE.replace("\n", "\r"), "", id="carriage returns"),
        pytest.param("log.csv", TABLE.encode("utf-16"), "", id="UTF-16"),
        pytest.param("log.csv", BODY, "no header", id="no header"),
    ],
)
def test_the_dialect_is_detected_and_reported(tmp_path: Path, filename: str, content: str | bytes, note: str) -> None:
    log = read_log(write(tmp_path / filename, content))
    assert log.frame.rows() == ROWS
    assert note in " ".join(log.notes)
    assert bool(log.notes) == bool(note)


@pytest.mark.parametrize("separator", ["¦", "::", "tab", "\\t", "space", "%"])
def test_a_given_separator_overrides_the_detected_one(tmp_path: Path, separator: str) -> None:
    written = {"tab": "\t", "\\t": "\t", "space": " "}.get(separator, separator)
    assert read_log(write(tmp_path / "log.csv", TABLE.replace(",", written)), separator=separator).frame.rows() == ROWS
    with pytest.raises(DataError, match="separator='' cannot"):
        read_log(tmp_path / "log.csv", separator="")


def test_a_header_is_recognised_by_name_and_content(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "who,what,when\n" + BODY)
    assert read_log(path, user="1", item="2", timestamp="3").columns == {
        "user": "who", "item": "what", "timestamp": "when",
    }  # fmt: skip
    assert read_log(path, user="who", item="what").frame.rows() == ROWS
    with pytest.raises(DataError, match="row 1: the time 'when'"):
        read_log(path, user="1", item="2", timestamp="3", header=False)
    dated = write(tmp_path / "dated.csv", "a,x,2024-01-01T10:00\nb,y,2024-01-02T10:00\n")
    assert read_log(dated).frame.height == 2
    assert read_log(dated, header=True, user="1", item="2", timestamp="3").frame.height == 1


def test_without_a_header_small_numbers_are_times_if_they_count_the_events_of_a_user(tmp_path: Path) -> None:
    order = write(tmp_path / "order.csv", "u,a,0\nu,b,1\nv,a,0\nu,c,2\n")
    assert read_log(order).frame["timestamp"].to_list() == [0, 1, 0, 2]
    for filename, text in (("ratings.csv", "u,a,3\nu,b,5\nu,c,3\n"), ("short.csv", "u,a,3\nv,b,5\n")):
        with pytest.raises(DataError, match="lacks a column for the timestamp"):
            read_log(write(tmp_path / filename, text))


@pytest.mark.parametrize("quotes", [None, False])
def test_hash_signs_of_ids_are_no_comments(tmp_path: Path, quotes: bool | None) -> None:
    path = write(tmp_path / "log.csv", f"#a,x,{T}\n#b,y,{T}\n")
    assert read_log(path, quotes=quotes).frame["user"].to_list() == ["#a", "#b"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f'text,user,item,time\n"good\nthing",u,i,{T}\n"fine",v,j,{T}\n', id="first column"),
        pytest.param(
            f'user,text,item,time\nu,"a, b, c, d\ne, f, g, h\n\n""i""",i,{T}\nv,x,j,{T}\n', id="commas within"
        ),
        pytest.param(f'user,item,time,text\nu,i,{T},"good\nthing"\nv,j,{T},"fine"\n', id="last column"),
        pytest.param(f'user,item,time,text\nu,i,{T},"good\nthing"\nv,j,{T},\n', id="last column, later empty"),
    ],
)
def test_quoted_line_breaks_are_part_of_a_cell(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "log.csv", text)
    assert read_log(path).frame.rows() == [("u", "i", T), ("v", "j", T)]
    end = text.count("\n")
    path.write_text(text.replace(f"v,j,{T}", f"v,,{T}").replace(f"v,x,j,{T}", f"v,x,,{T}"))
    with pytest.raises(DataError, match=f"row {end}: the item is empty"):
        read_log(path)


@pytest.mark.parametrize(
    ("text", "row"),
    [
        pytest.param(f'title,user,item,time\n"T,u,i,{T}\nT,v,i,{T}\nT,w,i,{T}\n"T,x,i,{T}\n', 2, id="first column"),
        pytest.param(f'title,user,item,time\nT,u,i,{T}\n"T,v,i,{T}\n"T,x,i,{T}\n', 3, id="no complete row within"),
        pytest.param(f'user,item,time,title\nu,i,{T},"T\nv,j,{T},"T\nw,j,{T},T\n', 2, id="last column"),
        pytest.param(f'user,item,time,title\nu,i,{T},T\nv,j,{T},"T\nw,j,{T},T\n', 3, id="to the end of the file"),
    ],
)
def test_a_quote_that_swallows_rows_is_an_error_with_its_row(tmp_path: Path, text: str, row: int) -> None:
    path = write(tmp_path / "log.csv", text)
    for skip in (False, True):
        with pytest.raises(DataError, match=rf"row {row}: a quote opens a cell that swallows.*--no-quotes"):
            read_log(path, skip_bad_rows=skip)
    assert read_log(path, quotes=False).frame.height == text.count("\n") - 1


def test_an_endless_quote_is_an_error_with_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", TABLE + f'"u,i,{T}\n' + BODY * 3000)
    with pytest.raises(DataError, match=r"row 7: .*a quote is not closed"):
        read_log(path)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(b"u0,i9\n", "2 fields instead of 3", id="too few cells"),
        pytest.param(b"u0,i9,1700000000,x\n", "4 fields instead of 3", id="too many cells"),
        pytest.param(b"u0,i9,1700000000,x,y,z\n", "6 fields instead of 3", id="many more cells"),
        pytest.param(b"# comment\n", "1 fields instead of 3", id="a comment"),
        pytest.param(b"\xff,i9,1700000000\n", "not UTF-8", id="Latin-1"),
        pytest.param(b'"u"0,i9,1700000000\n', "a stray quote", id="stray quote"),
    ],
)
def test_bad_rows_are_counted_and_named_and_skipped_on_request(tmp_path: Path, bad: bytes, reason: str) -> None:
    lines = TABLE.encode().splitlines(keepends=True)
    path = write(tmp_path / "log.csv", b"".join([*lines[:3], bad, lines[3], bad, bad, b"\n", bad, *lines[4:]]))
    with pytest.raises(
        DataError, match=rf"row 4, row 6, row 7: {reason}.*\(4 bad rows in all\).*--skip-bad-rows"
    ) as caught:
        read_log(path)
    for advice in ("infer_schema_length", "ignore_errors", "truncate_ragged_lines", "\n"):
        assert advice not in str(caught.value)
    log = read_log(path, skip_bad_rows=True)
    assert log.frame.rows() == ROWS
    assert "4 bad rows skipped (row 4, row 6, row 7" in " ".join(log.notes)
    with path.open("ab") as file:
        file.write(b"u0,,1700000000\n")
    with pytest.raises(DataError, match="row 12: the item is empty"):  # rows are counted as in the file
        read_log(path, skip_bad_rows=True)


@pytest.mark.parametrize(
    ("line", "user", "item", "timestamp"),
    [
        pytest.param('x,y;p;;{time};"A ""title"", row 0; yes"', "1", "2", "4", id="a quoted title"),
        pytest.param('"p"\t"x,y"\t"{time}"\t"A ""title"", row 0; yes"', "2", "1", "3", id="all cells quoted"),
        pytest.param("x,,y;p;{time}", "1", "2", "3", id="two commas in an id"),
        pytest.param("2020-09-13T12:26:40;p;x,,y", "3", "2", "1", id="two commas in an id after a date"),
    ],
)
def test_another_separator_in_every_row_is_part_of_an_id(
    tmp_path: Path, line: str, user: str, item: str, timestamp: str
) -> None:
    rows = [line.format(time=1_600_000_000 + number) for number in range(4)]
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    frame = read_log(tmp_path / "log.csv", user=user, item=item, timestamp=timestamp).frame
    assert frame["user"].unique().item().startswith("x,") and frame["item"].unique().item() == "p"
