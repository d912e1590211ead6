"""Opening a log in whatever it is packed in: gzip, zip, bzip2, xz, Zstandard, or standard input.

The container is recognised by the first bytes of the content, whatever the file is called. Content is decompressed in
memory, never into a temporary file, because a log contains test events. Text that starts with a byte order mark comes
out as UTF-8 without one. Not covered: archives of several files; the error names the command that unpacks them.
"""

import bz2
import gzip
import io
import lzma
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import polars as pl

from .errors import DataError

STANDARD_INPUT = Path("-")
MAX_LAYERS = 3
BUFFER_BYTES = 1 << 20
UTF_8_MARK = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
UNREADABLE = {  # first bytes → what the file is, and the command or the step that turns it into a log
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it: 7z x {name}"),
    b"Rar!": ("a RAR archive", "unpack it: unrar x {name}"),
    b"\x04\x22\x4d\x18": ("an LZ4 file", "unpack it: lz4 -d {name}"),
    b"\x1f\x9d": ("a compress file", "unpack it: uncompress {name}"),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", "save the sheet as CSV"),
    b"SQLite format 3\0": (
        "an SQLite database",
        "export the table: sqlite3 -csv -header {name} 'SELECT ...' > log.csv",
    ),
    b"\x89HDF": ("an HDF5 file", "write the table as CSV or Parquet"),
    b"ARROW1": ("an Arrow file", "write the table as Parquet"),
    b"ORC": ("an ORC file", "write the table as Parquet"),
    b"Obj\x01": ("an Avro file", "write the table as Parquet"),
    b"\x80\x04": ("a Python pickle", "write the table as CSV or Parquet"),
    b"\x80\x05": ("a Python pickle", "write the table as CSV or Parquet"),
    b"PK\x05\x06": ("a zip archive without files", "pack or copy it again"),
    b"%PDF": ("a PDF document", "export the table as CSV"),
    b"<!DOCTYPE": ("a web page", "download the file itself"),
    b"<html": ("a web page", "download the file itself"),
    b"version https://git-lfs": ("a pointer of Git LFS", "fetch the content: git lfs pull"),
    b"\xff\xfe\0\0": ("UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8 {name}"),
    b"\0\0\xfe\xff": ("UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8 {name}"),
}


@dataclass(frozen=True)
class Opened:
    """The decompressed content of a log, and the name that tells its format."""

    file: io.BufferedReader
    name: str  # the name of the file, or of the member of a zip archive
    packed: tuple[str, ...]  # the containers that were opened, from outside to inside


@contextmanager
def open_content(path: Path) -> Iterator[Opened]:
    """Open a file, or standard input if `path` is "-". Raises DataError if it cannot be read or is damaged."""
    name = source_name(path)
    try:
        file = io.BytesIO(sys.stdin.buffer.read()) if path == STANDARD_INPUT else path.open("rb")
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror}); check its permissions") from None
    packed: list[str] = []
    with ExitStack() as opened:
        try:
            yield _unpack(name, _buffered(opened.enter_context(file), opened), packed, opened)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
            kind = f" {packed[-1]}" if packed else ""
            raise DataError(f"{name} is not a complete{kind} file ({error}); download or copy it again") from None


def source_name(path: Path) -> str:
    """The name of a log in messages."""
    return "standard input" if path == STANDARD_INPUT else path.name


def _unpack(name: str, file: io.BufferedReader, packed: list[str], opened: ExitStack) -> Opened:
    inner = name
    for _ in range(MAX_LAYERS):
        start = file.peek(8)
        found = next((kind for kind in CONTAINERS if start.startswith(CONTAINERS[kind][0])), None)
        if found is None:
            break
        packed.append(found)
        content, member = CONTAINERS[found][1](name, file)
        file = _buffered(opened.enter_context(content), opened)
        inner = member or inner
    _refuse_unreadable(name, file.peek(512))
    return Opened(_without_mark(file), inner, tuple(packed))


def _buffered(file: BinaryIO | io.BufferedIOBase, opened: ExitStack) -> io.BufferedReader:
    return opened.enter_context(io.BufferedReader(cast(io.RawIOBase, file), BUFFER_BYTES))


