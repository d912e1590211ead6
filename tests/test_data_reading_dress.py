"""A known log in a random admissible dress gives the same frame and the same prepared arrays, whatever the dress."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import ARRAYS, PrepareOptions, array_file
from virtualmle.data.readers import Log, read_log

FIRST_TIME = 1_600_000_000
Rows = list[tuple[str, str, int]]
NAMES = {
    "user": ("user_id", "userId", "user", "customer_id", "reviewerID", "client"),
    "item": ("item_id", "itemId", "item", "sku", "asin", "movie_id", "article"),
    "timestamp": ("timestamp", "time", "ts", "event_time", "unixReviewTime"),
}
EXTRA = {"rating": lambda row: row % 5 + 1, "title": lambda row: f'A "title", row {row}; yes', "empty": lambda row: ""}
NOTATIONS: dict[str, Callable[[int], object]] = {
    "s": int,
    "ms": lambda time: time * 10**3,
    "us": lambda time: time * 10**6,
    "ns": lambda time: time * 10**9,
    "ISO": lambda time: datetime.fromtimestamp(time, UTC).isoformat(),
    "UTC": lambda time: f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S,000 UTC}",
    "compact": lambda time: int(f"{datetime.fromtimestamp(time, UTC):%Y%m%d%H%M%S}"),
    "RFC 2822": lambda time: f"{datetime.fromtimestamp(time, UTC):%a, %d %b %Y %H:%M:%S} GMT",
}
SEPARATORS = {".csv": ",;|\t", ".tsv": "\t", ".txt": ",;|\t"}


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("member.bin", content)
    return buffer.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zip": zipped,
}


@dataclass(frozen=True)
class Dress:
    """How a log is written down."""

    suffix: str
    names: dict[str, str]  # role → column
    order: list[str]  # roles and extra columns
    separator: str
    quoting: int
    line_end: str
    encoding: str
    opening: str  # what precedes the header
    header: bool
    blank_lines: bool
    packer: str
    notation: str  # of times

    def write(self, folder: Path, rows: Rows) -> Path:
        table = [self._record(number, row) for number, row in enumerate(rows)]
        path = folder / f"log{self.suffix}{self.packer}"
        path.write_bytes(PACKERS[self.packer](self._content(table)))
        return path

    def _record(self, number: int, row: tuple[str, str, int]) -> dict[str, object]:
        values = dict(zip(NAMES, (*row[:2], NOTATIONS[self.notation](row[2])), strict=True))
        return {self.names.get(name, name): values.get(name, EXTRA.get(name, bool)(number)) for name in self.order}

    def _content(self, table: list[dict[str, object]]) -> bytes:
        if self.suffix == ".parquet":
            buffer = io.BytesIO()
            pl.DataFrame(table).write_parquet(buffer)
            return buffer.getvalue()
        gap = self.line_end if self.blank_lines else ""
        if self.suffix == ".jsonl":
            text = "".join(json.dumps(record) + self.line_end + gap for record in table)
        elif self.suffix == ".json":
            text = json.dumps(table, indent=1 if self.blank_lines else None)
        else:
            text = self.opening.replace("\n", self.line_end) + self._separated(table) + gap
        return text.encode(self.encoding)

    def _separated(self, table: list[dict[str, object]]) -> str:
        buffer = io.StringIO()
        writer = csv.DictWriter(
            buffer, list(table[0]), delimiter=self.separator, quoting=self.quoting, lineterminator=self.line_end
        )
        if self.header:
            writer.writeheader()
        writer.writerows(table)
        return buffer.getvalue()


@st.composite
def dresses(draw: st.DrawFn) -> Dress:
    suffix = draw(st.sampled_from([".csv", ".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet"]))
    is_text = suffix in SEPARATORS
    separator = draw(st.sampled_from(SEPARATORS.get(suffix, ",")))
    quotings = [csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC] if separator == "\t" else [csv.QUOTE_MINIMAL, csv.QUOTE_ALL]
    extra = draw(st.lists(st.sampled_from(sorted(EXTRA)), unique=True))
    return Dress(
        suffix,
        {role: draw(st.sampled_from(names)) for role, names in NAMES.items()},
        draw(st.permutations([*NAMES, *extra])),
        separator,
        draw(st.sampled_from(quotings)),
        draw(st.sampled_from(["\n", "\r\n"])),
        draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])),
        draw(st.sampled_from(["", "", f"sep={separator}\n", "# exported by a shop\n", "\n"])) if is_text else "",
        draw(st.booleans()) if is_text else True,
        draw(st.booleans()),
        draw(st.sampled_from(sorted(PACKERS))) if suffix != ".parquet" else draw(st.sampled_from(["", ".gz"])),
        draw(st.sampled_from(sorted(NOTATIONS))),
    )


@st.composite
def logs(draw: st.DrawFn) -> Rows:
    """At least three events of one user, because leave-one-out needs them."""
    ids = st.text("abcéß7 ,;|'", min_size=1, max_size=6).map(lambda text: f"x{text}y")
    users = draw(st.lists(ids, min_size=1, max_size=3, unique=True))
    events = draw(st.lists(st.tuples(st.sampled_from(users), ids), min_size=1, max_size=12))
    times = draw(st.lists(st.integers(0, 10**7), min_size=15, max_size=15, unique=True))
    rows = [(users[0], item) for item in ("p", "q", "r")] + events
    return [(user, item, FIRST_TIME + time) for (user, item), time in zip(rows, times, strict=False)]


def arrays_of(log: Log, folder: Path) -> bytes:
    prepare(log, "log", folder, PrepareOptions(k_core=1), bytes(range(32)))
    return b"".join((folder / array_file(name)).read_bytes() for name in ARRAYS)


@settings(max_examples=100)
@given(logs(), dresses())
def test_every_dress_of_a_log_gives_the_same_frame_and_arrays(
    tmp_path_factory: pytest.TempPathFactory, rows: Rows, dress: Dress
) -> None:
    folder = tmp_path_factory.mktemp("dress", numbered=True)
    frame = pl.DataFrame(rows, schema=list(NAMES), orient="row")
    numbers = {} if dress.header else {role: str(dress.order.index(role) + 1) for role in NAMES}
    log = read_log(dress.write(folder, rows), **numbers)
    assert log.frame.equals(frame)
    assert log.columns == (dress.names if dress.header else {role: f"column_{numbers[role]}" for role in NAMES})
    plain = Log(frame, {name: name for name in NAMES}, frame.height)
    assert arrays_of(log, folder / "dressed") == arrays_of(plain, folder / "plain")