def _refuse_unreadable(name: str, start: bytes) -> None:
    kind = next((UNREADABLE[magic] for magic in UNREADABLE if start.startswith(magic)), None)
    if start[257:262] == b"ustar":
        kind = ("a tar archive", "unpack it and give one of its files: tar xf {name}")
    if (order := _utf_16_order(start)) and not kind:
        kind = ("UTF-16 text without a byte order mark", f"convert it: iconv -f UTF-16{order} -t UTF-8 {{name}}")
    if kind:
        raise DataError(f"{name} is {kind[0]}, which is not read; {kind[1].format(name=name)}")


def _utf_16_order(start: bytes) -> str | None:
    """LE or BE if one of two bytes is zero throughout, as in UTF-16 text of ASCII characters."""
    even, odd = start[: len(start) // 2 * 2 : 2], start[1::2]
    if not even or even.count(0) + odd.count(0) != len(odd):
        return None
    return "LE" if not any(odd) else "BE" if not any(even) else None


def _without_mark(file: io.BufferedReader) -> io.BufferedReader:
    start = file.peek(4)
    if start.startswith(UTF_8_MARK):
        file.read(len(UTF_8_MARK))
    elif start.startswith(UTF_16_MARKS):
        text = file.read().decode("utf-16", errors="replace")
        return io.BufferedReader(cast(io.RawIOBase, io.BytesIO(text.encode())), BUFFER_BYTES)
    return file


def _open_gzip(name: str, file: BinaryIO) -> tuple[BinaryIO, str]:
    return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb")), ""


def _open_bz2(name: str, file: BinaryIO) -> tuple[BinaryIO, str]:
    return cast(BinaryIO, bz2.BZ2File(file)), ""


def _open_xz(name: str, file: BinaryIO) -> tuple[BinaryIO, str]:
    return cast(BinaryIO, lzma.LZMAFile(file)), ""


def _open_zip(name: str, file: BinaryIO) -> tuple[BinaryIO, str]:
    archive = zipfile.ZipFile(file)
    members = [info for info in archive.infolist() if not info.is_dir() and not info.filename.startswith("__MACOSX/")]
    if any(info.filename.startswith("xl/") for info in members):
        raise DataError(f"{name} is an Excel workbook, which is not read; save the sheet as CSV")
    if len(members) != 1:
        listed = ", ".join(repr(info.filename) for info in members[:5]) or "none"
        raise DataError(
            f"{name} is a zip archive of {len(members)} files ({listed}), and a log is one file; "
            f"unpack it and give one of them: unzip {name}"
        )
    try:
        return cast(BinaryIO, archive.open(members[0])), Path(members[0].filename).name
    except (RuntimeError, NotImplementedError):  # encrypted, or a compression method that Python does not know
        raise DataError(f"{name} is a zip archive that needs a password or another program; unpack it first") from None


def _open_zstandard(name: str, file: BinaryIO) -> tuple[BinaryIO, str]:
    """Python before 3.14 cannot decompress Zstandard, but polars can: as a table of text lines with one column."""
    try:
        lines = pl.read_csv(file.read(), separator="\0", has_header=False, quote_char=None, infer_schema=False)
    except pl.exceptions.NoDataError:
        return io.BytesIO(), ""
    except pl.exceptions.PolarsError:
        raise DataError(f"{name} is a Zstandard file without lines of text; unpack it: zstd -d {name}") from None
    return io.BytesIO("\n".join(lines.to_series().fill_null("")).encode()), ""


CONTAINERS: dict[str, tuple[bytes, Callable[[str, BinaryIO], tuple[BinaryIO, str]]]] = {
    "gzip": (b"\x1f\x8b", _open_gzip),
    "zip": (b"PK\x03\x04", _open_zip),
    "bzip2": (b"BZh", _open_bz2),
    "xz": (b"\xfd7zXZ\0", _open_xz),
    "Zstandard": (b"\x28\xb5\x2f\xfd", _open_zstandard),
}
